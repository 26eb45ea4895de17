"""One round's problem from JSON or plain values: its solution against the formulas, extremes, and every mistake."""

import io
import json
import math
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import airtune
from airtune import solving
from airtune.cli import run_cli
from airtune.control.alternating import AlternatingPolicy
from airtune.problem_file import parse_problem, problem_from
from airtune.types import AirtuneError

EXAMPLE = Path(__file__).parents[1] / "examples" / "round.json"
SOLVERS = ("joint", "alternating")


def module(**changes):
    return {"utility": 0.3, "payload_bit": 1e6, "uplink_s": 8.0, "compute_j": 0.4} | changes


def device(*modules, **changes):
    plain = {"gain": 1e-12, "power_max_w": 0.2, "pa_efficiency": 0.35, "circuit_power_w": 0.1, "queue_j": 0.5}
    return plain | changes | {"modules": list(modules) or [module()]}


def cell(*devices, **changes):
    plain = {"bandwidth_hz": 1e6, "noise_w_per_hz": 4e-21, "snr_gap": 2.0, "tradeoff_v": 20.0}
    return plain | changes | {"devices": list(devices) or [device()]}


# The formulas once more, in plain floats; nothing of the package is used


def success(problem, k, m, power_w, band_hz):
    """(5) and (6), under (16)."""
    own, chosen = problem["devices"][k], problem["devices"][k]["modules"][m]
    nats = math.log(2.0) * chosen["payload_bit"] / (chosen["uplink_s"] * band_hz) if band_hz > 0 else math.inf
    if nats > math.log(2.0) * (problem.get("max_efficiency_bit_per_s_hz") or math.inf) * (1 + 1e-9):
        return 0.0
    if nats > 700.0 or power_w <= 0 or own["gain"] <= 0:
        return 0.0
    needed_w = problem["snr_gap"] * problem["noise_w_per_hz"] * band_hz * math.expm1(nats) / own["gain"]
    return math.exp(-min(needed_w / power_w, 745.0))


def energy(problem, k, m, power_w):
    """(2) as given, and (7)."""
    own, chosen = problem["devices"][k], problem["devices"][k]["modules"][m]
    drawn_w = power_w / own["pa_efficiency"] + own["circuit_power_w"]
    return chosen["compute_j"] + drawn_w * chosen["uplink_s"]


def check(problem, solution):
    """Allowed, worth what it says, below its bound, and finite."""
    told = solution.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(told["decisions"]) == len(problem["devices"])
    objective, scale, band_hz = 0.0, 0.0, 0.0
    for k, (own, each) in enumerate(zip(problem["devices"], told["decisions"], strict=True)):
        m = each["module"]
        if m is None:
            assert each == dict.fromkeys(each, 0.0) | {"module": None}
            continue
        assert type(m) is int and 0 <= m < len(own["modules"]) and own["modules"][m]["uplink_s"] > 0
        assert 0.0 <= each["power_w"] <= own["power_max_w"] * (1 + 1e-9) and each["bandwidth_hz"] >= 0.0
        pi, spent_j = (
            success(problem, k, m, each["power_w"], each["bandwidth_hz"]),
            energy(problem, k, m, each["power_w"]),
        )
        assert each["success_probability"] == pytest.approx(pi, rel=1e-6, abs=1e-9)
        assert each["energy_j"] == pytest.approx(spent_j, rel=1e-9)
        learning, cost = problem["tradeoff_v"] * own["modules"][m]["utility"] * pi, own["queue_j"] * spent_j
        objective, scale, band_hz = (
            objective + learning - cost,
            scale + abs(learning) + cost,
            band_hz + each["bandwidth_hz"],
        )
    assert band_hz <= problem["bandwidth_hz"] * (1 + 1e-9)
    assert solution.objective == pytest.approx(objective, rel=1e-9, abs=1e-6 * scale)
    assert solution.objective >= 0.0  # everybody idle is worth 0
    assert solution.solve_s >= 0.0 and solution.status
    if solution.upper_bound is not None:
        assert solution.upper_bound >= solution.objective - 1e-9 * max(scale, 1.0)
        assert solution.certificate >= 0.0
    else:
        assert solution.certificate is None


# What it gives


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_device_by_hand_with_free_energy(solver):
    """Queue 0: all the band and full power.

    By (5) c = Γ N0 b (2^{S/(b τ)} − 1)/g = 2·4e-21·1e5·(2^{1e6/(1e5·8)} − 1)/1e-14 = 0.110273 W.
    """
    problem = cell(device(gain=1e-14, queue_j=0.0), bandwidth_hz=1e5)
    solution = airtune.solve(problem, solver)
    (only,) = solution.decisions
    assert only.module == 0
    assert only.power_w == pytest.approx(0.2, rel=1e-9) and only.bandwidth_hz == pytest.approx(1e5, rel=1e-6)
    assert only.success_probability == pytest.approx(math.exp(-0.110273 / 0.2), rel=1e-5)
    assert solution.objective == pytest.approx(20.0 * 0.3 * math.exp(-0.110273 / 0.2), rel=1e-5)
    assert only.energy_j == pytest.approx(0.4 + (0.2 / 0.35 + 0.1) * 8.0)
    check(problem, solution)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_device_by_hand_with_energy_at_a_price(solver):
    """Alone, all the band helps; the power solves V U (c/p²) e^{−c/p} = Z τ/ξ, (14), below the cap."""
    problem = cell(device(queue_j=2.0))
    solution = airtune.solve(problem, solver)
    (only,) = solution.decisions
    c = 2.0 * 4e-21 * 1e6 * (2.0**0.125 - 1.0) / 1e-12
    p = only.power_w
    assert p < 0.2
    assert 20.0 * 0.3 * c / p**2 * math.exp(-c / p) == pytest.approx(2.0 * 8.0 / 0.35, rel=1e-4)
    value = 20.0 * 0.3 * math.exp(-c / p) - 2.0 * (0.4 + (p / 0.35 + 0.1) * 8.0)
    assert solution.objective == pytest.approx(value, rel=1e-6)
    check(problem, solution)


def test_joint_certifies_one_device():
    solution = airtune.solve(cell(device(queue_j=2.0)))
    assert solution.certificate is not None and solution.certificate < 1e-4
    better = airtune.solve(json.loads(EXAMPLE.read_text()))
    assert better.objective >= airtune.solve(json.loads(EXAMPLE.read_text()), "alternating").objective * (1 - 1e-3)


@pytest.mark.parametrize("solver", SOLVERS)
def test_devices_with_different_numbers_of_modules(solver):
    """Padding is never chosen, and does not change what the others get."""
    ragged = cell(device(), device(module(), module(utility=0.5, payload_bit=3e6), module(uplink_s=0.0)), device())
    ragged["devices"][2]["modules"] = []
    solution = airtune.solve(ragged, solver)
    check(ragged, solution)
    assert solution.decisions[0].module == 0 and solution.decisions[1].module in (0, 1)
    assert solution.decisions[2].module is None
    without = airtune.solve(cell(*ragged["devices"][:2]), solver)
    assert solution.objective == pytest.approx(without.objective, rel=1e-6)


def test_json_values_and_problem_are_the_same():
    text = EXAMPLE.read_text()
    values = json.loads(text)
    posed = parse_problem(text, "here")
    arrays = values | {"devices": tuple(dict(own) for own in values["devices"])}
    arrays["devices"][0]["gain"] = np.float32(1e-11)
    assert problem_from(arrays).gain[0] == pytest.approx(1e-11)
    solutions = [airtune.solve(each, "alternating") for each in (values, posed)]
    assert solutions[0].to_dict() | {"solve_s": 0} == solutions[1].to_dict() | {"solve_s": 0}
    with_mark = parse_problem(b"\xef\xbb\xbf" + text.encode(), "here")  # as some editors save it
    assert (with_mark.gain == posed.gain).all() and posed.feasible.tolist() == [
        [True, True],
        [True, False],
        [True, False],
    ]


def test_certificate():
    class Bounded:
        def __init__(self, upper_bound):
            self.upper_bound = upper_bound

        def __call__(self, problem):
            return replace(AlternatingPolicy()(problem), upper_bound=self.upper_bound)

    def certified(problem, upper_bound):
        with pytest.MonkeyPatch.context() as patch:
            decide = Bounded(upper_bound)
            patch.setattr(solving, "_ready", lambda name: decide)
            return solving.solve(problem)

    value = airtune.solve(cell(), "alternating").objective
    assert certified(cell(), 1.25 * value).certificate == pytest.approx(0.2)
    assert certified(cell(), value * (1 - 1e-15)).certificate == 0.0  # a bound's rounding
    idle = certified(cell(device(module(utility=-1.0))), 0.0)
    assert idle.objective == 0.0 and idle.certificate == 0.0
    assert certified(cell(), None).certificate is None


# Extremes

NOBODY = device(module(uplink_s=0.0), module(uplink_s=-3.0))
EXTREMES = {
    "gain 1e-20": cell(device(gain=1e-20), device()),
    "gain 0": cell(device(gain=0.0), device()),
    "gain 1": cell(device(gain=1.0), device(gain=1.0)),
    "queue 0": cell(device(queue_j=0.0), device(queue_j=0.0)),
    "queue 1e9": cell(device(queue_j=1e9), device()),
    "all queues 1e9": cell(device(queue_j=1e9), device(queue_j=1e9)),
    "queue 1e9 at no cost": cell(device(module(compute_j=0.0), queue_j=1e9, circuit_power_w=0.0), device()),
    "1 bit": cell(device(module(payload_bit=1.0)), device()),
    "1 bit from all": cell(*[device(module(payload_bit=1.0))] * 5),
    "1 Tbit": cell(device(module(payload_bit=1e12)), device()),
    "1 bit and 1 Tbit": cell(
        device(module(payload_bit=1e12), module(payload_bit=1.0)), device(module(payload_bit=1.0))
    ),
    "one device": cell(),
    "none feasible": cell(NOBODY, NOBODY),
    "no modules at all": cell(device() | {"modules": []}),
    "no power": cell(device(power_max_w=0.0)),
    "duplicates": cell(*[device()] * 12),
    "duplicates in a narrow band": cell(*[device()] * 12, bandwidth_hz=2e4),
    "duplicate modules": cell(device(module(), module(), module()), device(module(), module())),
    "utility 0": cell(device(module(utility=0.0)), device(module(utility=0.0))),
    "utility below 0": cell(device(module(utility=-1.0)), device(module(utility=-1e3), module())),
    "M = 1": cell(*[device(module(utility=0.1 * k)) for k in range(1, 6)]),
    "M = 50": cell(*[device(*[module(utility=0.01 * m, payload_bit=5e4 * m) for m in range(1, 51)])] * 3),
    "uplink of a nanosecond": cell(device(module(uplink_s=1e-9)), device()),
    "uplink of a day": cell(device(module(uplink_s=86400.0)), device()),
    "a band of 1 Hz": cell(device(), device(), bandwidth_hz=1.0),
    "a band of 1 THz": cell(device(), device(), bandwidth_hz=1e12),
    "v 1e-9": cell(device(), device(), tradeoff_v=1e-9),
    "v 1e12": cell(device(), device(), tradeoff_v=1e12),
    "cap of 1 MW": cell(device(power_max_w=1e6, queue_j=0.0), device(power_max_w=1e6)),
    "cap of 1 fW": cell(device(power_max_w=1e-15), device(power_max_w=1e-15)),
    "the largest numbers": cell(
        device(module(utility=1e30, payload_bit=1e30, uplink_s=1e30, compute_j=1e30), queue_j=1e30)
    ),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name, solver):
    check(EXTREMES[name], airtune.solve(EXTREMES[name], solver))


def powers(low, high):
    """Magnitudes over the whole range alike, and its ends."""
    return st.one_of(st.floats(math.log10(low), math.log10(high)).map(lambda x: 10.0**x), st.sampled_from([low, high]))


MODULES = st.fixed_dictionaries(
    {
        "utility": st.one_of(powers(1e-6, 1e3), st.floats(-1.0, 1.0), st.just(0.0)),
        "payload_bit": powers(1.0, 1e12),
        "uplink_s": st.one_of(powers(1e-3, 1e4), st.floats(-1.0, 20.0)),
        "compute_j": st.one_of(powers(1e-6, 1e3), st.just(0.0)),
    }
)
DEVICES = st.fixed_dictionaries(
    {
        "gain": powers(1e-20, 1.0),
        "power_max_w": powers(1e-3, 40.0),
        "pa_efficiency": st.floats(0.05, 1.0),
        "circuit_power_w": st.one_of(powers(1e-3, 10.0), st.just(0.0)),
        "queue_j": st.one_of(powers(1e-3, 1e9), st.just(0.0)),
        "modules": st.one_of(st.lists(MODULES, min_size=1, max_size=4), st.lists(MODULES, min_size=1, max_size=50)),
    }
)


@st.composite
def rounds(draw):
    """Few or many devices of wild magnitudes, some of them several times."""
    kinds = draw(st.lists(DEVICES, min_size=1, max_size=6))
    devices = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=30))
    return {
        "bandwidth_hz": draw(powers(1e3, 1e9)),
        "noise_w_per_hz": draw(powers(1e-22, 1e-16)),
        "snr_gap": draw(st.floats(1.0, 10.0)),
        "tradeoff_v": draw(powers(1e-3, 1e6)),
        "max_efficiency_bit_per_s_hz": draw(st.one_of(st.none(), powers(1e-2, 1e2))),
        "devices": devices,
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_any_round(solver):
    @settings(max_examples=60, deadline=None)
    @given(problem=rounds())
    def holds(problem):
        check(problem, airtune.solve(problem, solver))

    holds()


# On the command line


@pytest.fixture
def refused(capsys):
    """`refused(args, pattern)`: exit code 2, and one line on standard error that the pattern matches."""

    def check_line(arguments, pattern):
        assert run_cli([str(a) for a in arguments]) == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.startswith("airtune: ") and told.err.count("\n") == 1, told.err
        assert len(told.err) < 1000 and re.search(pattern, told.err), told.err

    return check_line


def pipe(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_json_out_of_a_file_and_of_standard_input(capsys, monkeypatch):
    assert run_cli(["solve", str(EXAMPLE), "--solver", "alternating", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["objective", "upper_bound", "certificate", "status", "solve_s", "decisions"]
    assert list(told["decisions"][0]) == ["module", "power_w", "bandwidth_hz", "success_probability", "energy_j"]
    assert told["upper_bound"] is None and told["certificate"] is None and told["status"] == "ok"
    solution = airtune.solve(json.loads(EXAMPLE.read_text()), "alternating")
    check(json.loads(EXAMPLE.read_text()), solution)
    assert told | {"solve_s": 0} == solution.to_dict() | {"solve_s": 0}
    pipe(monkeypatch, EXAMPLE.read_text())
    assert run_cli(["solve", "-", "--solver=alternating", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decisions"] == told["decisions"]


def test_table(capsys, monkeypatch):
    assert run_cli(["solve", str(EXAMPLE), "--solver", "alternating"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"Device +Module +Power \[mW\] +Band \[kHz\] +Success +Energy \[J\] *", lines[0])
    solution = airtune.solve(json.loads(EXAMPLE.read_text()), "alternating")
    first = solution.decisions[0]
    shown = lines[1].replace("%", "").split()
    assert shown[:2] == ["0", str(first.module)]
    for text, value in zip(
        shown[2:],
        (1e3 * first.power_w, first.bandwidth_hz / 1e3, 100 * first.success_probability, first.energy_j),
        strict=True,
    ):
        assert float(text) == pytest.approx(value, rel=1e-3)
    assert lines[3].split() == ["2", "idle", "–", "–", "–", "–"]
    assert f"Objective    {solution.objective:.3f} J²" in lines
    # Many devices: those that send are shown, the rest is counted.
    pipe(monkeypatch, json.dumps(cell(*[device()] * 3, *[NOBODY] * 1000)))
    assert run_cli(["solve", "-", "--solver", "alternating"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert "and 1,000 more devices, none of them sending; --json lists all" in lines
    pipe(monkeypatch, json.dumps(cell(*[device(module(payload_bit=1e4))] * 60)))
    assert run_cli(["solve", "-", "--solver", "alternating"]) == 0
    assert "and 20 more devices, 20 of them sending; --json lists all" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ({"bandwidth_hz": -1}, r"bandwidth_hz: must be a number of hertz > 0, got -1$"),
        ({"bandwidth_hz": 0}, r"bandwidth_hz: must be a number of hertz > 0, got 0$"),
        ({"bandwidth_hz": "2e6"}, r"bandwidth_hz: must be a number of hertz > 0, got '2e6'$"),
        ({"bandwidth_hz": True}, r"bandwidth_hz: must be a number of hertz > 0, got true$"),
        ({"bandwidth_hz": None}, r"bandwidth_hz: must be a number of hertz > 0, got null$"),
        ({"bandwidth_hz": 1e-31}, r"bandwidth_hz: must be a number of hertz > 0, and 1e-30 at least, got 1e-31$"),
        ({"noise_w_per_hz": -166}, r"noise_w_per_hz: must be a number of W/Hz > 0 .*, got -166; is it in dBm/Hz\?$"),
        ({"snr_gap": 0.5}, r"snr_gap: must be a linear ratio ≥ 1, got 0\.5; is it in dB\?$"),
        (
            {"max_efficiency_bit_per_s_hz": 0},
            r"max_efficiency_bit_per_s_hz: must be a number of bit/s/Hz > 0, .*got 0$",
        ),
        ({"tradeoff_v": 0}, r"tradeoff_v: must be a number > 0, got 0$"),
        ({"devices": []}, r"devices: must be a list of at least one device, got an empty list$"),
        ({"devices": {}}, r"devices: must be a list of at least one device, got an object$"),
        ({"devices": [3]}, r"devices\.0: must be a device, an object with gain, .*modules, got 3$"),
        ({"bandwith_hz": 3}, r"bandwith_hz: unknown key; did you mean bandwidth_hz\?$"),
        ({"quite_another": 3}, r"quite_another: unknown key; there are bandwidth_hz, .*, devices$"),
    ],
)
def test_mistakes_in_the_cell(refused, tmp_path, change, pattern):
    path = tmp_path / "round.json"
    path.write_text(json.dumps(cell() | change))
    refused(["solve", path], rf"airtune: .*round\.json: {pattern}")


@pytest.mark.parametrize(
    ("where", "key", "text", "pattern"),
    [
        ("device", "gain", "-110", r"gain: must be a linear power gain ≥ 0, got -110; is it in dB\?$"),
        ("device", "gain", "NaN", r"gain: must be a linear power gain ≥ 0, and finite, got nan$"),
        ("device", "gain", "1e400", r"gain: must be a linear power gain ≥ 0, and finite, got inf$"),
        ("device", "gain", "1" + "0" * 400, r"gain: must be .*, and finite, got 10+ …$"),
        (
            "device",
            "gain",
            "1e31",
            r"gain: must be a linear power gain ≥ 0, and of magnitude 1e\+30 at most, got 1e\+31$",
        ),
        ("device", "power_max_w", "-3", r"power_max_w: must be a number of watts ≥ 0, got -3; is it in dBm\?$"),
        ("device", "pa_efficiency", "35", r"pa_efficiency: must be a number > 0 and ≤ 1, got 35$"),
        ("device", "pa_efficiency", "0", r"pa_efficiency: must be a number > 0 and ≤ 1, got 0$"),
        ("device", "pa_efficiency", "false", r"pa_efficiency: must be a number > 0 and ≤ 1, got false$"),
        ("device", "circuit_power_w", "-1", r"circuit_power_w: must be a number of watts ≥ 0, got -1$"),
        ("device", "queue_j", "-1e-9", r"queue_j: must be a number of joules ≥ 0, got -1e-09$"),
        ("device", "modules", "{}", r"modules: must be a list of modules, got an object$"),
        ("device", "modules", "[[]]", r"modules\.0: must be a module, an object with utility, .*, got an empty list$"),
        ("module", "utility", "Infinity", r"modules\.0\.utility: must be a number, and finite, got inf$"),
        (
            "module",
            "utility",
            "-1e31",
            r"modules\.0\.utility: must be a number, and of magnitude 1e\+30 at most, got -1e\+31$",
        ),
        ("module", "payload_bit", "-3", r"modules\.0\.payload_bit: must be a number of bits > 0, got -3$"),
        ("module", "uplink_s", "null", r"modules\.0\.uplink_s: must be a number of seconds \(.*\), got null$"),
        ("module", "compute_j", '"much"', r"modules\.0\.compute_j: must be a number of joules ≥ 0, got 'much'$"),
    ],
)
def test_mistakes_in_the_fourth_device(refused, tmp_path, where, key, text, pattern):
    """Also what Python's own json would not write."""
    marked = device(**{key: "HERE"}) if where == "device" else device(module(**{key: "HERE"}))
    if key == "modules":
        marked |= {"modules": "HERE"}
    path = tmp_path / "round.json"
    path.write_text(json.dumps(cell(device(), device(), device(), marked)).replace('"HERE"', text))
    refused(["solve", path], rf"round\.json: devices\.3\.{pattern}")


def test_missing_keys_and_many_mistakes(refused, monkeypatch):
    short = device()
    del short["queue_j"]
    pipe(monkeypatch, json.dumps(cell(short)))
    refused(["solve", "-"], r"standard input: devices\.0\.queue_j: missing; it must be a number of joules ≥ 0$")
    pipe(monkeypatch, json.dumps(cell(*[device(gain=-1)] * 1000)))
    refused(["solve", "-"], r"devices\.0\.gain: .*; devices\.1\.gain: .*; devices\.2\.gain: .*; and 997 more mistakes$")


@pytest.mark.parametrize(
    ("raw", "pattern"),
    [
        (b"", r"not valid JSON: EOF while parsing a value at line 1 column 0"),
        (b"bandwidth_hz = 3", r"not valid JSON: expected value at line 1 column 1; docs/solve\.md shows the format$"),
        (b'{"bandwidth_hz": 2e6,', r"not valid JSON: EOF while parsing"),
        (b'{"bandwidth_hz": "\xff"}', r"not valid JSON: invalid unicode code point at line 1"),
        (b"\xff\xfe{\x00}\x00", r"not valid JSON: "),
        (b"[" * 5000, r"not valid JSON: recursion limit exceeded"),
        (b"[]", r"round\.json: must be an object with bandwidth_hz, .*, devices, got an empty list$"),
        (b"3", r"round\.json: must be an object with bandwidth_hz, .*, devices, got 3$"),
    ],
)
def test_files_that_are_no_problem(refused, tmp_path, raw, pattern):
    path = tmp_path / "round.json"
    path.write_bytes(raw)
    refused(["solve", path], pattern)


def test_files_that_cannot_be_read_and_wrong_options(refused, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)  # as Python has it where standard input is closed
        refused(["solve", "-"], r"standard input: is closed; give a JSON file, or pipe one in$")
    refused(
        ["solve", tmp_path / "none.json"], r"none\.json: cannot be read \(No such file or directory\); give a JSON file"
    )
    refused(["solve", tmp_path], r"cannot be read \(Is a directory\); give a JSON file, or - for standard input")
    refused(["solve"], r"airtune: solve: missing: FILE JSON file, or - for standard input")
    refused(["solve", EXAMPLE, "--solver", "best"], r"solve: invalid choice 'best' for argument '--solver'\. Expected")
    with pytest.raises(AirtuneError, match=r"^solver: must be one of joint, alternating, exact, got 'best'$"):
        airtune.solve(cell(), "best")
    with pytest.raises(AirtuneError, match=r"^problem: devices\.0\.gain: must be a linear power gain ≥ 0, got a list$"):
        airtune.solve(cell(device(gain=[1.0])), "alternating")


def test_a_hundred_thousand_devices_are_read_quickly():
    one = json.dumps(device())
    text = json.dumps(cell()).replace(one, ", ".join([one] * 100_000))
    start = time.perf_counter()
    problem = parse_problem(text, "here")
    assert time.perf_counter() - start < 10.0  # about a second on an idle machine
    assert problem.feasible.shape == (100_000, 1) and problem.feasible.all()


def test_the_documented_example_is_the_shipped_one():
    text = (EXAMPLE.parents[1] / "docs" / "solve.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert block == EXAMPLE.read_text()
