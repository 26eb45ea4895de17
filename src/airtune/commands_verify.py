"""`airtune verify`: the bounds against exact gaps on random problems whose constants are known."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from airtune.testbed.verify import Check, Line, summary, verify


@dataclasses.dataclass
class _Verify:
    """Check Theorems 1 and 2 on random problems whose constants are known exactly; exit code 1 if a bound is violated.

    Gaps are exact expectations over every outcome: no sampling error hides a violation or makes one up.
    """

    instances: int = 10_000
    """How many problems to draw."""
    seed: int = 0
    out: Path | None = None
    """Folder for verify.csv (a row per instance and bound) and verify-summary.csv; none is written if not given."""


def verify_command(arguments: list[str]) -> None:
    """airtune verify [--instances N] [--seed S] [--out DIR].

    Raises:
        SystemExit: with 1, if any bound is violated.
        AirtuneError: arguments that cannot be.
    """
    from airtune.cli import _parse as parse  # pyright: ignore[reportPrivateUsage]

    asked = parse(_Verify, arguments, "airtune verify")
    console = Console()
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("verifying", total=asked.instances)
        found = verify(asked.instances, asked.seed, progress=lambda done: progress.update(task, completed=done))
    lines = summary(found)
    console.print(_table(lines))
    wrong = [check for check in found if check.violated]
    for check in wrong[:10]:
        console.print(f"violated: {check.bound}, instance {check.instance} of seed {asked.seed} ({check.family})")
    if asked.out is not None:
        _write(asked.out, found, lines)
        print(f"tables: verify, verify-summary in {asked.out}")
    if wrong:
        raise SystemExit(1)


def _table(lines: Sequence[Line]) -> Table:
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
        caption="median and 90 % of bound / gap after the last round",
    )
    table.add_column("problem")
    table.add_column("bound")
    for name in ("instances", "violations", "median", "90 %"):
        table.add_column(name, justify="right")
    last = ""
    for line in lines:
        family, last = ("" if line.family == last else line.family), line.family
        numbers = (str(line.instances), str(line.violations), f"{line.median:.2f}", f"{line.upper:.2f}")
        table.add_row(family, line.bound, *numbers, style="red" if line.violations else "")
    return table


def _write(out: Path, found: Sequence[Check], lines: Sequence[Line]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("verify", found), ("verify-summary", lines)):
        with (out / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in rows)
