"""Live progress of a run on the terminal; plain lines, one per evaluation, where there is no terminal."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from airtune.tables import bars, number, percent

RECENT = 10
"""Rounds over which the time per round is averaged."""


class RunDisplay:
    """Shows a run's progress; a context manager used by the loop that runs the rounds.

    >>> with RunDisplay("demo", rounds=30, budget_j=100.0, console=Console(quiet=True)) as display:
    ...     display.message("starting")

    Nothing is shown before the first `update` but the title, and the last state stays on the screen.
    """

    def __init__(
        self,
        title: str,
        *,
        rounds: int,
        budget_j: float | None = None,
        metric: str = "accuracy",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What the display needs to know.

        title: what runs; rounds: T; budget_j: T·Σ_k Ē_k [J]; metric: what a row's accuracy is; console: standard output
        if None; clock [s].
        """
        self._title = title
        self._rounds = rounds
        self._budget_j = budget_j
        self._metric = metric.replace("_", " ")
        self._console = console or Console()
        self._clock = clock
        self._live: Live | None = None
        self._row: Mapping[str, Any] | None = None
        self._accuracy: float | None = None
        self._best: float | None = None
        self._dev_loss: float | None = None
        self._ends_s: deque[float] = deque(maxlen=RECENT + 1)
        self._start_s = 0.0

    def __enter__(self) -> Self:
        self._start_s = self._clock()
        self._ends_s.append(self._start_s)
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2)
            self._live.start()
        else:
            self._console.print(self._title, highlight=False, markup=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def message(self, text: str) -> None:
        """A line above the display."""
        self._console.print(text, highlight=False, markup=False)

    def update(self, round_row: Mapping[str, Any]) -> None:
        """Show a finished round (`rows.RoundRow`)."""
        self._row = round_row
        self._ends_s.append(self._clock())
        accuracy = round_row["accuracy"]
        if accuracy is not None:
            self._accuracy = accuracy
            self._best = accuracy if self._best is None else max(self._best, accuracy)
            self._dev_loss = round_row["measures"].get("loss")
        if self._live is not None:
            self._live.refresh()
        elif accuracy is not None:
            self._console.print(self._line(round_row), highlight=False, markup=False, soft_wrap=True)

    @property
    def left_s(self) -> float | None:
        """Time left [s] at the pace of the last rounds; None before the first one has ended."""
        if self._row is None:
            return None
        pace_s = (self._ends_s[-1] - self._ends_s[0]) / (len(self._ends_s) - 1)
        since_s = min(self._clock() - self._ends_s[-1], pace_s)
        return max(pace_s * (self._rounds - self._row["t"] - 1) - since_s, 0.0)

    def _energy(self, row: Mapping[str, Any]) -> str:
        text = number(row["spent_j"], "J")
        if self._budget_j:
            text += f" of {number(self._budget_j, 'J')} ({percent(row['spent_j'] / self._budget_j, 0)})"
        return text

    def _line(self, row: Mapping[str, Any]) -> str:
        loss = "" if self._dev_loss is None else f"dev loss {number(self._dev_loss)}  "
        return (
            f"round {row['t'] + 1}/{self._rounds}  {self._metric} {percent(row['accuracy'])}  {loss}"
            f"delivered {row['delivered']}/{row['scheduled']}  energy {self._energy(row)}  {span(self.left_s)} left"
        )

    def _render(self) -> RenderableType:
        row = self._row
        done = 0 if row is None else row["t"] + 1
        head = Table.grid(expand=True, padding=(0, 1, 0, 0))
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        elapsed = span(self._clock() - self._start_s)
        clock = elapsed if done == self._rounds else f"{elapsed}, {span(self.left_s)} left"
        head.add_row(
            ProgressBar(total=self._rounds, completed=done, pulse=row is None, animation_time=self._clock()),
            Text.assemble((f"round {done}/{self._rounds}", "bold"), f"  {clock}"),
        )
        parts: list[RenderableType] = [Text(self._title, "bold", no_wrap=True, overflow="ellipsis"), head]
        return Group(*parts) if row is None else Group(*parts, self._facts(row), _modules(row["modules"]))

    def _facts(self, row: Mapping[str, Any]) -> Table:
        facts = Table.grid(padding=(0, 2, 0, 0))
        facts.add_column(style="dim")
        facts.add_column(min_width=24)
        facts.add_column(style="dim")
        facts.add_column()
        best = "" if self._best is None else f"  (best {percent(self._best)})"
        facts.add_row(
            self._metric,
            Text.assemble((percent(self._accuracy), "bold green"), best),
            "delivered",
            f"{row['delivered']} of {row['scheduled']}",
        )
        worst = row["max_overspend_ratio"]
        style = "yellow" if worst is not None and worst > 1 else ""
        facts.add_row("energy", self._energy(row), "worst device", Text(f"{number(worst)}× its budget so far", style))
        if self._dev_loss is not None:
            facts.add_row("dev loss", number(self._dev_loss), "training loss", number(row["loss"]))
        return facts


def span(seconds: float | None) -> str:
    """A time span, read at a glance.

    >>> span(75), span(3720), span(None)
    ('1:15', '1:02:00', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _modules(counts: list[int]) -> Text:
    """Number of devices per module, each with a small bar."""
    text = Text("modules   ", "dim", no_wrap=True, overflow="ellipsis")
    for m, (bar, count) in enumerate(zip(bars(counts), counts, strict=True)):
        text.append("idle " if m == 0 else f"m{m} ", "dim")
        text.append(bar, "bright_black" if m == 0 else "cyan")
        text.append(f" {count}   ")
    return text
