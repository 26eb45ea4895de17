"""The analytic world: a function of (seed, t) alone, with the channel it says it has."""

import math

import numpy as np
import pytest

from airtune.config import FleetConfig, WorldConfig
from airtune.physics.devices import sample_devices
from airtune.physics.fading import Shadowing, path_gain
from airtune.types import AirtuneError, World
from airtune.worlds.analytic import AnalyticWorld, radio_of

CONFIG = WorldConfig(availability=0.7)


def fleet(count):
    return sample_devices(FleetConfig(devices=count), np.full(count, 100), 0)


def world(count=8, config=CONFIG, seed=3):
    return AnalyticWorld(config, fleet(count), seed, lambda t: np.full(count, 100.0 + t))


def test_radio_by_hand():
    """−174 + 5 + 3 = −166 dBm/Hz, 3 dB of gap, 46 dBm of transmit power."""
    radio = radio_of(WorldConfig())
    assert radio.noise_w_per_hz == pytest.approx(10 ** ((-166 - 30) / 10), rel=1e-12)
    assert radio.snr_gap == pytest.approx(1.9952623149688795, rel=1e-12)
    assert radio.bs_power_w == pytest.approx(39.810717055349734, rel=1e-12)
    assert (radio.bandwidth_hz, radio.deadline_s) == (1e6, 10.0)


def test_same_round_whatever_was_observed_before():
    walked = world()
    assert isinstance(walked, World)
    for t in (0, 1, 2, 7, 3, 7):
        seen, fresh = walked.observe(t), world().observe(t)
        for name in ("gain", "available", "tokens"):
            np.testing.assert_array_equal(getattr(seen, name), getattr(fresh, name))
        assert seen.t == t


def test_rounds_and_seeds_differ():
    first, second, other = world().observe(1), world().observe(2), world(seed=4).observe(1)
    assert np.all(first.gain != second.gain) and np.all(first.gain != other.gain)


def test_gain_is_path_loss_without_shadowing():
    """128.1 + 37.6 log10(d/km) dB at the position that the map shows, the same in every round."""
    still = world(config=WorldConfig(shadowing_std_db=0.0))
    distance_km = np.linalg.norm(still.position_m, axis=1) / 1000
    expected = [10 ** -((128.1 + 37.6 * math.log10(d)) / 10) for d in distance_km]
    for t in (0, 5):
        np.testing.assert_allclose(still.observe(t).gain, expected, rtol=1e-12)


def test_shadowing_has_the_configured_spread():
    """10 log10 of the gain over that of path loss alone is N(0, 8²); 4 standard errors over 4000 devices."""
    count = 4000
    shadowed = world(count).observe(6).gain
    clear = world(count, WorldConfig(shadowing_std_db=0.0)).observe(6).gain
    level_db = 10 * np.log10(shadowed / clear)
    assert level_db.mean() == pytest.approx(0.0, abs=4 * 8 / math.sqrt(count))
    assert level_db.std() == pytest.approx(8.0, abs=4 * 8 / math.sqrt(2 * count))


@pytest.mark.parametrize(("probability", "slack"), [(0.0, 0.0), (0.7, 0.029), (1.0, 0.0)])
def test_availability_is_bernoulli(probability, slack):
    """Share of available devices; 0.029 is 4 standard errors over 4000 devices."""
    available = world(4000, WorldConfig(availability=probability)).observe(2).available
    assert available.mean() == pytest.approx(probability, abs=slack)


def test_observation_is_read_only_and_leaves_the_callers_tokens_alone():
    tokens = np.full(8, 5.0)
    observation = AnalyticWorld(CONFIG, fleet(8), 0, lambda t: tokens).observe(0)
    with pytest.raises(ValueError, match="read-only"):
        observation.gain[0] = 1.0
    tokens[0] = 6.0
    assert observation.tokens[0] == 5.0


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"min_distance_m must be below cell_radius_m, got 35\.0 and 20\.0"):
        WorldConfig(cell_radius_m=20.0)
    with pytest.raises(AirtuneError, match="round"):
        world().observe(-1)
    with pytest.raises(AirtuneError, match="tokens"):
        AnalyticWorld(CONFIG, fleet(8), 0, lambda t: np.ones(3)).observe(0)


def test_only_the_devices_drawn_for_a_round_can_be_reached():
    """12 of 50 a round, no matter what was observed before; each has its turn: 12/50 of 600 rounds within 4σ."""
    each = fleet(50)
    tokens = lambda t: np.full(50, 100.0)  # noqa: E731
    drawn, walked = np.zeros(50), AnalyticWorld(WorldConfig(), each, 3, tokens, active=12)
    for t in range(600):
        seen = walked.observe(t)
        np.testing.assert_array_equal(seen.available, seen.candidates)
        assert seen.available.sum() == 12
        drawn += seen.available
    fresh = AnalyticWorld(WorldConfig(availability=0.5), each, 3, tokens, active=12).observe(7)
    np.testing.assert_array_equal(fresh.candidates, walked.observe(7).candidates)
    assert not (fresh.available & ~fresh.candidates).any() and 0 < fresh.available.sum() < 12
    assert np.abs(drawn / 600 - 0.24).max() < 4 * math.sqrt(0.24 * 0.76 / 600)


def test_all_devices_are_candidates_unless_some_are_drawn():
    plain, all_drawn = world(8), AnalyticWorld(CONFIG, fleet(8), 3, lambda t: np.full(8, 100.0 + t), active=8)
    assert plain.observe(2).candidates is None
    np.testing.assert_array_equal(plain.observe(2).available, all_drawn.observe(2).available)


def test_without_speed_the_world_is_what_it_was():
    """Bit for bit path gain times shadowing of one correlation, vehicles or not."""
    config = WorldConfig()
    standing = world(40, config)
    distance_m = np.hypot(standing.position_m[:, 0], standing.position_m[:, 1])
    for t in (0, 3):
        shadow = Shadowing(3, 40, 8.0, 0.9).level_db(t)
        np.testing.assert_array_equal(standing.gain(t), path_gain(distance_m) * 10.0 ** (shadow / 10.0))
        np.testing.assert_array_equal(standing.positions_m(t), standing.position_m)


@pytest.fixture(scope="module")
def driving():
    """3,000 vehicles and 1,000 others, 20 m a round, decorrelating over 50 m."""
    config = WorldConfig(vehicle_speed_mps=10.0, deadline_s=2.0, decorrelation_m=50.0, min_distance_m=20.0)
    devices = sample_devices(FleetConfig(devices=4000, vehicle=3.0, sensor=1.0, phone_low=0, phone_mid=0, phone_high=0,
                                         edge_box=0), np.full(4000, 100), 0)  # fmt: skip
    return AnalyticWorld(config, devices, 3, lambda t: np.ones(4000)), np.array(devices.kind) == "vehicle"


def test_vehicles_move_and_the_others_stand(driving):
    moving, vehicle = driving
    moved = np.hypot(*(moving.positions_m(6) - moving.positions_m(5)).T)
    assert (moved[~vehicle] == 0).all() and (moved[vehicle] <= 20.0 + 1e-9).all()
    assert np.isclose(moved[vehicle], 20.0, rtol=1e-9).mean() > 0.9  # but for those who turned back
    assert np.hypot(*moving.positions_m(50).T).max() <= 500.0 + 1e-9


def test_shadowing_of_vehicles_decorrelates_with_the_way(driving):
    """e^{−20/50} = 0.67 for vehicles, 0.9 for the others; four standard errors."""
    moving, vehicle = driving

    def shadow_db(t):
        distance_m = np.maximum(np.hypot(*moving.positions_m(t).T), 20.0)
        return 10.0 * np.log10(moving.gain(t) / path_gain(distance_m))

    first, second = shadow_db(7), shadow_db(8)
    assert first.std() == pytest.approx(8.0, rel=0.05)
    for who, rho in ((vehicle, np.exp(-0.4)), (~vehicle, 0.9)):
        found = np.corrcoef(first[who], second[who])[0, 1]
        assert found == pytest.approx(rho, abs=4 * (1 - rho**2) / np.sqrt(who.sum()))


@pytest.mark.parametrize(
    ("at_1_km_db", "per_decade_db", "metres", "loss_db"),
    [
        (17.30 + 3 * 38.3 + 24.9 * math.log10(3.5), 38.3, 30.0, 17.30 + 38.3 * math.log10(30) + 24.9 * math.log10(3.5)),
        (18.6 + 3 * 35.7 + 20 * math.log10(2), 35.7, 80.0, 18.6 + 35.7 * math.log10(80) + 20 * math.log10(2)),
    ],
    ids=["InH NLOS at 3.5 GHz", "InF-DL at 2 GHz"],
)
def test_other_path_losses_by_two_numbers(at_1_km_db, per_decade_db, metres, loss_db):
    """TR 38.901, table 7.4.1-1, in metres and GHz, against loss at 1 km and per decade."""
    gain = path_gain(np.array([metres]), at_1_km_db, per_decade_db)
    assert 10.0 * math.log10(gain[0]) == pytest.approx(-loss_db, abs=1e-9)
    config = WorldConfig(path_loss_1km_db=at_1_km_db, path_loss_per_decade_db=per_decade_db, shadowing_std_db=0.0)
    there = world(config=config)
    distance_m = np.hypot(there.position_m[:, 0], there.position_m[:, 1])
    np.testing.assert_allclose(there.gain(4), path_gain(distance_m, at_1_km_db, per_decade_db), rtol=1e-12)
