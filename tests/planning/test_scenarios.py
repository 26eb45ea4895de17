"""Every scenario's cell, fleet and radio, on a tiny model: a run trains under it, and a plan says what it costs."""

import dataclasses
import math

import pytest

from airtune.experiment import run
from airtune.planning.points import Planner
from airtune.settings import read_config

SCENARIOS = ("traffic", "health", "factory")


@pytest.mark.parametrize("name", SCENARIOS)
def test_runs_and_is_planned(name, tiny_config, tmp_path):
    tiny, scenario = tiny_config(tmp_path / "run"), read_config(name)
    fleet = dataclasses.replace(scenario.fleet, devices=6)
    config = dataclasses.replace(tiny, world=scenario.world, fleet=fleet, policy=scenario.policy)
    summary = run(config)
    assert summary["rounds"] == tiny.rounds and summary["energy_j"] > 0 and summary["max_overspend_ratio"] <= 1 + 1e-9
    point = Planner(config, 1).point("bandwidth", scenario.world.bandwidth_hz)
    assert point.energy_j.mean == pytest.approx(summary["energy_j"], rel=1e-12)


def test_derived_numbers():
    """What the comments of the presets say they are derived from."""
    traffic, health, factory = (read_config(name).world for name in SCENARIOS)
    assert traffic.cell_radius_m == pytest.approx(500 / math.sqrt(3), abs=0.5)
    assert traffic.vehicle_speed_mps == pytest.approx(60 / 3.6, abs=0.01)
    assert traffic.interference_margin_db == pytest.approx(-10 * math.log10(1 - 0.5), abs=0.02)
    assert health.path_loss_1km_db == pytest.approx(17.30 + 3 * 38.3 + 24.9 * math.log10(3.5), abs=0.05)
    assert factory.path_loss_1km_db == pytest.approx(18.6 + 3 * 35.7 + 20 * math.log10(2), abs=0.05)
    assert factory.interference_margin_db == pytest.approx(-10 * math.log10(1 - 0.75), abs=0.03)
    assert factory.bandwidth_hz == pytest.approx(6 * 180e3)
    sparse, dense = (33.0, 25.5), (18.6, 35.7)
    crossing_m = 10 ** ((sparse[0] - dense[0]) / (dense[1] - sparse[1]))
    assert factory.min_distance_m == pytest.approx(crossing_m, abs=0.5)
