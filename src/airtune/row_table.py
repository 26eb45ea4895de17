"""Rows of runs as one flat table, in CSV or Parquet."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from airtune.files import csv_bytes, write_atomic
from airtune.record import RunFolder
from airtune.types import AirtuneError

Which = Literal["rounds", "devices", "timings"]

FIRST = {"delta": 1}
"""Number of a list's first entry, where it is not 0."""


TABLES = ("measures",)
"""Tables that a row may lack."""


def write_rows(paths: Sequence[Path], out: Path, which: Which = "rounds") -> int:
    """Write the rows of some runs, finished or not, as one table; returns the number of rows.

    Columns `run` (the folder, below what all have in common), `policy` and `seed` come first, then those of
    `rows.RoundRow`, `DeviceRow` or `TimingRow`; entry i of a list or table is column NAME_i. What is null or was not
    recorded is an empty cell or null.

    Args:
        paths: run folders.
        out: file, .csv or .parquet; its folder is made.
        which: which rows.

    Raises:
        AirtuneError: no run folder, no such rows, another ending, or `out` cannot be written.

    """
    encode = {".csv": csv_bytes, ".parquet": _parquet}.get(out.suffix.lower())
    if encode is None:
        raise AirtuneError(f"{out}: the ending says the format; choose .csv or .parquet")
    folders = [path.resolve() for path in paths]
    root = Path(os.path.commonpath([folder.parent for folder in folders]))
    records = [record for folder in folders for record in _records(folder, str(folder.relative_to(root)), which)]
    if not records:
        raise AirtuneError(f"no rows of {which} in {', '.join(map(str, paths))}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, encode(records))
    except OSError as error:
        raise AirtuneError(f"{out}: cannot be written ({error.strerror}); choose another with --out") from None
    return len(records)


def _records(path: Path, run: str, which: Which) -> list[dict[str, Any]]:
    folder = RunFolder.open(path)
    read = {"rounds": folder.read_rounds, "devices": folder.read_devices, "timings": folder.read_timings}[which]
    config = folder.read_config()
    label = folder.read_environment().get("policy", {}).get("label") or config.get("policy", {}).get("name")
    head = {"run": run, "policy": label, "seed": config.get("seed")}
    return [head | _spread(row) for row in read()]


def _spread(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with a column for each entry of a list or table.

    >>> _spread({"t": 0, "modules": [3, 2], "delta": [0.5]})
    {'t': 0, 'modules_0': 3, 'modules_1': 2, 'delta_1': 0.5}
    """
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list):
            entries = cast("list[Any]", value)
            found |= {f"{name}_{i}": entry for i, entry in enumerate(entries, FIRST.get(name, 0))}
        elif isinstance(value, dict):
            found |= {f"{name}_{key}": entry for key, entry in cast("dict[str, Any]", value).items()}
        elif name not in TABLES or value is not None:
            found[name] = value
    return found


def _parquet(records: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: pa.array([record.get(name) for record in records]) for name in names}
    numbers = {name: c.cast(pa.float64()) if pa.types.is_null(c.type) else c for name, c in columns.items()}
    sink = io.BytesIO()
    pq.write_table(pa.table(numbers), sink)
    return sink.getvalue()
