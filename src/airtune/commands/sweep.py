"""`airtune sweep`."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console

from airtune.commands.arguments import name_first, options, settings_of
from airtune.commands.many import Compared, finish
from airtune.compare import Comparison
from airtune.config import RunConfig
from airtune.sweep import Point, axes_of, points
from airtune.types import AirtuneError


@dataclasses.dataclass
class _Sweep(Compared):
    """A grid over scenarios, settings, policies and seeds; every setting of `airtune run` applies to all runs.

    Several scenarios are named with commas between them: airtune sweep sst2,qnli. Run again, it keeps finished runs and
    finishes interrupted and failed ones; a run that fails loses only itself.
    """

    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A setting and its values, KEY=VALUE,VALUE,…; once for each axis."""
    jobs: int | None = None
    """Runs side by side (Ray); as many as this machine has cores if not given, 1 without Ray."""


def sweep_command(arguments: list[str]) -> None:
    """airtune sweep NAME_OR_FILE[,NAME…] [--grid KEY=VALUE,VALUE …] [options and settings]."""
    names = name_first(arguments, "sweep")
    prog = f"airtune sweep {names}"
    asked, rest = options(_Sweep, arguments, prog)
    bases = [settings_of(name, rest, prog) for name in names.split(",") if name]
    if not bases:
        raise AirtuneError("sweep: name a preset or a TOML file first")
    bases = [dataclasses.replace(base, threads=base.threads or 1) for base in bases]
    out = bases[0].out or Path("runs") / f"sweep-{'-'.join(base.name for base in bases)}"
    grid = points(bases, axes_of(asked.grid), asked.policies, asked.seeds, out)
    reference = asked.checked_reference(grid[0].labels)
    configs = [config for point in grid for config in point.configs]
    jobs = asked.jobs if asked.jobs is not None else min(_cores(), len(configs))
    finished = finish(configs, jobs, asked.ray_address, asked.log)
    _tell(grid, finished.configs, out, reference, asked.target)
    finished.tell_lost()


def _cores() -> int:
    """Cores that this process may use; 1 without Ray."""
    return len(os.sched_getaffinity(0)) if importlib.util.find_spec("ray") else 1


def _tell(
    grid: Sequence[Point], finished: Sequence[RunConfig], out: Path, reference: str, target: float | None
) -> None:
    """The table of a sweep, and its files; where no run of the reference has finished, nothing is set against it."""
    from airtune.compare import compare
    from airtune.report import load_run
    from airtune.sweep import write_sweep
    from airtune.tables import render_sweep

    there = {config.out for config in finished}
    compared: list[tuple[Point, Comparison]] = []
    for point in grid:
        runs = [load_run(config.out) for config in point.configs if config.out is not None and config.out in there]
        if runs:
            compared.append((point, compare(runs, reference, target, partial=True)))
    if not compared:
        return
    console = Console()
    console.print(render_sweep([(point.name, comparison) for point, comparison in compared]))
    csv, _ = write_sweep(compared, out)
    print(f"tables: sweep.csv and sweep.json in {os.path.relpath(csv.parent)}")
