"""A plan is a run without training: the same numbers, and a search that a real run confirms."""

import csv
import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest

from airtune.build import build, learner_of
from airtune.cli import run_cli
from airtune.experiment import run
from airtune.learning.engine import Engine
from airtune.planning.points import AXES, Planner, values_of
from airtune.planning.search import GRID, least
from airtune.planning.trial import trial
from airtune.record import RunFolder
from airtune.types import AirtuneError


def direct(config):
    """A real run, training and all: utility and deliveries per device and round, from its rows and the constants."""
    built = build(config)
    constants, devices = built.system.cell.constants, built.system.cell.devices
    summary = run(config)
    folder, worth, delivered = RunFolder.open(config.out), 0.0, 0
    for row in folder.read_devices():
        if row["module"] > 0:
            k, m = row["device"], row["module"] - 1
            captured = constants.gamma_sq[k] * (1.0 - constants.delta[m]) - constants.noise[k, m]
            worth += devices.weight[k] * captured * row["success_probability"]
            delivered += row["delivered"]
    each = constants.gamma_sq[:, None] * (1.0 - constants.delta) - constants.noise
    most = config.rounds * float((devices.weight * each.max(axis=1)).sum())
    rounds = folder.read_rounds()
    return summary, rounds, worth / most, delivered / (len(devices.kind) * config.rounds)


CASES = {
    "joint": {},
    "traditional": {"policy": {"name": "traditional"}},
    "rolora": {"learning": {"method": "rolora"}},
    "ceiling": {"world": {"max_efficiency_bit_per_s_hz": 0.5}},
    "drawn": {"fleet": {"active": 3}, "world": {"availability": 0.8}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_trial_equals_a_run_bit_for_bit(tiny_config, tmp_path, changes, monkeypatch):
    config = tiny_config(tmp_path / "run", rounds=6, **changes)
    summary, rounds, utility, delivered = direct(config)

    def refuse(*args, **kwargs):
        raise AssertionError("a plan trains nothing")

    monkeypatch.setattr(Engine, "train", refuse)
    found = trial(config, learner_of(config))
    for name in ("energy_compute_j", "energy_transmit_j", "max_overspend_ratio", "delivery_rate"):
        assert getattr(found, name) == summary[name], name
    assert found.bounds == tuple(row["bound"] for row in rounds)
    assert found.delivered == delivered > 0
    assert found.utility == pytest.approx(utility, rel=1e-12)


@pytest.fixture
def scarce(tiny_config, tmp_path):
    """`scarce(**changes)`: too little band for everybody's largest module, and budgets that bind."""
    return lambda **changes: tiny_config(tmp_path / "run", rounds=5, **changes)


def test_the_least_band_meets_the_target_in_real_runs_and_a_little_less_does_not(scarce, tmp_path):
    planner, target = Planner(scarce(), 2), 0.5
    found = least(planner, "bandwidth", "utility", target, tolerance=0.05)
    assert found.missed.value < found.met.value <= found.missed.value * 1.05
    assert [each.value for each in found.tried] == sorted({each.value for each in found.tried})
    means = []
    for point in (found.met, found.missed):
        shares = []
        for seed in planner.seeds:
            changes = {"seed": seed, "out": tmp_path / f"{point.value}-{seed}"}
            config = dataclasses.replace(scarce(world={"bandwidth_hz": point.value}), **changes)
            shares.append(direct(config)[2])
        means.append(np.mean(shares))
        assert means[-1] == pytest.approx(point.utility.mean, rel=1e-12)
    assert means[0] >= target > means[1]


def test_the_least_budget_meets_a_share_of_deliveries(scarce, tmp_path):
    found = least(Planner(scarce(), 1), "budget", "delivered", 0.6, tolerance=0.05)
    shares = [
        direct(dataclasses.replace(scarce(fleet={"budget_scale": point.value}), out=tmp_path / f"{point.value}"))[3]
        for point in (found.met, found.missed)
    ]
    assert shares[0] >= 0.6 > shares[1]
    assert shares == [found.met.delivered.mean, found.missed.delivered.mean]


def test_more_band_and_more_budget_deliver_more_utility_and_lower_the_bound(scarce):
    planner = Planner(scarce(), 2)
    for axis in ("bandwidth", "budget"):
        points = [planner.point(axis, planner.value(axis) * factor) for factor in (0.1, 0.3, 1.0, 3.0)]
        utility = [point.utility.mean for point in points]
        assert utility == sorted(utility) and utility[-1] > utility[0] + 0.05
        bounds = [point.bound.mean for point in points]
        assert bounds == sorted(bounds, reverse=True)
        assert points[2].base_bound_s.mean == points[2].run_s == 10.0
        assert points[0].base_bound_s is None and points[3].base_bound_s.mean <= 10.0


def test_what_cannot_be_met_and_what_is_met_at_once(scarce):
    planner = Planner(scarce(fleet={"budget_scale": 0.02}), 1)
    found = least(planner, "bandwidth", "utility", 0.9)
    assert found.met is None and found.missed is None and len(found.tried) <= len(GRID)
    assert found.best.utility.mean == max(point.utility.mean for point in found.tried) < 0.9
    found = least(Planner(scarce(world={"bandwidth_hz": 1e8}), 1), "bandwidth", "utility", 0.01)
    assert found.missed is None and found.met is found.tried[0]


def test_a_measure_that_falls_is_told(scarce):
    """Larger modules take the place of small ones, so fewer arrive; the least value is found all the same."""
    found = least(Planner(scarce(policy={"v": 2000.0}), 2), "bandwidth", "delivered", 0.3)
    means = [point.delivered.mean for point in found.tried]
    assert found.drop == pytest.approx(max(0.0, *(a - b for a, b in pairwise(means))))
    assert all(mean < 0.3 for mean, point in zip(means, found.tried, strict=True) if point.value < found.met.value)


def test_v_goes_with_the_square_of_the_budget_if_asked(scarce):
    plain, scaled = Planner(scarce(), 1), Planner(scarce(), 1, scale_v=True)
    assert plain.point("budget", 0.6).tradeoff_v == 20.0
    point, same = scaled.point("budget", 0.6), Planner(scarce(policy={"v": 180.0}), 1).point("budget", 0.6)
    assert point.tradeoff_v == pytest.approx(180.0) and point.utility.mean == pytest.approx(same.utility.mean)
    assert scaled.point("bandwidth", 1e5).tradeoff_v == scaled.point("budget", 0.2).tradeoff_v == 20.0


def test_devices_and_deadline_are_axes_too(scarce):
    planner = Planner(scarce(), 2)
    assert planner.point("devices", 4).devices == 4
    longer = planner.point("deadline", 4.0)
    assert (longer.deadline_s, longer.run_s) == (4.0, 20.0)
    assert longer.energy_j.n == 2 and longer.energy_j.half_width > 0
    assert values_of(6.0, (0.01, 0.5), whole=AXES["devices"].whole) == (1.0, 3.0)
    with pytest.raises(AirtuneError, match="whole number"):
        planner.point("devices", 4.5)
    with pytest.raises(AirtuneError, match="no axis 'speed'"):
        planner.point("speed", 4.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constants": {"source": "estimated"}}, "learns from training"),
        ({"learning": {"method": "hetlora"}}, "prune_weight 0"),
        ({"learning": {"method": "flora", "average": 0.0}}, "what flora sends depends"),
    ],
)
def test_what_depends_on_training_is_refused(scarce, changes, message):
    with pytest.raises(AirtuneError, match=message):
        Planner(scarce(**changes), 1)
    Planner(scarce(learning={"method": "hetlora", "prune_weight": 0.0}), 1)


@pytest.fixture
def tiny(tiny_config, tmp_path):
    config = tiny_config(tmp_path / "unused", rounds=3)
    text = f"""
        rounds = 3
        data_dir = "{config.data_dir}"
        [task]
        name = "sst2"
        max_length = 24
        [model]
        name = "{config.model.name}"
        [modules]
        ranks = [2, 4]
        depths = [1, 2]
        [fleet]
        devices = 4
        [partition]
        min_samples = 20
    """
    path = tmp_path / "tiny.toml"
    path.write_text("\n".join(line.strip() for line in text.splitlines()))
    return str(path)


def test_the_command_tells_and_writes(tiny, tmp_path, capsys):
    out = tmp_path / "plan"
    options = ["--axes", "bandwidth,devices", "--bandwidth-hz", "1e5,1e6", "--factors", "1,2", "--seeds", "2"]
    options += [
        "--target",
        "0.3",
        "--scale-v",
        "--search",
        "budget",
        "--tolerance",
        "0.2",
        "--fleet.budget-scale",
        "0.5",
    ]
    assert run_cli(["plan", tiny, *options, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "*1" in shown and "*4" in shown and "no training" in shown and "utility of 30.0 %:" in shown
    with (out / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["axis"], float(row["value"])) for row in rows[:4]] == [
        ("bandwidth", 1e5), ("bandwidth", 1e6), ("devices", 4.0), ("devices", 8.0),
    ]  # fmt: skip
    assert all(row["purpose"] == "search for utility 0.3" for row in rows[4:]) and len(rows) > 4
    assert all(float(row["budget_scale"]) == 0.5 for row in rows[:4])
    assert all(
        float(row["tradeoff_v"]) == pytest.approx(1000.0 * (float(row["budget_scale"]) / 0.5) ** 2) for row in rows[4:]
    )
    told = json.loads((out / "plan.json").read_text())
    assert told["seeds"] == [0, 1] and told["config"]["fleet"]["budget_scale"] == 0.5
    assert told["points"][1]["utility"]["mean"] == float(rows[1]["utility"])
    assert told["searches"][0]["target"] == 0.3 and len(told["searches"][0]["tried"]) == len(rows) - 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axes", "speed"], "--axes: some of bandwidth,devices,deadline,budget"),
        (["--axes", ""], "--axes"),
        (["--axes", "budget,budget"], "each once"),
        (["--factors", "1,x"], "--factors: positive numbers"),
        (["--factors", "0"], "--factors: positive numbers"),
        (["--factors", "1,1"], "--factors: each value once"),
        (["--axes", "bandwidth", "--devices", "5"], "--devices: devices is not varied; --axes bandwidth,devices"),
        (["--search", "budget"], "--search says how a target is searched for; --target"),
        (["--tolerance", "0.5"], "--tolerance says how"),
        (["--measure", "delivered"], "--measure says how"),
        (["--deadline-s", "nan"], "--deadline-s: positive numbers"),
        (["--devices", "2.5"], "fleet.devices must be a whole number"),
        (["--bandwidth-hz", "1"], "world.bandwidth_hz"),
        (["--target", "1.5"], "--target: a share"),
        (["--target", "0"], "--target: a share"),
        (["--target", "0.5", "--tolerance", "0"], "--tolerance: a share"),
        (["--target", "0.5", "--search", "devices"], "--search"),
        (["--measure", "accuracy"], "measure"),
        (["--seeds", "0"], "--seeds: at least 1"),
        (["--policy.nam", "joint"], "did you mean policy.name"),
        (["--constants.source", "estimated"], "learns from training"),
    ],
)
def test_bad_input_is_one_line(tiny, capsys, options, message):
    assert run_cli(["plan", tiny, *options]) == 2
    told = capsys.readouterr().err
    assert told.startswith("airtune: ") and told.count("\n") == 1 and message in told
