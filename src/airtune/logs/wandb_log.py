"""Weights & Biases; WANDB_MODE=offline writes to the run folder alone."""

# pyright: reportMissingImports=false
from collections.abc import Mapping

import wandb

from airtune.logs.log import Start


class WandbLog:
    """A run of the project that the target names, or of `airtune`."""

    def __init__(self, target: str | None) -> None:
        self._project = target or "airtune"

    def begin(self, start: Start) -> str | None:
        """Make the run, or find it again."""
        self._run = wandb.init(
            project=self._project,
            name=start.name,
            group=start.group,
            config=dict(start.config),
            dir=str(start.folder),
            id=start.known_as,
            resume="allow" if start.known_as else None,
            settings=wandb.Settings(silent=True),
        )
        return self._run.id

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """All of a step at once."""
        self._run.log(dict(values), step=step)

    def end(self, *, finished: bool) -> None:
        """Finish the run, unsuccessfully if it may be resumed."""
        self._run.finish(exit_code=0 if finished else 1)
