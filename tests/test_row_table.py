"""Rows as CSV and Parquet: every value as it was written."""

import csv

import pyarrow.parquet as pq
import pytest

from airtune.cli import run_cli
from airtune.experiment import run
from airtune.record import RunFolder


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        run(tiny_config(root / f"joint-s{seed}", seed=seed, rounds=2))
    return root


def wanted(root, read):
    """Rows with their lists spread, by hand."""
    found = []
    for seed in (0, 1):
        for row in read(RunFolder.open(root / f"joint-s{seed}")):
            flat = {"run": f"joint-s{seed}", "policy": "joint", "seed": seed} | row
            for name, first in (("modules", 0), ("delta", 1)):
                for i, value in enumerate(flat.pop(name, []), first):
                    flat[f"{name}_{i}"] = value
            flat |= {f"measures_{name}": value for name, value in (flat.pop("measures", None) or {}).items()}
            found.append(flat)
    return found


@pytest.mark.parametrize("of", ["rounds", "devices", "timings"])
def test_rows_come_back_exactly(runs, tmp_path, of, capsys):
    rows = wanted(runs, lambda folder: getattr(folder, f"read_{of}")())
    for ending in ("csv", "parquet"):
        out = tmp_path / f"deep/rows.{ending}"
        assert run_cli(["rows", str(runs), "--out", str(out), "--of", of]) == 0
        assert f"{len(rows)} rows of {of}" in capsys.readouterr().out
    with (tmp_path / "deep/rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:3] == ["run", "policy", "seed"]
    names = dict.fromkeys(name for row in rows for name in row)
    rows = [{name: row.get(name) for name in names} for row in rows]
    assert table == [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    found = pq.read_table(tmp_path / "deep/rows.parquet")
    assert found.to_pylist() == rows
    if of == "rounds":
        assert str(found.schema.field("accuracy").type) == "double"
        assert {f"modules_{m}" for m in range(4)} <= set(found.column_names)


def test_runs_of_one_name_are_told_apart(tiny_config, tmp_path):
    for point in ("a", "b"):
        run(tiny_config(tmp_path / point / "joint-s0", rounds=1))
    assert run_cli(["rows", str(tmp_path), "--out", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["a/joint-s0", "b/joint-s0"]


def test_a_column_of_nulls_is_one_of_numbers(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "r", rounds=1, policy={"name": "traditional"}))
    out = tmp_path / "rows.parquet"
    assert run_cli(["rows", str(tmp_path / "r"), "--out", str(out)]) == 0
    table = pq.read_table(out)
    assert table.column("price").to_pylist() == [None] and str(table.schema.field("price").type) == "double"


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    with RunFolder.create(tmp_path / "empty", {"seed": 0}, {}):
        pass
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([runs, "--out", tmp_path / "rows.xlsx"], "the ending says the format; choose .csv or .parquet"),
        ([runs], "rows: missing"),
        ([runs, "--out", tmp_path / "r.csv", "--of", "days"], "rows: "),
        ([tmp_path / "empty", "--out", tmp_path / "r.csv"], "no rows of rounds in"),
        ([tmp_path / "gone", "--out", tmp_path / "r.csv"], "is not a run folder and holds none"),
        ([runs, "--out", tmp_path / "file/r.csv"], "cannot be written"),
        (["--out", tmp_path / "r.csv"], "rows: name at least one run folder"),
    ):
        assert run_cli(["rows", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("airtune: ") and told.count("\n") == 1 and message in told, told
