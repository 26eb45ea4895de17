"""`airtune solve`: one round's problem from a JSON file, decided."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from airtune.commands.arguments import parse
from airtune.types import AirtuneError

if TYPE_CHECKING:
    from rich.table import Table

    from airtune.solving import Solution

ROWS_MAX = 40
"""Devices shown at most."""


@dataclasses.dataclass
class _Solve:
    """Module, power and bandwidth of every device for one round's problem (P1), with a bound on the best possible.

    docs/solve.md describes the file.
    """

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """JSON file, or - for standard input."""
    solver: Literal["joint", "alternating", "exact"] = "joint"
    """joint (near-optimal, with a bound), alternating (no bound) or exact (proven optimal, for a few devices)."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON in place of a table."""


def solve_command(arguments: list[str]) -> None:
    """airtune solve FILE.json|- [--solver joint|alternating|exact] [--json]."""
    asked: _Solve = parse(_Solve, arguments, "airtune solve")
    from rich.console import Console

    from airtune.problem_file import parse_problem
    from airtune.solving import solve

    where = "standard input" if asked.file == "-" else asked.file
    problem = parse_problem(_read(asked.file), where)
    note = "; its first time ever it is compiled, which takes a while" if asked.solver == "joint" else ""
    with Console(stderr=True).status(f"solving{note} …"):
        solution = solve(problem, asked.solver)
    if asked.json:
        print(json.dumps(solution.to_dict(), allow_nan=False))
    else:
        _show(solution)


def _read(file: str) -> bytes:
    if file == "-":
        stream = getattr(sys.stdin, "buffer", None)
        if stream is None:
            raise AirtuneError("standard input: is closed; give a JSON file, or pipe one in")
        return stream.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise AirtuneError(
            f"{file}: cannot be read ({error.strerror}); give a JSON file, or - for standard input"
        ) from None


def _show(solution: "Solution") -> None:
    """The decisions as a table, and what they are worth."""
    from rich.console import Console
    from rich.text import Text

    from airtune.tables import NONE, number

    console = Console()
    sending = [k for k, each in enumerate(solution.decisions) if each.module is not None]
    count = len(solution.decisions)
    rows = list(range(count)) if count <= ROWS_MAX else sending[:ROWS_MAX]
    if rows:
        console.print(_table(solution, rows))
    if count > len(rows):
        hidden = max(len(sending) - len(rows), 0)
        of_them = f"{hidden:,} of them sending" if hidden else "none of them sending"
        told = f"and {count - len(rows):,} more devices, {of_them}; --json lists all"
        console.print(told, style="dim", highlight=False)
    console.print()
    gap = solution.certificate
    for label, text in (
        ("Objective", f"{_figure(solution.objective)} J²"),
        ("Upper bound", NONE if solution.upper_bound is None else f"{_figure(solution.upper_bound)} J²"),
        ("Certificate", NONE if gap is None else f"{100 * gap:.2g} % below the bound"),
        ("Solver time", number(solution.solve_s, "s")),
        ("Status", solution.status),
    ):
        console.print(Text.assemble((f"{label:13}", "dim"), text))


def _table(solution: "Solution", rows: Sequence[int]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from airtune.tables import NONE, percent

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Device", "Module", "Power [mW]", "Band [kHz]", "Success", "Energy [J]"):
        table.add_column(Text(name), justify="right")
    for k in rows:
        each = solution.decisions[k]
        if each.module is None:
            table.add_row(str(k), "idle", NONE, NONE, NONE, NONE, style="dim")
        else:
            table.add_row(
                str(k), str(each.module), _figure(1e3 * each.power_w), _figure(each.bandwidth_hz / 1e3),
                percent(each.success_probability), _figure(each.energy_j),
            )  # fmt: skip
    return table


def _figure(value: float) -> str:
    """Four significant digits; powers of ten only where plain digits would be many.

    >>> _figure(12345.6), _figure(0.01234567), _figure(3.2e-9), _figure(0.0)
    ('12,346', '0.01235', '3.2e-09', '0')
    """
    from airtune.tables import number

    if value == 0:
        return "0"
    return number(value, digits=4) if 1e-4 <= abs(value) < 1e7 else f"{value:.4g}"
