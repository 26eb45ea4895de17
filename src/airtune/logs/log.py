"""Live logging to other tools: a copy of what the rows say. The run folder stays the record."""

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast, runtime_checkable

from airtune.files import write_json
from airtune.record import RunFolder
from airtune.rows import plain
from airtune.types import AirtuneError

TOOLS = {
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
    "prometheus": "prometheus_client",
}
"""Name of each tool, and the module it needs."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a log begins with."""

    folder: Path
    """Run folder."""
    group: str
    """What the runs of one configuration have in common."""
    config: Mapping[str, Any]
    """The resolved configuration, nested tables."""
    first: int
    """First step to come, from 1; more than 1 where a run is resumed."""
    known_as: str | None
    """What `begin` gave when the run was begun with this tool; None the first time."""

    @property
    def name(self) -> str:
        """What the run is called: its folder, in a sweep after its point's, as world.bandwidth_hz=5e5/joint-s0."""
        own = self.folder.resolve()
        point = own.parent.name
        return f"{point}/{own.name}" if "=" in point or point == self.group else own.name


@runtime_checkable
class RunLog(Protocol):
    """Where values go while a run is under way."""

    def begin(self, start: Start) -> str | None:
        """Open it; returns what finds it again when the run is resumed, None if the folder does."""
        ...

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """Values after round `step`, from 1."""
        ...

    def end(self, *, finished: bool) -> None:
        """Close it."""
        ...


def log_of(spec: str) -> RunLog:
    """The log that TOOL or TOOL:TARGET means.

    Raises:
        AirtuneError: no such tool, or its library is not installed.

    """
    tool, _, target = spec.partition(":")
    if tool not in TOOLS:
        raise AirtuneError(f"--log: no tool {tool!r}; there are {', '.join(TOOLS)}, each also as TOOL:TARGET")
    if importlib.util.find_spec(TOOLS[tool]) is None:
        raise AirtuneError(f"--log: {tool} is not installed; pip install 'airtune[{tool}]'")
    where = target or None
    match tool:
        case "tensorboard":
            from airtune.logs.tensorboard_log import TensorBoardLog

            return TensorBoardLog(where)
        case "mlflow":
            from airtune.logs.mlflow_log import MlflowLog

            return MlflowLog(where)
        case "wandb":
            from airtune.logs.wandb_log import WandbLog

            return WandbLog(where)
        case "trackio":
            from airtune.logs.trackio_log import TrackioLog

            return TrackioLog(where)
        case _:
            from airtune.logs.prometheus_log import PrometheusLog

            try:
                return PrometheusLog(where)
            except ValueError:
                raise AirtuneError(f"--log: {spec}: prometheus:PORT or prometheus:HOST:PORT would be right") from None


def values_of(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row; entry i of a list or table is NAME/i, and what is null or text is left out.

    >>> values_of({"t": 3, "loss": None, "status": "ok", "accuracy": 0.5, "modules": [4, 2]})
    {'accuracy': 0.5, 'modules/0': 4.0, 'modules/1': 2.0}
    """
    found: dict[str, float] = {}
    for name, value in plain(row).items():
        if isinstance(value, list):
            entries = enumerate(cast("list[Any]", value))
            found |= values_of({f"{name}/{i}": entry for i, entry in entries}, prefix)
        elif isinstance(value, dict):
            table = cast("dict[str, Any]", value)
            found |= values_of({f"{name}/{key}": entry for key, entry in table.items()}, prefix)
        elif isinstance(value, int | float) and not isinstance(value, bool) and name != "t":
            found[prefix + name] = float(value)
    return found


class Watched:
    """A log (or none) that cannot stop a run: after its first failure it is told on standard error and left alone.

    A context manager; opening it must succeed. What finds the log again at a resume is kept in the folder's log.json.
    """

    def __init__(self, log: RunLog | None, folder: RunFolder, group: str, *, first: int) -> None:
        """Open the log, if there is one; first: step to come, from 1. Raises AirtuneError if it cannot be opened."""
        self._log = log
        self._step = first - 1
        self._finished = False
        self._tool = type(log).__name__.removesuffix("Log").lower()
        if log is None:
            return
        kept = folder.path / "log.json"
        known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        try:
            found = log.begin(Start(folder.path, group, folder.read_config(), first, known.get(self._tool)))
        except Exception as error:
            raise AirtuneError(f"--log: {self._tool} cannot begin: {_line(error)}") from error
        if found is not None and found != known.get(self._tool):
            write_json(kept, known | {self._tool: found})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._try(lambda log: log.end(finished=self._finished))

    def row(self, row: Mapping[str, Any]) -> None:
        """A finished round (`rows.RoundRow`)."""
        self._step = row["t"] + 1
        self._try(lambda log: log.values(self._step, values_of(row)))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The totals of a run that has ended (`rows.Summary`)."""
        self._finished = True
        self._try(lambda log: log.values(self._step, values_of(summary, "summary/")))

    def _try(self, act: Callable[[RunLog], None]) -> None:
        if self._log is None:
            return
        try:
            act(self._log)
        except Exception as error:
            told = f"{self._tool} failed and gets no more, the run goes on: {_line(error)}"
            print(f"airtune: warning: --log: {told}", file=sys.stderr)
            self._log = None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
