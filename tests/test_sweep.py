"""Grids of runs: what is run, that nothing but a failed run is lost, and that Ray changes no row."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cli import run_cli
from airtune.config import RunConfig
from airtune.sweep import Axis, axes_of, points
from airtune.types import AirtuneError

BEST_CHANNEL = Path(__file__).parents[1] / "examples" / "best_channel.py"
NUMBERS = st.lists(st.integers(1, 99), min_size=1, max_size=4, unique=True)


@settings(deadline=None, max_examples=20)
@given(NUMBERS, NUMBERS, st.integers(1, 3))
def test_a_grid_has_every_combination_once(rounds, v, seeds):
    axes = axes_of([f"rounds={','.join(map(str, rounds))}", f"policy.v={','.join(map(str, v))}"])
    grid = points([RunConfig(name="a"), RunConfig(name="b")], axes, "joint,traditional:2", seeds, Path("out"))
    runs = [config for point in grid for config in point.configs]
    found = {(c.name, c.rounds, c.policy.v, c.policy.name, c.policy.module, c.seed) for c in runs}
    wanted = {
        (name, r, float(w), policy, module, seed)
        for name in "ab"
        for r in rounds
        for w in v
        for policy, module in (("joint", None), ("traditional", 2))
        for seed in range(seeds)
    }
    assert found == wanted
    assert len(runs) == len(wanted) == len({config.out for config in runs})


def test_settings_of_several_numbers_and_folders():
    base = RunConfig(name="x")
    (point, _) = points([base], axes_of(["modules.ranks=1 2 3 4,2 4 8 16"]), "joint", 1, Path("out"))
    assert point.configs[0].modules.ranks == (1, 2, 3, 4)
    assert point.configs[0].out == Path("out/modules.ranks=1_2_3_4/joint-s0")
    (alone,) = points([base], (), "joint", 1, Path("out"))
    assert alone.configs[0].out == Path("out/joint-s0")  # as `airtune compare` has it


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["policy.v"], r"--grid: 'policy\.v' is no axis; policy\.v=100,1000 would be right"),
        (["=3"], "is no axis"),
        (["policy.v="], "is no axis"),
        (["policy.v=1,1"], "names a value twice"),
        (["policy.v=1", "--policy.v=2"], r"names policy\.v twice"),
        (["policy.name=joint,myopic"], r"policy\.name is given by --policies and cannot be an axis"),
        (["name=x,y"], "name is given by the scenario and cannot be an axis"),
        (["seed=0,1"], "seed is given by --seeds"),
        (["out=a,b"], "out is given by --out"),
    ],
)
def test_wrong_axes(options, pattern):
    with pytest.raises(AirtuneError, match=pattern):
        axes_of(options)


def test_wrong_grids():
    for axes, bases, pattern in (
        ([Axis("polcy.v", ("1",))], [RunConfig()], r"polcy\.v: unknown key; did you mean policy\.v\?"),
        ([Axis("policy.v", ("x",))], [RunConfig()], r"policy\.v: input should be a valid number"),
        ([], [RunConfig(name="a"), RunConfig(name="a")], "a is named twice"),
        ([Axis("policy.v", ("1", "1.0"))], [RunConfig()], r"--grid: --policy\.v, 1\.0 is the same as --policy\.v, 1$"),
    ):
        with pytest.raises(AirtuneError, match=pattern):
            points(bases, axes, "joint", 1, Path("out"))


def airtune(command, apart):
    """Exit code of a command; Ray in a process of its own, since it leaves handles open."""
    if not apart:
        return run_cli(command)
    pytest.importorskip("ray", reason="Ray is not installed")
    return subprocess.run([sys.executable, "-c", "from airtune.cli import main; main()", *command]).returncode


def rows_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("rounds.jsonl")}


FAILS = "    import os, pathlib\n    if pathlib.Path(__file__).with_name('fail').exists():\n        {}\n    able ="


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_sweep_goes_on_without_what_failed(tiny, tmp_path, capfd, jobs):
    """With two jobs the process of the failing run dies; both ways the rest ends, and the next try finishes it."""
    own = tmp_path / "own.py"
    own.write_text(BEST_CHANNEL.read_text().replace("    able =", FAILS.format("os._exit(1)" if jobs > 1 else "1 / 0")))
    (tmp_path / "fail").touch()
    out = tmp_path / "sweep"
    command = ["sweep", tiny, "--grid", "policy.v=5,20", "--grid", "rounds=1", "--policies", f"joint,{own}"]
    command += ["--reference", "own", "--out", str(out)]
    assert airtune([*command, "--jobs", str(jobs)], jobs > 1) == 2
    told = capfd.readouterr()
    assert "2 of 4 runs failed: " in told.err and "; the same command again tries them once more" in told.err
    assert told.out.count("own-s0 failed: ") == 2
    with (out / "sweep.csv").open() as file:  # the reference failed: nothing is set against it
        assert [(row["policy"], row["difference"]) for row in csv.DictReader(file)] == [("joint", "")] * 2
    assert "Where no run of own has ended" in " ".join(told.out.split())
    before = rows_below(out)
    assert {name.split("/")[-2] for name, rows in before.items() if rows} == {"joint-s0"}
    (tmp_path / "fail").unlink()
    assert airtune([*command, "--jobs", str(jobs)], jobs > 1) == 0
    assert before.items() <= {name: rows for name, rows in rows_below(out).items() if "joint" in name}.items()
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["scenario"], row["policy.v"], row["rounds"], row["policy"]) for row in rows]
    assert found == [("tiny", v, "1", p) for v in ("5", "20") for p in ("own", "joint")]
    summary = json.loads((out / "policy.v=20,rounds=1/own-s0/summary.json").read_text())
    assert float(rows[-2]["energy_j"]) == pytest.approx(summary["energy_j"])
    assert len(json.loads((out / "sweep.json").read_text())["points"]) == 2
    if jobs > 1:
        other = out.with_name("one-by-one")
        assert run_cli([*command[:-1], str(other), "--jobs", "1"]) == 0
        assert rows_below(other) == rows_below(out)  # bit for bit


def test_what_all_runs_fail_of_is_told_once(tiny, tmp_path, capsys):
    command = ["sweep", tiny, "--grid", "policy.v=1,2", "--jobs", "1", "--out", str(tmp_path / "o")]
    assert run_cli([*command, "--data-dir", str(tmp_path / "nowhere")]) == 2
    told = capsys.readouterr()
    assert told.err.count("nowhere") == 1 and told.err.count("\n") == 1
    assert run_cli([*command[:-2], "--jobs", "0"]) == 2
    assert "--jobs: at least 1 would be right" in capsys.readouterr().err


def test_every_run_of_a_sweep_is_logged(tiny, tmp_path):
    pytest.importorskip("tensorboard")
    command = ["sweep", tiny, "--grid", "rounds=1,2", "--policies", "joint,traditional", "--reference", "joint"]
    assert (
        run_cli([*command, "--jobs", "1", "--log", f"tensorboard:{tmp_path / 'log'}", "--out", str(tmp_path / "o")])
        == 0
    )
    logged = sorted(str(path.parent.relative_to(tmp_path / "log")) for path in (tmp_path / "log").rglob("events.out.*"))
    assert logged == [f"rounds={n}/{policy}-s0" for n in (1, 2) for policy in ("joint", "traditional")]


@pytest.mark.parametrize("command", ["sweep", "compare"])
def test_a_target_that_cannot_be_is_refused_before_anything_runs(tiny, tmp_path, capsys, command):
    assert run_cli([command, tiny, "--target", "2", "--out", str(tmp_path / "o")]) == 2
    assert "--target: an accuracy above 0 and at most 1" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_without_ray_one_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_cli(["compare", tiny, "--jobs", "2", "--out", str(tmp_path / "o")]) == 2
    assert "runs side by side need Ray: pip install 'airtune[ray]', or use --jobs 1" in capsys.readouterr().err


def test_no_cluster_is_one_line(tiny, tmp_path, capfd):
    assert airtune(["compare", tiny, "--ray-address", "127.0.0.1:1", "--out", str(tmp_path / "o")], True) == 2
    assert "--ray-address 127.0.0.1:1: no Ray cluster answers there" in capfd.readouterr().err
    assert not (tmp_path / "o/joint-s0").exists()
