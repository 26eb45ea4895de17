"""`airtune show`: tables and plots of runs; those that end a run and a comparison, too."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from airtune.commands.arguments import parse
from airtune.types import AirtuneError


@dataclasses.dataclass
class _Runs:
    """Tables and plots of one run, or of several side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; one for a report on it, several for a comparison."""
    out: Path | None = None
    """Folder for a comparison's tables and plots; the first run's parent if not given."""
    reference: str | None = None
    """Policy that the others are compared with."""
    target: float | None = None
    """Accuracy on the dev subset, as 0.8, whose energy and time are told; the reference's last if not given."""


def show_command(arguments: list[str]) -> None:
    """airtune show RUN [RUN …]."""
    asked = parse(_Runs, arguments, "airtune show")
    if not asked.runs:
        raise AirtuneError("show: name at least one run folder")
    if len(asked.runs) > 1:
        tell(list(asked.runs), asked.out or asked.runs[0].parent, asked.reference, asked.target)
    else:
        report(asked.runs[0])


def report(path: Path) -> None:
    """Table and plots of one run."""
    from rich.console import Console

    from airtune.plots import plot_run
    from airtune.report import report_run
    from airtune.tables import render_run

    Console().print(render_run(report_run(path)))
    print(f"plots: {_listed(plot_run(path))}")


def tell(
    paths: list[Path], out: Path, reference: str | None, target: float | None = None, *, partial: bool = False
) -> None:
    """Table and plots of a comparison; partial: runs of the reference may have failed."""
    from rich.console import Console

    from airtune.compare import compare
    from airtune.plots import plot_compare
    from airtune.report import load_run
    from airtune.tables import render_comparison, write_comparison

    comparison = compare([load_run(path) for path in paths], reference, target, partial=partial)
    console = Console()
    console.print(render_comparison(comparison, console.width))
    print(f"tables: {_listed(write_comparison(comparison, out))}")
    print(f"plots: {_listed(plot_compare(paths, out, reference))}")


def _listed(paths: Sequence[Path]) -> str:
    """Files of one folder, without their endings, each name once."""
    return f"{', '.join(dict.fromkeys(path.stem for path in paths))} in {os.path.relpath(paths[0].parent)}"
