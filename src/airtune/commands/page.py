"""`airtune report` and `airtune rows`: one page of runs, and their rows as a table."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from airtune.commands.arguments import parse
from airtune.settings import load
from airtune.types import AirtuneError

if TYPE_CHECKING:
    from airtune.page.figures import Cell


@dataclasses.dataclass
class _Page:
    """One self-contained HTML page of runs: tables, curves over seeds, what devices did, configuration and commands."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders of run folders."""
    out: Path | None = None
    """HTML file; report.html in the first folder if not given."""
    reference: str | None = None
    """Policy that the others are compared with; the first traditional one if any takes part, else the last."""
    target: float | None = None
    """Accuracy on the dev subset, as 0.8, whose energy and time are told; the reference's last if not given."""


def report_command(arguments: list[str]) -> None:
    """airtune report RUN [RUN …] [--out FILE.html] [--reference POLICY] [--target A]."""
    asked = parse(_Page, arguments, "airtune report")
    paths = runs_of(asked.runs, "report")
    from airtune.page.page import write_page

    out = write_page(paths, asked.out or asked.runs[0] / "report.html", positions_of, asked.reference, asked.target)
    print(f"page: {os.path.relpath(out)} ({out.stat().st_size / 1e6:.1f} MB, opens without a network)")


@dataclasses.dataclass
class _Rows:
    """The rows of runs, finished or not, as one table for pandas, polars, R, DuckDB or a spreadsheet."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders of run folders."""
    out: Path
    """File, .csv or .parquet."""
    of: Literal["rounds", "devices", "timings"] = "rounds"
    """Rows per round, per device and round, or wall times per round."""


def rows_command(arguments: list[str]) -> None:
    """airtune rows RUN [RUN …] --out FILE.csv|FILE.parquet [--of rounds|devices|timings]."""
    asked = parse(_Rows, arguments, "airtune rows")
    from airtune.row_table import write_rows

    count = write_rows(runs_of(asked.runs, "rows"), asked.out, asked.of)
    print(f"{count:,} rows of {asked.of}: {os.path.relpath(asked.out)}")


def runs_of(paths: Sequence[Path], command: str) -> list[Path]:
    """Run folders as given, and in place of any other folder the run folders in it, however deep, by name.

    Raises:
        AirtuneError: none given, or a folder without one.

    """
    if not paths:
        raise AirtuneError(f"{command}: name at least one run folder")
    found: list[Path] = []
    for path in paths:
        inside = sorted(each.parent for each in path.rglob("run.json")) if path.is_dir() else []
        if not inside and not (path / "run.json").exists():
            raise AirtuneError(f"{path} is not a run folder and holds none: there is no run.json")
        found += [path] if (path / "run.json").exists() else inside
    return found


def positions_of(config: Mapping[str, Any]) -> "Cell | None":
    """Where the devices of a run were drawn, K×2 [m], and the cell's radius [m], from its configuration."""
    from airtune.physics.fading import positions_m

    whole = load(dict(config))
    world = whole.world
    return positions_m(whole.seed, whole.fleet.devices, world.cell_radius_m, world.min_distance_m), world.cell_radius_m
