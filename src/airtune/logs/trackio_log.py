"""Trackio: a local dashboard, shown by `trackio show`."""

# pyright: reportMissingImports=false
import contextlib
import io
from collections.abc import Mapping

import trackio

from airtune.logs.log import Start
from airtune.settings import flat


class TrackioLog:
    """A run of the project that the target names, or of `airtune`."""

    def __init__(self, target: str | None) -> None:
        self._project = target or "airtune"

    def begin(self, start: Start) -> str | None:
        """Make the run, or find it again by its name."""
        with contextlib.redirect_stdout(io.StringIO()):  # its greeting
            run = trackio.init(
                project=self._project,
                name=start.known_as or start.name,
                group=start.group,
                config=flat(start.config),
                resume="allow" if start.known_as else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        return run.name

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """All of a step at once."""
        trackio.log(dict(values), step=step)

    def end(self, *, finished: bool) -> None:
        """Finish the run."""
        trackio.finish()
