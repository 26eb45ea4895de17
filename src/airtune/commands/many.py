"""Carrying out many runs at the command line: progress, failures, Ctrl-C."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from airtune.commands.arguments import quiet_libraries
from airtune.compare import refuse_target
from airtune.config import RunConfig
from airtune.logs.log import log_of
from airtune.settings import usual_reference
from airtune.tables import number, percent
from airtune.types import AirtuneError

REASONS = 3
"""Reasons of failures that are told in one line."""


@dataclass
class Compared:
    """Options of every command that compares policies."""

    policies: str = "joint,traditional"
    """Separated by commas: names of policy.name, traditional:N for module N, or Python files with policy(problem)."""
    seeds: int = 1
    """Number of seeds: the configuration's seed and those after it."""
    reference: str | None = None
    """Policy that the others are compared with; the first traditional one if any takes part, else the last."""
    target: float | None = None
    """Accuracy on the dev subset, as 0.8, whose energy and time are told; the reference's last if not given."""
    ray_address: str | None = None
    """Ray cluster to run on instead; auto for the one this machine belongs to."""
    log: str | None = None
    """TOOL or TOOL:TARGET: copies every round's values to tensorboard[:DIR], mlflow[:TRACKING_URI], wandb[:PROJECT],
    trackio[:PROJECT] or prometheus[:[HOST:]PORT]."""

    def checked_reference(self, labels: Sequence[str]) -> str:
        """The policy to compare with: the one asked for, the first traditional one, or the last.

        Raises:
            AirtuneError: no such policy, or no such target; told before anything runs.
        """
        refuse_target(self.target)
        reference = (self.reference or usual_reference(labels)).replace(":", "-m")
        if reference not in labels:
            raise AirtuneError(f"--reference: no policy {reference} among --policies; there are {', '.join(labels)}")
        return reference


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of many runs."""

    configs: tuple[RunConfig, ...]
    """Those that ended well, in order."""
    lost: int
    reasons: tuple[str, ...]
    """Why runs failed, each once."""

    def tell_lost(self) -> None:
        """Raises AirtuneError if runs failed."""
        if not self.lost:
            return
        shown = "; ".join(self.reasons[:REASONS]) + (" …" if len(self.reasons) > REASONS else "")
        if not self.configs:
            raise AirtuneError(shown)
        count = self.lost + len(self.configs)
        raise AirtuneError(f"{self.lost} of {count} runs failed: {shown}; the same command again tries them once more")


def finish(configs: Sequence[RunConfig], jobs: int, ray_address: str | None, log: str | None = None) -> Finished:
    """Carry out runs and tell of each; log: TOOL or TOOL:TARGET that gets a copy of their rows.

    Raises:
        AirtuneError: no such number of jobs, no Ray.
        KeyboardInterrupt: telling how to go on.
    """
    if jobs < 1:
        raise AirtuneError(f"--jobs: at least 1 would be right, got {jobs}")
    if log is not None:
        log_of(log)  # a mistake in it is told before anything is loaded
    quiet_libraries()
    from airtune.runners import carry_out

    alone = jobs == 1 and ray_address is None  # then each run shows its own progress
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    failed: dict[str, str] = {}
    done: set[str] = set()
    try:
        with Progress(*columns, console=Console(), disable=alone) as progress:
            task = progress.add_task("runs", total=len(configs))
            for ended in carry_out(configs, jobs, ray_address, log):
                name = str(ended.config.out)
                if ended.summary is None:
                    failed[name] = ended.error or ""
                    progress.console.print(f"{name} failed: {ended.error}", highlight=False, markup=False)
                    if ended.trace:
                        progress.console.print(ended.trace, highlight=False, markup=False)
                else:
                    done.add(name)
                    if not alone:
                        facts = f"{percent(ended.summary['accuracy'])}  {number(ended.summary['energy_j'], 'J', 4)}"
                        progress.console.print(f"{name}  {facts}", highlight=False, markup=False)
                progress.advance(task)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command again goes on from the last finished rounds") from None
    ended_well = tuple(config for config in configs if str(config.out) in done)
    return Finished(ended_well, len(failed), tuple(dict.fromkeys(failed.values())))
