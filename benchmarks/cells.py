"""What studies of many training runs share: a row of a CSV file for each run, known by key and configuration.

A run that was interrupted goes on, one that has its row is left out, so a study may be stopped and started at will;
`--shard I/N` does every Nth run, for several processes, each with a file of rows of its own beside the common one.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune import experiment, tables
from airtune.config import RunConfig
from airtune.paired import estimate
from airtune.settings import dump, flat
from airtune.types import AirtuneError

Row = dict[str, str]
Told = Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], dict[str, Any]]
"""What a row holds besides its key, from a run's `rows.Summary` and its `rows.RoundRow`s."""


ELSEWHERE = ("name", "seed", "threads", "workers", "data_dir", "out", "learning.stack")
"""Settings that are in a row's key, or change no row but by rounding."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run, and the columns that tell it from all others."""

    key: dict[str, Any]
    config: RunConfig

    @property
    def digest(self) -> str:
        """Tells configurations apart by their settings that are no defaults, but for seed, place and threads."""
        usual = flat(dump(RunConfig()))
        own = {key: value for key, value in flat(dump(self.config)).items() if usual.get(key) != value}
        told = sorted((key, value) for key, value in own.items() if key not in ELSEWHERE)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs find their data and leave their rows."""

    data_dir: Path | None
    threads: int | None
    scratch: Path
    """Folder of unfinished run folders."""
    shard: tuple[int, int]
    """I of N."""
    stack: int = 1
    """Devices of one module trained in one pass."""


def options(parser: argparse.ArgumentParser, scratch: str) -> argparse.ArgumentParser:
    """Give a parser the options of every such study."""
    parser.add_argument("--data-dir", type=Path, help="folder of GLUE task folders; without it, only the tables")
    parser.add_argument("--threads", type=int, default=None, help="torch threads of a run; default: all cores")
    parser.add_argument("--stack", type=int, default=1, help="devices of one module trained in one pass, for a GPU")
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth run from the Ith, rows in a file of its own")
    parser.add_argument("--scratch", type=Path, default=Path(scratch), help="folder of unfinished runs")
    return parser


def place_of(given: argparse.Namespace) -> Place:
    """The options as a place."""
    part, parts = map(int, given.shard.split("/"))
    return Place(given.data_dir, given.threads, given.scratch, (part, parts), given.stack)


def read(path: Path) -> list[Row]:
    """Rows of a file and of those that shards wrote beside it."""
    parts = (part for part in path.parent.glob(f"{path.stem}-*.csv") if re.fullmatch(rf"{path.stem}-\d+", part.stem))
    rows: list[Row] = []
    for part in (path, *sorted(parts)):
        if part.exists():
            with part.open(newline="") as file:
                rows += csv.DictReader(file)
    return rows


def carry_out(cells: Iterable[Cell], path: Path, place: Place, told: Told) -> None:
    """Run what has no row yet, each row written as its run ends; a run that fails is told and loses itself alone."""
    part, parts = place.shard
    failed = 0
    own = path if parts == 1 else path.with_name(f"{path.stem}-{part}.csv")
    for number, cell in enumerate(cells):
        if number % parts == part and not _done(cell, read(path)):
            try:
                row = _run(cell, place, told)
            except AirtuneError as error:
                print(f"failed: {' '.join(map(str, cell.key.values()))}: {error}", file=sys.stderr)
                failed += 1
            else:
                _append(own, cell.key | row | {"config": cell.digest})
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command tries them again")


def _done(cell: Cell, rows: Sequence[Row]) -> bool:
    key = {**cell.key, "config": cell.digest}
    return any(all(row[name] == str(value) for name, value in key.items()) for row in rows)


def _run(cell: Cell, place: Place, told: Told) -> dict[str, Any]:
    name = "-".join(re.sub(r"[^\w.=]+", "_", str(value)) for value in cell.key.values())
    out = place.scratch / name
    learning = dataclasses.replace(cell.config.learning, stack=place.stack)
    config = dataclasses.replace(
        cell.config, data_dir=place.data_dir, threads=place.threads, out=out, learning=learning
    )
    summary = experiment.run_or_resume(config)
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    shutil.rmtree(out)
    return told(summary, rounds)


def _append(path: Path, row: Mapping[str, Any]) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % t-interval in per cent, for a table; the mean alone of fewer than three values."""
    found = estimate(values)
    if found is not None and found.n < 3:
        found = dataclasses.replace(found, half_width=None)
    return tables.interval(found, 100, 1)
