"""What a run writes, and that it survives being killed."""

import gc
import json
import os
import shutil
import subprocess
import sys
import tomllib
import weakref
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from numpy.random import Generator, Philox, SeedSequence
from safetensors.torch import load_file
from tests.reference.crashes import Crash, crash_on

import airtune.experiment
import airtune.round
from airtune import rows, surroundings
from airtune.build import _learner, build, learner_of
from airtune.config import FleetConfig, LearningConfig
from airtune.control.evaluation import make_decision
from airtune.experiment import export, resume, run, run_or_resume
from airtune.judging import Judge
from airtune.learning.assets import load_classifier
from airtune.learning.lora import family_of, install
from airtune.learning.workload import modules_of
from airtune.plots import plot_run
from airtune.record import RunFolder
from airtune.report import report_run
from airtune.round import step
from airtune.settings import dump
from airtune.types import AirtuneError
from airtune.worlds.analytic import radio_of

STATEFUL = {
    "learning": {"server_optimizer": "adam", "server_rate": 4e-3, "server_momentum": 0.9, "basis": "energy"},
    "constants": {"source": "estimated"},
}
"""A server and a controller that remember, so that a checkpoint has everything to lose."""


def read_rows(path, name):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def tensors(path):
    return {
        **load_file(path / "state.safetensors"),
        **{
            f"exported {name}": tensor for name, tensor in load_file(path / "adapter/adapter_model.safetensors").items()
        },
    }


def assert_same_run(left, right):
    """Every file but wall times; tensors bit by bit. config.toml and environment.json may differ in `out` alone."""
    for name in ("rounds.jsonl", "devices.jsonl"):
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    mine, theirs = tensors(left), tensors(right)
    assert mine.keys() == theirs.keys() and len(mine) > 20
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    summaries = [json.loads((path / "summary.json").read_text()) for path in (left, right)]
    for summary in summaries:
        assert summary.pop("wall_s") > 0
    assert summaries[0] == summaries[1]
    configs = [tomllib.loads((path / "config.toml").read_text()) for path in (left, right)]
    assert [config.pop("out") for config in configs] == [str(left), str(right)]
    assert configs[0] == configs[1]


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """Runs of two policies on the same seed, eight rounds."""
    root = tmp_path_factory.mktemp("runs")
    names = ("alternating", "traditional")
    configs = {name: tiny_config(root / name, rounds=8, policy={"name": name}) for name in names}
    return {name: (config, run(config)) for name, config in configs.items()}


@pytest.mark.parametrize("name", ["alternating", "traditional"])
def test_a_run_writes_what_it_promises(finished, name):
    config, summary = finished[name]
    path = config.out
    assert {p.name for p in path.iterdir()} == {
        ".lock", "adapter", "config.toml", "devices.jsonl", "environment.json", "rounds.jsonl", "run.json",
        "state.safetensors", "summary.json", "timings.jsonl",
    }  # fmt: skip
    assert json.loads((path / "summary.json").read_text()) == summary
    assert summary.keys() >= rows.Summary.__required_keys__
    assert {"task": "sst2", "policy": name, "seed": 0, "rounds": 8}.items() <= summary.items()
    assert summary["model"] == config.model.name and summary["accuracy_samples"] == 80
    environment = json.loads((path / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__ and environment["threads"] == 1
    assert environment["device"] == "cpu" or torch.cuda.is_available()
    assert set(environment["data"]["sha256"]) == {"train.tsv", "dev.tsv"}
    assert "model.safetensors" in environment["model"]["sha256"]
    assert "tokenizer.json" in environment["model"]["sha256"]
    for file, kind, count in (
        ("rounds.jsonl", rows.RoundRow, 8),
        ("devices.jsonl", rows.DeviceRow, 48),
        ("timings.jsonl", rows.TimingRow, 8),
    ):
        table = read_rows(path, file)
        assert len(table) == count and all(row.keys() >= kind.__required_keys__ for row in table)
    evaluated = [row["t"] for row in read_rows(path, "rounds.jsonl") if row["accuracy"] is not None]
    assert evaluated == [1, 3, 5, 7]


@pytest.mark.parametrize("name", ["alternating", "traditional"])
def test_rows_add_up(finished, name):
    config, summary = finished[name]
    devices, rounds = read_rows(config.out, "devices.jsonl"), read_rows(config.out, "rounds.jsonl")
    budget = build(config).system.cell.devices.budget_j
    assert summary["budget_j"] == pytest.approx(8 * sum(budget), rel=1e-12)
    queue, spent = [0.5 * each for each in budget], [0.0] * 6
    bound = tight = config.constants.initial_gap
    for line in rounds:
        mine = [row for row in devices if row["t"] == line["t"]]
        assert [row["device"] for row in mine] == list(range(6))
        for row in mine:
            k, energy = row["device"], row["energy_compute_j"] + row["energy_transmit_j"]
            spent[k] += energy
            assert row["spent_j"] == pytest.approx(spent[k], rel=1e-12)
            queue[k] = max(queue[k] + energy - budget[k], 0.0)
            assert row["queue_j"] == pytest.approx(queue[k], abs=1e-12)
            assert (row["module"] > 0) == (energy > 0) == (row["tokens"] > 0)
            assert row["module"] > 0 or (row["power_w"] == row["bandwidth_hz"] == 0 and not row["delivered"])
        assert sum(row["bandwidth_hz"] for row in mine) <= config.world.bandwidth_hz * (1 + 1e-9)
        assert line["scheduled"] == sum(row["module"] > 0 for row in mine)
        assert line["delivered"] == sum(row["delivered"] for row in mine)
        assert line["modules"] == [sum(row["module"] == m for row in mine) for m in range(4)]
        for part in ("energy_compute_j", "energy_transmit_j", "tokens"):
            assert line[part] == pytest.approx(sum(row[part] for row in mine), rel=1e-12)
        assert line["spent_j"] == pytest.approx(sum(spent), rel=1e-12)
        bound = config.constants.contraction * bound + config.constants.step / 2 * line["phi"]
        assert line["bound"] == pytest.approx(bound, rel=1e-12)
        tight = config.constants.contraction * tight + config.constants.step / 2 * line["phi_tight"]
        assert line["bound_tight"] == pytest.approx(tight, rel=1e-12) and tight <= bound
    assert name != "traditional" or 0.0 in (row["queue_j"] for row in devices)  # (13)'s other branch was taken
    for part in ("energy_compute_j", "energy_transmit_j", "tokens"):
        assert summary[part] == pytest.approx(sum(row[part] for row in devices), rel=1e-12)
    assert summary["energy_j"] == pytest.approx(sum(spent), rel=1e-12)
    assert summary["delivery_rate"] == sum(r["delivered"] for r in devices) / sum(r["module"] > 0 for r in devices)
    assert summary["bound"] == rounds[-1]["bound"] < config.constants.initial_gap
    assert summary["max_overspend_ratio"] == pytest.approx(max(np.array(spent) / (8 * budget)), rel=1e-12)
    assert 0.9 < summary["max_overspend_ratio"] <= 1 + 1e-9  # the horizon account binds and holds


def test_phi_from_device_rows(finished):
    """(10) and (12) recomputed from rows, sample counts from the partition itself."""
    config, _ = finished["alternating"]
    constants = config.constants
    experiment = build(config)
    parameters = [4 * 2 * 64 * r // 4 * depth + 66 for r, depth in ((2, 1), (4, 1), (4, 2))]
    assert list(experiment.learner.modules.parameters) == parameters
    samples = [len(part) for part in experiment.system.fleet.parts]
    assert sum(samples) == 600
    for line in read_rows(config.out, "rounds.jsonl"):
        phi = tight = 0.0
        for row in (row for row in read_rows(config.out, "devices.jsonl") if row["t"] == line["t"]):
            share, m = samples[row["device"]] / 600, row["module"]
            if m == 0:
                phi, tight = phi + share * constants.gamma_sq, tight + share * constants.gamma_sq
                continue
            rank, depth = ((2, 1), (4, 1), (4, 2))[m - 1]
            kept = (rank / 4) ** constants.rank_exponent * (depth / 2) ** constants.depth_exponent
            noise = constants.noise_sq * parameters[m - 1] / parameters[-1]
            pi = row["success_probability"]
            phi += share * (constants.gamma_sq * (1 - pi * kept) + pi * noise)
            tight += share * constants.gamma_sq * (1 - kept + (1 - pi) ** 2 * kept)
            tight += share**2 * pi * ((1 - pi) * kept * constants.gamma_sq + noise)
        assert line["phi"] == pytest.approx(phi, rel=1e-12)
        assert line["phi_tight"] == pytest.approx(tight, rel=1e-12)


def test_policies_are_paired(finished):
    """The same channels for all; the same batches, hence token counts, wherever both train."""
    tables = [read_rows(finished[name][0].out, "devices.jsonl") for name in ("alternating", "traditional")]
    assert [row["gain"] for row in tables[0]] == [row["gain"] for row in tables[1]]
    assert [row["kind"] for row in tables[0]] == [row["kind"] for row in tables[1]]
    both = [(a["tokens"], b["tokens"]) for a, b in zip(*tables, strict=True) if a["module"] and b["module"]]
    assert len(both) > 10 and all(a == b for a, b in both)
    assert len({a for a, _ in both}) > 5
    assert [row["module"] for row in tables[0]] != [row["module"] for row in tables[1]]


def test_delivery_is_what_the_fading_says(finished):
    """An upload arrives iff p h ≥ c of (5), written out here; h is the stream's own exponential draw."""
    config, _ = finished["traditional"]
    experiment = build(config)
    modules, devices, radio = experiment.learner.modules, experiment.system.cell.devices, radio_of(config.world)
    lost = 0
    for row in read_rows(config.out, "devices.jsonl"):
        if not row["module"]:
            continue
        m, k = row["module"] - 1, row["device"]
        noise_w = radio.noise_w_per_hz * radio.bandwidth_hz
        rate = radio.bandwidth_hz * np.log2(1 + radio.bs_power_w * row["gain"] / noise_w)
        compute_s = row["tokens"] * modules.flop_per_token[m] / (devices.frequency_hz[k] * devices.flop_per_cycle[k])
        left_s = radio.deadline_s - modules.payload_bit[m] / rate - compute_s
        snr = 2 ** (modules.payload_bit[m] / (row["bandwidth_hz"] * left_s)) - 1
        c = radio.snr_gap * radio.noise_w_per_hz * row["bandwidth_hz"] * snr / row["gain"]
        assert row["success_probability"] == pytest.approx(np.exp(-c / row["power_w"]), rel=1e-9)
        drawn_w = row["power_w"] / devices.pa_efficiency[k] + devices.circuit_power_w[k]
        assert row["energy_transmit_j"] == pytest.approx(drawn_w * left_s, rel=1e-9)
        h = Generator(Philox(SeedSequence((0, 4, row["t"], 0)))).standard_exponential(6)[k]
        assert row["delivered"] == (row["power_w"] * h >= c)
        lost += not row["delivered"]
    assert lost > 0


def test_it_learns(finished):
    assert max(summary["accuracy"] for _, summary in finished.values()) >= 0.75


def test_lost_uploads_change_nothing(tiny_config, tmp_path):
    """Where nothing arrives the model stays at θ_0 and the energy is spent all the same."""
    config = tiny_config(tmp_path / "run", rounds=2, policy={"name": "traditional"}, world={"snr_gap_db": 120.0})
    summary = run(config)
    assert summary["delivery_rate"] == 0.0 and summary["energy_transmit_j"] > 0
    start, end = build(config).start, load_file(tmp_path / "run/state.safetensors")
    assert all(torch.equal(end[f"adapters/{name}"], tensor) for name, tensor in start.adapters.items())
    assert all(row["loss"] is None for row in read_rows(tmp_path / "run", "rounds.jsonl"))


def test_the_unlimited_upper_bound_ignores_radio_and_budget(tiny_config, tmp_path):
    """Everybody delivers in every round, over links that carry nothing, on budgets long spent; nothing is sent."""
    config = tiny_config(
        tmp_path / "run",
        policy={"name": "unlimited"},
        world={"bandwidth_hz": 1e3, "deadline_s": 0.01},
        fleet={"budget_scale": 1e-6},
    )
    summary = run(config)
    rounds, devices = read_rows(tmp_path / "run", "rounds.jsonl"), read_rows(tmp_path / "run", "devices.jsonl")
    assert [row["delivered"] for row in rounds] == [6] * 4 and all(row["module"] == 3 for row in devices)
    assert summary["delivery_rate"] == 1.0 and summary["energy_transmit_j"] == 0.0 < summary["energy_compute_j"]
    assert summary["max_overspend_ratio"] > 1.0
    traditional = run(tiny_config(tmp_path / "other", policy={"name": "traditional"}, fleet={"budget_scale": 1e-6}))
    assert traditional["energy_j"] == 0.0 and traditional["delivery_rate"] is None


def test_a_policy_object_of_ones_own(tiny_config, tmp_path):
    """It decides, its run resumes only with it, and what it decides is checked."""
    seen = []

    def smallest(problem):
        seen.append(problem.t)
        module = np.where(problem.feasible[:, 0] & (np.arange(6) < 2), 1, 0)
        return make_decision(problem, module, problem.power_max_w[:, 0], np.full(6, problem.bandwidth_hz / 2))

    summary = run(tiny_config(tmp_path / "own", rounds=3), smallest)
    assert seen == [0, 1, 2] and summary["module_histogram"][2:] == [0, 0]
    (tmp_path / "own/summary.json").unlink()
    with pytest.raises(AirtuneError, match=r"begun with the policy object function; resume it from Python with resume"):
        resume(tmp_path / "own")
    assert resume(tmp_path / "own", smallest)["energy_j"] == summary["energy_j"]

    def greedy(problem):
        return make_decision(problem, np.ones(6, int), problem.power_max_w[:, 0], np.full(6, problem.bandwidth_hz))

    with pytest.raises(AirtuneError, match="bandwidth_hz adds up to 180000 Hz but the band has 30000 Hz"):
        run(tiny_config(tmp_path / "greedy"), greedy)
    run(tiny_config(tmp_path / "named", rounds=1))
    (tmp_path / "named/summary.json").unlink()
    with pytest.raises(AirtuneError, match="begun with the policy joint; resume it without one"):
        resume(tmp_path / "named", smallest)


# Killed and resumed

CHILDREN = """
import os, random, signal, sys, time
from pathlib import Path
import airtune.experiment as experiment
from airtune.settings import read_config
config_file, plan = sys.argv[1], [float(x) for x in sys.argv[2:]]
config = read_config(config_file)
def child():
    pid = os.fork()
    if pid == 0:
        os.close(1), os.open(os.devnull, os.O_WRONLY)
        begun = (config.out / "run.json").exists()
        experiment.resume(config.out) if begun else experiment.run(config)
        os._exit(0)
    return pid
rounds = config.out / "rounds.jsonl"
def lines():
    return rounds.read_bytes().count(b"\\n") if rounds.exists() else 0
for share in plan:  # kill once that share of a round has passed after another round was written
    before, pid = lines(), child()
    while lines() <= before and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(share * 0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print(lines(), (config.out / "summary.json").exists(), flush=True)
"""


def test_killed_three_times_and_resumed_it_is_bit_identical(tiny_config, tmp_path):
    """Children are forked from one process that has torch loaded, and killed by SIGKILL at random moments."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(tiny_config(whole, rounds=16, **STATEFUL))
    values = dump(tiny_config(killed, rounds=16, **STATEFUL))
    plain = {k: {a: b for a, b in v.items() if b is not None} if isinstance(v, dict) else v for k, v in values.items()}
    (tmp_path / "killed.toml").write_text(tomli_w.dumps({k: v for k, v in plain.items() if v is not None}))
    moments = np.random.default_rng().uniform(0, 1, 3)
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, str(tmp_path / "killed.toml"), *map(str, moments)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = [line.split() for line in done.stdout.splitlines()]
    assert len(told) == 3 and all(ended == "False" for _, ended in told), (told, moments)
    assert 0 < int(told[0][0]) <= int(told[1][0]) <= int(told[2][0]) < 16, (told, moments)
    before = (killed / "rounds.jsonl").read_bytes()
    resume(killed)
    kept = before[: before.rfind(b"\n", 0, before.rfind(b"\n")) + 1]  # all but the last line, whose checkpoint may lack
    assert (killed / "rounds.jsonl").read_bytes().startswith(kept)
    assert_same_run(whole, killed)


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    run(tiny_config(path, **STATEFUL))
    return path


@pytest.mark.parametrize(
    ("point", "call"),
    [("append_round", 1), ("append_round", 3), ("save_checkpoint", 1), ("save_checkpoint", 3), ("write_summary", 1)],
)
def test_cut_off_between_any_two_writes(whole, tiny_config, tmp_path, monkeypatch, point, call):
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, point, call)
        run(tiny_config(tmp_path / "run", **STATEFUL))
    assert not (tmp_path / "run/summary.json").exists()
    resume(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


@pytest.mark.parametrize("start", [run, run_or_resume])
@pytest.mark.parametrize("left", ["config.toml", "environment.json", "run.json"])
def test_cut_off_while_the_folder_is_made(whole, tiny_config, tmp_path, monkeypatch, left, start):
    """Power is cut as the file `left` is half written: nothing is tidied up, and the run starts afresh."""
    path, real = tmp_path / "run", os.replace

    def replace(source, target):
        if Path(target).name == left:
            raise Crash
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(os, "replace", replace)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        run(tiny_config(path, **STATEFUL))
    assert (path / f".{left}.tmp").exists() and not (path / "run.json").exists()
    start(tiny_config(path, **STATEFUL))
    assert_same_run(whole, path)
    assert not list(path.glob(".*.tmp"))


def test_torn_rows_and_a_half_written_checkpoint(whole, tiny_config, tmp_path, monkeypatch):
    path = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, "append_round", 3)
        run(tiny_config(path, **STATEFUL))
    for name in ("rounds.jsonl", "devices.jsonl", "timings.jsonl"):
        with (path / name).open("a") as file:
            file.write('{"t":2,"sched')
    (path / ".state.safetensors.tmp").write_bytes(b"half")
    resume(path)
    assert_same_run(whole, path)


def test_a_finished_run_resumes_at_once(whole, monkeypatch):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    monkeypatch.setattr("airtune.experiment.build", None)
    summary = resume(whole)
    assert summary == json.loads((whole / "summary.json").read_text())
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_shared_learner_leaves_no_trace(whole, tiny_config, tmp_path):
    """Two runs in one process share one model object; the second is as if it were alone."""
    run(tiny_config(tmp_path / "first", seed=5))
    run(tiny_config(tmp_path / "second", **STATEFUL))
    assert_same_run(whole, tmp_path / "second")


def begun(tiny_config, path, monkeypatch, **changes):
    """A run cut off after two rounds."""
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, "append_round", 3)
        run(tiny_config(path, **changes))
    return path


def test_resume_refuses_what_has_changed(tiny_config, tiny_data, tiny_model, tmp_path, monkeypatch):
    data, model, own = tmp_path / "glue", tmp_path / "bert", tmp_path / "own.py"
    shutil.copytree(tiny_data, data)
    shutil.copytree(tiny_model, model)
    own.write_text((Path(__file__).parents[1] / "examples/best_channel.py").read_text())
    changes = {"data_dir": data, "model": {"name": str(model)}, "policy": {"name": "file", "file": own}}
    path = begun(tiny_config, tmp_path / "run", monkeypatch, **changes)
    for file, what in ((data / "SST-2/dev.tsv", "data"), (model / "config.json", "model"), (own, "policy")):
        before = file.read_bytes()
        rows_before = (path / "rounds.jsonl").read_bytes()
        file.write_bytes(before + (b"a fine film\t1\n" if what == "data" else b"\n"))
        _learner.cache_clear()
        with pytest.raises(
            AirtuneError, match=f"run folder .*run: the {what} has changed since the run began .*restore"
        ):
            resume(path)
        file.write_bytes(before)
        assert (path / "rounds.jsonl").read_bytes() == rows_before
    _learner.cache_clear()
    assert resume(path)["policy"] == "own"


def test_resume_refuses_damage_and_other_formats(tiny_config, tmp_path, monkeypatch):
    path = begun(tiny_config, tmp_path / "run", monkeypatch)
    for name, content, message in (
        ("run.json", b'{"format": 99}', "written by format 99; this airtune reads 1"),
        ("run.json", b"{", r"run\.json is damaged"),
        ("config.toml", b"rounds = ", r"config\.toml is not TOML"),
        ("config.toml", b"[policy]\nvv = 3\n", r"config\.toml: policy\.vv: unknown key; did you mean policy\.v"),
        ("environment.json", b"{", r"environment\.json is damaged"),
        ("state.safetensors", b"\x00" * 40, r"checkpoint .*state\.safetensors is damaged"),
        ("rounds.jsonl", b"", r"rounds\.jsonl: rows should reach round 1"),
    ):
        before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
        (path / name).write_bytes(content)
        with pytest.raises(AirtuneError, match=message):
            resume(path)
        (path / name).write_bytes(before[name])
        assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before
    cut = (path / "state.safetensors").read_bytes()
    (path / "state.safetensors").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(AirtuneError, match="is damaged"):
        resume(path)
    (path / "state.safetensors").write_bytes(cut)
    resume(path)


def test_run_or_resume(tiny_config, tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path / "run", rounds=3)
    begun(tiny_config, tmp_path / "run", monkeypatch, rounds=3)
    summary = run_or_resume(config, "[1/2] ")
    assert "[1/2] sst2 · joint · seed 0" in capsys.readouterr().out
    monkeypatch.setattr("airtune.experiment.build", None)
    assert run_or_resume(config) == summary
    with pytest.raises(AirtuneError, match="holds a run of another configuration; choose another --out"):
        run_or_resume(tiny_config(tmp_path / "run", rounds=4))


def test_wall_time_is_that_of_the_whole_run(tiny_config, tmp_path, monkeypatch):
    """Loading, rounds, last evaluation and export count, over all processes; a clock that only these steps turn."""
    now = [100.0]
    monkeypatch.setattr("airtune.experiment.time.perf_counter", lambda: now[0])

    def costs(owner, name, seconds):
        real = getattr(owner, name)

        def slow(*args, **kwargs):
            now[0] += seconds
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    costs(airtune.experiment, "build", 50.0), costs(airtune.round, "step", 7.0)
    costs(Judge, "judge", 3.0), costs(airtune.experiment, "export_peft", 20.0)
    path = tmp_path / "run"
    summary = run(tiny_config(path))  # four rounds, evaluated after two and four, and on the whole set
    assert summary["wall_s"] == pytest.approx(50 + 4 * 7 + 2 * 3 + 3 + 20)
    elapsed = [row["elapsed_s"] for row in read_rows(path, "timings.jsonl")]
    assert elapsed == pytest.approx([57.0, 67.0, 74.0, 84.0])
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, "append_round", 3)
        run(tiny_config(tmp_path / "cut"))
    now[0] += 1e6  # nobody works on it
    assert resume(tmp_path / "cut")["wall_s"] == pytest.approx(67 + 50 + 2 * 7 + 3 + 3 + 20)
    (tmp_path / "cut/summary.json").unlink()
    assert resume(tmp_path / "cut")["wall_s"] == pytest.approx(67 + 50 + 2 * 7 + 3 + 50 + 3 + 20)


def test_the_shipped_learning_defaults_learn(tiny_config, tmp_path):
    """Equal weights, local SGD in the context of the whole adapter, balanced batches, the server's Adam."""
    learning = LearningConfig()
    assert (learning.optimizer, learning.server_optimizer, learning.context) == ("sgd", "adam", "whole")
    assert learning.balanced_batches and learning.average > 0
    config = tiny_config(
        tmp_path / "run",
        rounds=24,
        fleet={"weighting": FleetConfig().weighting, "budget_scale": 5.0},
        partition={"min_samples": learning.local_steps * learning.batch_size},
        learning=learning,
    )
    assert config.fleet.weighting == "equal"
    summary = run(config)
    first = next(row["accuracy"] for row in read_rows(config.out, "rounds.jsonl") if row["accuracy"] is not None)
    assert first < 0.65 and summary["accuracy"] >= 0.8
    assert dump(config)["learning"] == RunFolder.open(config.out).read_config()["learning"]


@pytest.mark.parametrize("again", ["resume", "run_or_resume"])
@pytest.mark.parametrize("ended", [True, False])
def test_other_code_is_told_and_the_run_goes_on(whole, tiny_config, tmp_path, monkeypatch, capsys, again, ended):
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    monkeypatch.setattr(surroundings, "_commit", lambda: "fedcba9876543210")
    environment = json.loads((path / "environment.json").read_text()) | {"commit": "fedcba9876543210"}
    (path / "environment.json").write_text(json.dumps(environment))
    if not ended:
        (path / "summary.json").unlink()

    def go():
        config = tiny_config(path, **STATEFUL)
        capsys.readouterr()
        summary = resume(path) if again == "resume" else run_or_resume(config)
        return summary, capsys.readouterr().err

    assert go()[1] == ""
    now = environment["versions"]["torch"]
    environment["versions"] |= {"torch": "1.0", "peft": "0.0"}  # of peft only the written form depends
    environment["commit"] = "0123456789abcdef-dirty"
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "summary.json").unlink() if not ended else None
    summary, told = go()
    assert summary["rounds"] == 4 and told.count("\n") == 1
    assert told == (
        f"airtune: warning: run folder {path} was begun by other code, so it may differ from a new run: "
        f"torch 1.0 → {now}, commit 0123456789ab-dirty → fedcba987654\n"
    )


def test_the_commit_is_that_of_this_very_source(tmp_path, monkeypatch):
    """Known only if git tracks the file, and marked if the source has changed since."""
    package = tmp_path / "src"
    package.mkdir()
    here = package / "surroundings.py"
    here.write_text("one\n")
    (tmp_path / "other.txt").write_text("one\n")
    monkeypatch.setattr(surroundings, "__file__", str(here))

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert surroundings._commit() is None
    git("init", "-q")
    git("add", "other.txt")
    git("commit", "-qm", "one")
    assert surroundings._commit() is None  # a copy inside somebody else's checkout
    git("add", "src")
    git("commit", "-qm", "two")
    head = git("rev-parse", "HEAD")
    assert surroundings._commit() == head and len(head) == 40
    (tmp_path / "other.txt").write_text("two\n")
    assert surroundings._commit() == head
    here.write_text("two\n")
    assert surroundings._commit() == f"{head}-dirty"
    git("add", "src")
    assert surroundings._commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert surroundings._commit() is None


def test_export_of_an_unfinished_run(tiny_config, tmp_path, monkeypatch):
    path = begun(tiny_config, tmp_path / "run", monkeypatch)
    assert "unfinished run, after round 2" in export(path, tmp_path / "adapter")
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    (path / "state.safetensors").unlink()
    with pytest.raises(AirtuneError, match="has no finished round to export"):
        export(path, tmp_path / "other")


@pytest.mark.parametrize("rounds", [1, 3])
def test_training_that_diverges_is_told(tiny_config, tmp_path, rounds):
    steps = {"local_steps": 1, "rate": 1e30, "head_rate": 1e30}
    with pytest.raises(AirtuneError, match=r"training diverged: .*; lower learning\.rate \(now 1e\+30\)"):
        run(tiny_config(tmp_path / "run", rounds=rounds, learning=steps))
    assert not (tmp_path / "run/summary.json").exists()


def test_an_occupied_folder_is_refused_before_anything_is_loaded(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr("airtune.experiment.build", None)
    with pytest.raises(AirtuneError, match="is not empty"):
        run(tiny_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_resume_refuses_an_edited_configuration(tiny_config, tmp_path, monkeypatch):
    """Rounds 0–1 under one schedule and the rest under another would be a run that nobody configured."""
    begun(tiny_config, tmp_path / "run", monkeypatch, rounds=4)
    file = tmp_path / "run/config.toml"
    text = file.read_text()
    file.write_text(text.replace("rounds = 4", "rounds = 3"))
    with pytest.raises(AirtuneError, match=r"config\.toml was changed since the run began; undo it or run anew"):
        resume(tmp_path / "run")
    file.write_text(text)
    assert resume(tmp_path / "run")["rounds"] == 4


@pytest.mark.parametrize("policy", ["joint", "alternating", "traditional", "digest", "unlimited"])
def test_only_those_drawn_take_part(tiny_config, tmp_path, policy):
    """Four of 24 a round: rows for these alone, whatever decides; the report and the figures cope."""
    out = tmp_path / policy
    config = tiny_config(
        out, fleet={"devices": 24, "active": 4}, partition={"kind": "iid", "min_samples": 1}, policy={"name": policy}
    )
    run(config)
    devices, lines = read_rows(out, "devices.jsonl"), read_rows(out, "rounds.jsonl")
    drawn = [{row["device"] for row in devices if row["t"] == line["t"]} for line in lines]
    assert [len(some) for some in drawn] == [4] * 4 and len(set.union(*drawn)) > 4
    for line, some in zip(lines, drawn, strict=True):
        rows_here = [row for row in devices if row["t"] == line["t"]]
        assert line["scheduled"] == sum(row["module"] > 0 for row in rows_here) <= len(some)
        assert line["tokens"] == sum(row["tokens"] for row in rows_here)
        assert sum(line["modules"]) == 24
    report = report_run(out)
    assert sum(kind.devices for kind in report.kinds) == len(set.union(*drawn))
    if policy == "joint":
        assert len(plot_run(out)) > 0


def test_a_draw_of_everybody_changes_no_number(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "all"))
    run(tiny_config(tmp_path / "drawn", fleet={"active": 6}))
    for name in ("rounds.jsonl", "devices.jsonl"):
        assert (tmp_path / "all" / name).read_bytes() == (tmp_path / "drawn" / name).read_bytes()


def test_more_active_than_registered_is_refused():
    with pytest.raises(ValueError, match="active must be at most devices, got 7 of 6"):
        FleetConfig(devices=6, active=7)


def test_at_most_one_update_is_alive(tiny_config, tmp_path):
    """Updates are added up as they come: while a device trains, that of the one before it alone may be held."""
    experiment = build(tiny_config(tmp_path / "x", policy={"name": "unlimited"}))
    fleet, alive, counts = experiment.system.fleet, [], []
    real = fleet.engine.train

    def train(*given, **named):
        counts.append(sum(one() is not None for one in alive))
        trained = real(*given, **named)
        alive.extend(weakref.ref(tensor) for tensor in trained.delta.values())
        return trained

    fleet.engine.train = train
    step(experiment.system, experiment.start)
    tensors_each = len(alive) // len(counts)
    assert len(counts) == 6 and max(counts) <= tensors_each, counts
    gc.collect()
    assert all(one() is None for one in alive)


def test_devices_are_charged_for_the_plain_layers(tiny_config, tmp_path):
    """The modules' table of a run is that of the model before it is packed and pruned."""
    config = tiny_config(tmp_path / "run")
    learner = learner_of(config)
    model, _ = load_classifier(learner.source, 2)
    family = family_of(model, model.base_model_prefix, config.modules)
    length = float(learner.train.lengths.mean())
    batch = length * config.learning.batch_size
    want = modules_of(model, family, install(model, family), config.modules, length, batch, whole=True)
    assert learner.engine.layout == "packed"
    np.testing.assert_array_equal(learner.modules.flop_per_token, want.flop_per_token)
    np.testing.assert_array_equal(learner.modules.memory_byte, want.memory_byte)
