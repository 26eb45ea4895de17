"""Device classes are physically sane, their budgets bind where they should, and the mix is exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.config import FleetConfig
from airtune.physics.devices import CLASSES, class_counts, sample_devices
from airtune.types import AirtuneError

FULL_MODULE_FLOP = 75e9
"""Full module of the default task: 43.3 MFLOP/token, 4 steps of 16 sequences of 27 tokens."""
UPLOAD_S = 7.0


@pytest.mark.parametrize("name", CLASSES)
def test_power_and_efficiency_are_those_of_real_chips(name):
    """κ f³ between 0.5 and 30 W, 20–200 pJ/FLOP in fp32 on a CPU, and a full round's work fits a 10 s deadline."""
    one = CLASSES[name]
    watts = one.capacitance * one.frequency_hz**3
    assert 0.5 <= watts <= 30.0
    assert 20e-12 <= watts / (one.frequency_hz * one.flop_per_cycle) <= 200e-12
    assert 1e-28 <= one.capacitance <= 1.01e-27
    assert FULL_MODULE_FLOP / (one.frequency_hz * one.flop_per_cycle) < 10.0 - 3.0


@pytest.mark.parametrize("name", ["sensor", "phone_low", "phone_mid", "phone_high"])
def test_budget_binds_on_weak_devices(name):
    """The full module at full power costs 2 to 4 rounds of a battery-powered device's budget."""
    one = CLASSES[name]
    seconds = FULL_MODULE_FLOP / (one.frequency_hz * one.flop_per_cycle)
    compute_j = one.compute_power_w * seconds
    radiated_w = 10 ** (one.power_max_dbm / 10 - 3)
    upload_j = (radiated_w / one.pa_efficiency + one.circuit_power_w) * min(UPLOAD_S, 9.7 - seconds)
    assert 2.0 <= (compute_j + upload_j) / one.budget_j <= 4.0


def test_strength_grows_with_the_class():
    speeds = [one.frequency_hz * one.flop_per_cycle for one in CLASSES.values()]
    budgets = [one.budget_j for one in CLASSES.values()]
    memories = [one.memory_byte for one in CLASSES.values()]
    for values in (speeds, budgets, memories):
        assert values == sorted(values)


@given(st.lists(st.floats(0, 10), min_size=6, max_size=6).filter(lambda s: sum(s) > 0.01), st.integers(1, 300))
def test_counts_are_the_nearest_integers(shares, devices):
    """Largest remainder: counts add up to K and each is the floor or the ceiling of its quota."""
    counts = class_counts({str(i): share for i, share in enumerate(shares)}, devices)
    assert sum(counts.values()) == devices
    quota = np.array(shares) / sum(shares) * devices
    assert np.all(np.abs(np.array(list(counts.values())) - quota) < 1.0 + 1e-9)
    assert all(counts[str(i)] == 0 for i, share in enumerate(shares) if share == 0.0)


def test_fleet_has_the_mix_and_the_order_of_the_seed():
    config = FleetConfig(devices=20, budget_scale=2.0)
    samples = np.arange(1, 21)
    fleet = sample_devices(config, samples, 0)
    counted = {name: fleet.kind.count(name) for name in CLASSES}
    assert counted == {"sensor": 3, "phone_low": 6, "phone_mid": 5, "phone_high": 3, "vehicle": 2, "edge_box": 1}
    assert fleet.kind == sample_devices(config, samples, 0).kind
    assert fleet.kind != sample_devices(config, samples, 1).kind
    sensor = fleet.kind.index("sensor")
    assert fleet.power_max_w[sensor] == pytest.approx(0.1)  # 20 dBm
    assert fleet.budget_j[sensor] == pytest.approx(2.0 * CLASSES["sensor"].budget_j)
    assert fleet.memory_byte[sensor] == CLASSES["sensor"].memory_byte
    np.testing.assert_array_equal(fleet.samples, samples)
    assert samples.flags.writeable, "the caller's array is not ours to freeze"


def test_bad_samples_are_refused():
    with pytest.raises(AirtuneError, match="one entry per device"):
        sample_devices(FleetConfig(devices=3), np.ones(2, dtype=np.int64), 0)
    with pytest.raises(AirtuneError, match="at least 1"):
        sample_devices(FleetConfig(devices=2), np.array([1, 0]), 0)
