"""The command line: what it does, and that every mistake is one line, exit code 2 and no harm."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune import files, record
from airtune.cli import run_cli
from airtune.config import RunConfig
from airtune.settings import dump, load, override, presets, read_config
from airtune.types import AirtuneError

BEST_CHANNEL = Path(__file__).parents[1] / "examples" / "best_channel.py"


@pytest.fixture
def refused(capsys):
    """`refused(args, pattern)`: exit code 2, and one line on standard error that the pattern matches."""

    def check(arguments, pattern):
        assert run_cli([str(a) for a in arguments]) == 2
        told = capsys.readouterr()
        print(told.err)
        assert told.err.startswith("airtune: ") and told.err.endswith("\n") and told.err.count("\n") == 1, told.err
        assert "Traceback" not in told.err + told.out
        assert re.search(pattern, told.err), told.err

    return check


# What it does


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT's own use of an old Transformers name
def test_run_show_export_and_the_adapter_loads_in_plain_peft(tiny, tiny_data, tiny_model, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_cli(["run", tiny, "--out", str(out), "--rounds", "4"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "plots:" in shown and (out / "plots").is_dir()
    assert run_cli(["show", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert run_cli(["export", str(out), "--out", str(tmp_path / "adapter")]) == 0
    assert f"dev accuracy {summary['accuracy']:.4f}" in capsys.readouterr().out

    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    rows = [line.split("\t") for line in (tiny_data / "SST-2/dev.tsv").read_text().splitlines()[1:]]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    for folder in (tmp_path / "adapter", out / "adapter"):
        logging.set_verbosity_error()
        base = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=2)
        model = PeftModel.from_pretrained(base, folder).eval()
        with torch.inference_mode():
            scores = model(**tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")).logits
        right = [int(score.argmax()) == int(label) for score, (_, label) in zip(scores, rows, strict=True)]
        assert sum(right) / len(right) == summary["accuracy"] > 0.5


def test_a_policy_file_of_ones_own(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(BEST_CHANNEL, tmp_path / "best_channel.py")
    assert run_cli(["run", tiny, "--policy.name", "file", "--policy.file", "best_channel.py"]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name == "tiny-best_channel-s0"
    summary = json.loads((path / "summary.json").read_text())
    assert summary["policy"] == "best_channel"
    assert summary["module_histogram"][1] > 0 and summary["module_histogram"][2:] == [0, 0]
    config = record.RunFolder.open(path).read_config()
    assert config["policy"]["file"] == str(tmp_path / "best_channel.py")  # resumable from anywhere


def test_an_error_in_a_policy_file_is_one_line(tiny, tmp_path, refused):
    """It is told with its place, and what was decided before it is kept."""
    own = tmp_path / "own.py"
    body = BEST_CHANNEL.read_text().replace("    able =", "    if problem.t == 1:\n        problem.gian\n    able =")
    own.write_text(body)
    line = body.splitlines().index("        problem.gian") + 1
    told = rf"airtune: .*own\.py, line {line}: round 1: AttributeError: 'Problem' object has no attribute 'gian'"
    refused(["run", tiny, "--out", tmp_path / "run", "--policy.name", "file", "--policy.file", own], told)
    assert len((tmp_path / "run/rounds.jsonl").read_text().splitlines()) == 1


def test_a_relative_model_folder_is_kept_absolute(tiny, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tiny_model.parent)
    assert run_cli(["run", tiny, "--rounds", "1", "--model.name", "bert", "--out", str(tmp_path / "run")]) == 0
    monkeypatch.chdir(tmp_path)
    assert record.RunFolder.open(tmp_path / "run").read_config()["model"]["name"] == str(tiny_model)
    (tmp_path / "run/summary.json").unlink()
    capsys.readouterr()
    assert run_cli(["resume", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "   bert, seed 0" in shown


def test_compare_several_modules_and_the_digest(tiny, tmp_path, capsys):
    """NAME:N fixes the module; each policy has its own folder, label and row."""
    out = tmp_path / "cmp"
    names = "alternating,traditional:1,traditional:3,unlimited:2,digest"
    command = ["compare", tiny, "--policies", names, "--rounds", "1", "--out", str(out)]
    assert run_cli(command) == 0
    assert "traditional-m3" in capsys.readouterr().out
    labels = ["traditional-m1", "alternating", "traditional-m3", "unlimited-m2", "digest"]
    written = json.loads((out / "compare.json").read_text())
    assert written["reference"] == "traditional-m1" and [policy["policy"] for policy in written["policies"]] == labels
    for label in labels:
        summary = json.loads((out / f"{label}-s0/summary.json").read_text())
        used = {m for m, count in enumerate(summary["module_histogram"]) if m and count}
        assert summary["policy"] == label
        assert not label[-1].isdigit() or used == {int(label[-1])}, used
    assert json.loads((out / "digest-s0/summary.json").read_text())["delivery_rate"] > 0
    half = tmp_path / "half"
    shutil.copytree(out / "traditional-m3-s0", half)
    (half / "summary.json").unlink()
    assert run_cli([*command, "--reference", "traditional:3"]) == 0 and run_cli(["show", str(half)]) == 0
    assert "traditional-m3 on sst2" in capsys.readouterr().out
    assert json.loads((out / "compare.json").read_text())["reference"] == "traditional-m3"


def test_compare(tiny, tmp_path, capsys):
    out = tmp_path / "cmp"
    command = ["compare", tiny, "--policies", f"joint,{BEST_CHANNEL}", "--seeds=2", "--out", str(out)]
    assert run_cli(command) == 0
    shown = capsys.readouterr().out
    titles = [line for line in shown.splitlines() if line.startswith("[")]
    assert titles == [
        "[1/4] sst2 · joint · seed 0",
        "[2/4] sst2 · best_channel · seed 0",
        "[3/4] sst2 · joint · seed 1",
        "[4/4] sst2 · best_channel · seed 1",
    ]
    folders = {"joint-s0", "joint-s1", "best_channel-s0", "best_channel-s1"}
    written = {path.name for path in out.iterdir()}
    assert folders | {"compare.csv", "compare.json"} < written
    assert json.loads((out / "compare.json").read_text())["reference"] == "best_channel"
    assert any(path.suffix in (".png", ".pdf", ".svg") for path in out.rglob("*"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("rounds.jsonl")}
    rows = (out / "best_channel-s1/rounds.jsonl").read_bytes()
    (out / "best_channel-s1/summary.json").unlink()  # unfinished: resumed, the others are not touched
    assert run_cli(command) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")] == [titles[3]]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("rounds.jsonl")} == before
    assert (out / "best_channel-s1/rounds.jsonl").read_bytes() == rows
    assert run_cli([*command, "--policy.v", "3"]) == 2
    assert "joint-s0 holds a run of another configuration; choose another --out" in capsys.readouterr().err
    assert run_cli(["show", *(str(out / name) for name in sorted(folders)), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again/compare.csv").exists()


COMMANDS = [["run"], ["run", "demo"], ["compare"], ["compare", "demo"], ["resume"], ["show"], ["export"], ["solve"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(command, flag, capsys):
    assert run_cli([*command, flag]) == 0
    told = capsys.readouterr()
    assert f"usage: airtune {command[0]}" in told.out and told.err == ""
    if command[0] == "run":
        for unit in ("[tokens]", "[Hz]", "[s]", "[m]", "[dB]", "[dBm/Hz]", "[bit]", "[J"):
            assert unit in told.out, unit
        assert "--policy.v FLOAT" in told.out and f"(default: {RunConfig().policy.v})" in told.out


def test_help_of_all_and_version_and_presets(capsys):
    for command in ([], ["--help"], ["-h"], ["help"]):
        assert run_cli(command) == 0
        told = capsys.readouterr().out
        assert all(name in told for name in ("run", "resume", "compare", "show", "export", "solve", "presets"))
    assert run_cli(["--version"]) == 0 and re.fullmatch(r"airtune \d+\.\d+\S*\n", capsys.readouterr().out)
    assert run_cli(["presets"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in ("demo", "sst2", "qnli")) and len(told.splitlines()) == len(presets())


def test_every_preset_is_a_valid_configuration():
    assert {read_config(name).name for name in presets()} == set(presets())


OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "--rounds": st.integers(1, 99),
        "--policy.v": st.floats(1e-3, 1e9),
        "--policy.name": st.sampled_from(["joint", "alternating", "traditional", "unlimited", "digest"]),
        "--policy.module": st.sampled_from(["None", 1, 4]),
        "--world.bandwidth-hz": st.floats(1e3, 1e10),
        "--world.noise-dbm-per-hz": st.floats(-200, -100),
        "--data-dir": st.sampled_from(["None", "some/where", "/abs"]),
        "--modules.targets": st.lists(st.sampled_from(["query", "key", "value"]), min_size=1, max_size=3),
        "--learning.prior-correction": st.none(),
        "--learning.no-prior-correction": st.none(),
        "--task.name": st.text("abc-5", min_size=1).filter(lambda text: not text.startswith("-")),
    },
)


@settings(max_examples=40, deadline=None)
@given(chosen=OVERRIDES, equals=st.booleans())
def test_overrides_mean_what_tyros_help_says(chosen, equals):
    """tyro draws the help; our reader of overrides agrees with tyro's own."""
    arguments = []
    for key, value in chosen.items():
        if isinstance(value, list):
            arguments += [key, *value]
        elif value is None:
            arguments.append(key)
        else:
            arguments += [f"{key}={value}"] if equals else [key, str(value)]
    base = RunConfig()
    assert override(base, arguments) == tyro.cli(RunConfig, args=arguments, default=base)


# Mistakes in settings


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("--polcy.v 3", r"polcy\.v: unknown key; did you mean policy\.v\?"),
        ("--bandwidth-hz 3", r"bandwidth_hz: unknown key; did you mean world\.bandwidth_hz\?"),
        ("--quite-another 3", r"quite_another: unknown key; `airtune run demo --help` lists all keys"),
        ("--policy.v -3", r"policy\.v: input should be greater than 0, got '-3'"),
        ("--rounds 0", r"rounds: input should be greater than or equal to 1, got '0'"),
        ("--rounds 2.5", r"rounds: input should be a valid integer, got '2\.5'"),
        ("--world.bandwidth-hz 2MHz", r"world\.bandwidth_hz: input should be a valid number, got '2MHz'; .* of Hz"),
        ("--world.deadline-s 10s", r"world\.deadline_s: .*got '10s'; give a plain number of seconds"),
        ("--world.noise-dbm-per-hz x", r"give a plain number of dBm/Hz"),
        ("--world.max-efficiency-bit-per-s-hz x", r"max_efficiency_bit_per_s_hz: .*; give a plain number of bit/s/Hz"),
        ("--world.max-efficiency-bit-per-s-hz 0", r"max_efficiency_bit_per_s_hz: input should be greater than 0"),
        (
            "--policy.name traditional --world.delivery 0.7 --world.max-efficiency-bit-per-s-hz 4",
            r"world\.delivery delivers at any rate: leave out world\.max_efficiency_bit_per_s_hz",
        ),
        ("--policy.v nan", r"policy\.v: input should be a finite number, got 'nan'"),
        ("--world.cell-radius-m inf", r"cell_radius_m: input should be a finite number, got 'inf'"),
        ("--world.cell-radius-m 1e200", r"world\.cell_radius_m: input should be less than or equal to 1000000, got"),
        ("--policy.name nonsense", r"policy\.name: input should be 'joint', .*, got 'nonsense'"),
        ("--policy.v", r"policy\.v: needs a value; --policy\.v 20\.0 would be right"),
        ("--modules.ranks", r"modules\.ranks: needs a value; --modules\.ranks 2 4 4 would be right"),
        ("--modules.ranks 4 2 1", r"modules: ranks and depths must not decrease, got \(4, 2, 1\)"),
        ("--modules.ranks 4", r"ranks and depths must be of equal length"),
        ("--modules.depths 1 2 9", r"modules\.depths: 9 is more than the model's 2 layers"),
        ("--modules.targets quarry", r"modules\.targets: the model has no linear layer named quarry; it has .*query"),
        ("--policy.module 9", r"policy\.module: 9, but the family has 3 modules"),
        ("--policy.name file", r"policy\.file must be given exactly when policy\.name is 'file'"),
        ("--policy.name file --policy.file no.py", r"policy\.file: .*no\.py does not exist; give a Python file"),
        ("--learning.prior-correction maybe", r"prior_correction: input should be a valid boolean, got 'maybe'"),
        ("--learning.rate 1e40", r"learning\.rate: input should be less than or equal to 1e\+30"),
        ("--learning.rate 1e30", r"training diverged: .*lower learning\.rate \(now 1e\+30\)"),
        ("--learning.server-rate 1e30 --rounds 1", r"training diverged: .*learning\.server_rate \(now 1e\+30\)"),
        ("--world.min-distance-m 900", r"world: min_distance_m must be below cell_radius_m, got 900\.0 and 500"),
        ("--learning.server-rate 1e31", r"learning\.server_rate: input should be less than or equal to 1e\+30"),
        ("--task.name imdb", r"task\.name: no task 'imdb'; there are rotten-tomatoes, sst2"),
        ("--task.max-length 2000", r"task\.max_length: 2000 tokens; this model and task take 3 to 32"),
        ("--fleet.devices 500", r"partition\.min_samples"),
        ("--partition.kind natural", r"partition\.kind"),
        ("--data-dir nowhere", r"data_dir: there is no folder .*nowhere"),
        ("--model.name ./nowhere", r"model\.name: there is no folder nowhere; give a folder with config\.json"),
        ("--rounds 0 --policy.v -1", r"policy\.v: .*; rounds: "),
        ("stray", r"stray: not an option; options look like --policy\.v 80"),
    ],
)
def test_wrong_options(tiny, tmp_path, refused, arguments, pattern):
    refused(["run", tiny, "--out", tmp_path / "run", *arguments.split()], pattern)
    diverged = "1e30" in arguments  # found out while training: what led there stays
    assert (tmp_path / "run").exists() == diverged and not (tmp_path / "run/summary.json").exists()


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("rounds = ", r"bad\.toml: not valid TOML: Invalid value \(at end of document\)"),
        ("ronds = 3", r"bad\.toml: ronds: unknown key; did you mean rounds\?"),
        ("[polic]\nv = 3", r"bad\.toml: polic: unknown key; did you mean policy\?"),
        ("[policy]\nvv = 3", r"bad\.toml: policy\.vv: unknown key; did you mean policy\.v\?"),
        ("policy = 3", r"bad\.toml: policy: input should be a table of the keys of PolicyConfig, got 3"),
        ("rounds = true", r"bad\.toml: rounds: input should be no truth value, got true"),
        ("[policy]\nv = true", r"bad\.toml: policy\.v: input should be no truth value, got true"),
        ("rounds = 2.5", r"bad\.toml: rounds: input should be a valid integer, got 2\.5"),
        ("[policy]\nv = nan", r"bad\.toml: policy\.v: input should be a finite number, got nan"),
        ("[policy]\nv = '2 J'", r"bad\.toml: policy\.v: input should be a valid number, got '2 J'"),
        ("[modules]\nranks = 3", r"bad\.toml: modules\.ranks: input should be a valid tuple, got 3"),
        ("[fleet]\nsensor = -1", r"bad\.toml: fleet\.sensor: input should be greater than or equal to 0, got -1"),
    ],
)
def test_wrong_files(tmp_path, refused, text, pattern):
    (tmp_path / "bad.toml").write_text(text)
    refused(["run", tmp_path / "bad.toml", "--out", tmp_path / "run"], pattern)
    assert not (tmp_path / "run").exists()


def test_no_file_or_no_text(tmp_path, refused):
    refused(["run", "nothing"], r"nothing: no such preset or file; presets are demo, ")
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    refused(["run", tmp_path / "bytes.toml"], r"bytes\.toml: not a UTF-8 text file")
    refused(["run"], r"airtune: run: name a preset or a TOML file first \(demo, ")
    refused(["frobnicate"], r"no command 'frobnicate'; there are run, resume")


@settings(max_examples=150, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["policy", "rounds", "v", "world", "ranks", "x", "modules"]), inner),
        ),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict))
)
def test_any_values_are_read_or_refused_in_one_line(values):
    try:
        config = load(values, "here")
    except AirtuneError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
    else:
        assert load(dump(config)) == config


# Mistakes in files and folders


def copied(tiny, tmp_path, tiny_data, tiny_model, what):
    """A copy of data or model to damage, and the options that use it."""
    if what == "data":
        shutil.copytree(tiny_data, tmp_path / "glue")
        return tmp_path / "glue/SST-2", ["--data-dir", str(tmp_path / "glue")]
    shutil.copytree(tiny_model, tmp_path / "bert")
    return tmp_path / "bert", ["--model.name", str(tmp_path / "bert")]


@pytest.mark.parametrize(
    ("name", "damage", "pattern"),
    [
        ("train.tsv", lambda raw: raw[: len(raw) // 2], r"train\.tsv: line \d+ .*may be cut"),
        ("dev.tsv", lambda raw: b"", r"dev\.tsv: line 1: the file is empty"),
        ("dev.tsv", lambda raw: raw.replace(b"\t1\n", b"\t7\n", 1), r"dev\.tsv: line \d+: unknown label '7'; right"),
        ("dev.tsv", lambda raw: raw[:40] + b"\xff" + raw[40:], r"dev\.tsv: line \d+: .*UTF-8"),
        ("train.tsv", None, r"train\.tsv is missing; task sst2 needs train\.tsv and dev\.tsv"),
    ],
)
def test_damaged_data(tiny, tiny_data, tiny_model, tmp_path, refused, name, damage, pattern):
    folder, options = copied(tiny, tmp_path, tiny_data, tiny_model, "data")
    file = folder / name
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    refused(["run", tiny, "--out", tmp_path / "run", *options], pattern)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "damage", "pattern"),
    [
        ("model.safetensors", None, r"model\.name: .*holds no weights; save the model as \*\.safetensors"),
        ("model.safetensors", lambda raw: raw[: len(raw) // 2], r"model\.name: .*cannot load .*bert \("),
        ("model.safetensors", lambda raw: b"\x00" * 64, r"model\.name: .*cannot load .*bert \("),
        ("config.json", None, r"model\.name: .*holds no config\.json"),
        ("config.json", lambda raw: raw[:30], r"model\.name: .*cannot load .*bert \("),
        ("config.json", lambda raw: raw.replace(b'"bert"', b'"frobert"'), r"model\.name: .*cannot load .*bert \("),
    ],
)
def test_damaged_model(tiny, tiny_data, tiny_model, tmp_path, refused, name, damage, pattern):
    folder, options = copied(tiny, tmp_path, tiny_data, tiny_model, "model")
    file = folder / name
    file.unlink() if damage is None else file.write_bytes(damage(file.read_bytes()))
    refused(["run", tiny, "--out", tmp_path / "run", *options], pattern)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def done(tiny_config, tmp_path_factory):
    """A finished run, made once; tests work on copies."""
    from airtune.experiment import run

    path = tmp_path_factory.mktemp("done") / "run"
    run(tiny_config(path, rounds=2))
    return path


def snapshot(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


def test_folders_that_do_not_fit(done, tiny, tmp_path, refused):
    before = snapshot(done)
    refused(["run", tiny, "--out", done], r"is not empty; `airtune resume .*run` continues it, or choose another")
    refused(["run", tiny, "--out", tiny], r"run folder .*tiny\.toml: .*choose another")
    refused(["show", tmp_path], r"is not a run folder: it has no run\.json")
    refused(["show", tmp_path / "none"], r"none is not a run folder")
    longer = tmp_path / "longer"
    shutil.copytree(done, longer)
    text = (longer / "config.toml").read_text().replace("deadline_s = 2.0", "deadline_s = 3.0")
    (longer / "config.toml").write_text(text)
    refused(["show", done, longer], r"run and .*longer cannot be compared: world\.deadline_s is 2\.0 and 3\.0; only")
    refused(["show"], r"airtune: show: name at least one run folder")
    refused(["show", done, done], r"both policy joint with seed 0; give one")
    refused(["resume", tmp_path / "none"], r"none is not a run folder")
    refused(["resume"], r"airtune: resume: missing: PATH Run folder")
    refused(["export", done], r"airtune: export: missing: --out PATH Folder to write")
    refused(["export", done, "--out", tmp_path], r"--out .*: exists and is no adapter folder; choose another")
    refused(["export", done, "--out", "x", "--ot", "x"], r"airtune: export: unrecognized options: --ot, x")
    other = tmp_path / "other"
    shutil.copytree(done, other)
    (other / "run.json").write_text('{"format": 7}')
    for command in ("show", "resume"):
        refused([command, other], r"was written by format 7; this airtune reads 1")
    assert snapshot(done) == before
    assert run_cli(["export", str(done), "--out", str(tmp_path / "a")]) == 0
    assert run_cli(["export", str(done), "--out", str(tmp_path / "a")]) == 0  # an adapter may be replaced


def test_damaged_rows_are_told(done, tmp_path, refused):
    path = tmp_path / "run"
    shutil.copytree(done, path)
    lines = (path / "rounds.jsonl").read_text().splitlines(keepends=True)
    (path / "rounds.jsonl").write_text("{" + lines[0] + lines[1])
    refused(["show", path], r"rounds\.jsonl: line 1 is damaged; it should be a JSON row")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("--policies nonsense", r"--policies: policy\.name: input should be 'joint', .*, got 'nonsense'"),
        (
            "--policies alternating:2",
            r"--policies: alternating:2: only traditional, random, .*, unlimited take a module",
        ),
        ("--policies traditional:x", r"--policies: policy\.module: input should be a valid integer, got 'x'"),
        ("--policies traditional:0", r"--policies: policy\.module: input should be greater than or equal to 1"),
        ("--policies joint,traditional:9", r"--policies: traditional:9: the family has modules 1 to 3"),
        ("--policies traditional:1,traditional:1", r"--policies: traditional-m1 is named twice"),
        ("--policies ,", r"--policies: names no policy"),
        ("--policies alternating,alternating", r"--policies: alternating is named twice"),
        ("--policies alternating,no.py", r"--policies: there is no file no\.py; give one that defines policy"),
        ("--policies file", r"--policies: policy: policy\.file must be given"),
        ("--seeds 0", r"--seeds: at least 1 would be right, got 0"),
        ("--seeds x", r"airtune: compare .*: error parsing --seeds: invalid literal .*'x'"),
        ("--reference other", r"--reference: no policy other among --policies; there are joint, traditional"),
        ("--polcy.v 3", r"polcy\.v: unknown key; did you mean policy\.v\?"),
    ],
)
def test_wrong_comparisons(tiny, tmp_path, refused, arguments, pattern):
    out = tmp_path / "cmp"
    refused(["compare", tiny, "--out", out, *arguments.split()], pattern)
    assert not out.exists()


# A disk that is full or not for us


@pytest.mark.parametrize("call", [1, 2, 4, 8])
def test_a_disk_that_fills_up(tiny, done, tmp_path, monkeypatch, refused, call):
    """Whatever write fails, the run goes on after space was freed, to the same end."""
    count = iter(range(1, 1000))

    def full(file, data):
        if next(count) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    real = files.write_all
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        patch.setattr(record, "write_all", full)
        hint = r"choose a folder" if call < 4 else r"free space and `airtune resume .*run`"
        refused(["run", tiny, "--out", tmp_path / "run"], r"run folder .*run: No space left on device; " + hint)
    again = ["run", tiny, "--out", str(tmp_path / "run")] if call < 4 else ["resume", str(tmp_path / "run")]
    assert run_cli(again) == 0
    for name in ("rounds.jsonl", "devices.jsonl", "state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (done / name).read_bytes()


@contextlib.contextmanager
def mounted(path, options):
    """A small file system of its own, or a skipped test."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    if (tried := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"mount is not allowed here: {tried.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_disk_that_is_really_full(tiny, done, tmp_path, refused):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        out, ballast = disk / "run", disk / "ballast"
        for left_kib in (4, 16, 28, 40, 64, 4):
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            os.truncate(ballast, ballast.stat().st_size - left_kib * 1024)
            begun = (out / "run.json").exists()
            refused(["resume", out] if begun else ["run", tiny, "--out", out], "No space left on device")
        refused(["export", done, "--out", disk / "adapter"], r"--out .*adapter: No space left on device; free space")
        assert {path.name for path in disk.iterdir()} == {"run", "ballast"}
        reached = sorted(path.name for path in out.iterdir())
        ballast.unlink()
        assert run_cli(["resume", str(out)]) == 0, reached
        for name in ("rounds.jsonl", "devices.jsonl", "state.safetensors"):
            assert (out / name).read_bytes() == (done / name).read_bytes()
        assert (out / "adapter/adapter_model.safetensors").exists()


def test_a_folder_that_cannot_be_written(tiny, done, tmp_path, refused):
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        refused(
            ["run", tiny, "--out", tmp_path / "locked/run"], "Permission denied; choose a folder that can be written"
        )
        return
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        refused(["run", tiny, "--out", disk / "run"], r"Read-only file system; choose a folder that can be written")
        refused(["export", done, "--out", disk / "a"], r"--out .*a: Read-only file system; .*choose another folder")
        refused(["show", done, done.parent, "--out", disk], r"is not a run folder")


# Ctrl-C


def test_interrupted_where_nothing_is_written_yet(tiny, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("airtune.experiment.build", stop)
    assert run_cli(["run", tiny, "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "airtune: interrupted; nothing is written yet\n"


def test_ctrl_c_and_resume(tiny, done, tmp_path, capfd):
    """A real process, a real signal; a shell's background jobs start with it ignored, so it is switched on first."""
    out = tmp_path / "run"
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from airtune.cli import run_cli; sys.exit(run_cli(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", tiny, "--rounds", "400", "--out", str(out)]
    rounds, ends = out / "rounds.jsonl", time.monotonic() + 60
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not (rounds.exists() and rounds.stat().st_size) and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        try:
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert told == f"airtune: interrupted; `airtune resume {out}` goes on from the last finished round\n"
    capfd.readouterr()
    assert run_cli(["show", str(out)]) == 0  # an unfinished run can be looked at
    assert len(rounds.read_text().splitlines()) >= 1 and not (out / "summary.json").exists()


def test_importing_airtune_is_quick():
    """No torch, SciPy or Transformers before they are needed."""
    code = (
        "import sys, time; t = time.perf_counter(); import airtune; import airtune.cli; s = time.perf_counter() - t; "
        "assert not {'torch', 'scipy', 'transformers', 'peft'} & set(sys.modules), 'loaded too early'; "
        "assert set(airtune.__all__) <= {*dir(airtune), *airtune._LATER}; print(s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 5.0  # a second on an idle machine


def test_public_names():
    import airtune

    for name in airtune.__all__:
        assert getattr(airtune, name) is not None
    with pytest.raises(AttributeError, match="module 'airtune' has no attribute 'nonsense'"):
        _ = airtune.nonsense
