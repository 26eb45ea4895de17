"""The world of TR 38.901 and its deliveries against formulas by hand, raw link tables and exact chances."""

import dataclasses
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from tests.reference import tr38901_reference as by_hand

from airtune.config import FleetConfig, RunConfig, SionnaConfig, WorldConfig
from airtune.physics.devices import sample_devices
from airtune.physics.link import OutageLink
from airtune.types import Decision, Problem, World
from airtune.worlds.sionna import CARRIERS, SionnaWorld
from airtune.worlds.tr38901 import Channels, LinkTables, Topology
from airtune.worlds.transport import ELEMENTS_PER_HZ_S, TransportAir

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("sionna") is None, reason="Sionna is not installed (pip install 'airtune[sionna]')"
)
NOISE = 1e-19


def there(distance_m, seen, *, indoor=False, indoor_m=None):
    distance_m = np.asarray(distance_m, np.float64)
    count = len(distance_m)
    place = np.column_stack((0.6 * distance_m, 0.8 * distance_m))
    inside = np.full(count, indoor)
    return Topology(place, np.full(count, seen), inside, np.zeros(count, np.bool_), indoor_m)


def world_of(devices=12, seed=3, sionna=None, **world):
    config = RunConfig(
        seed=seed,
        fleet=FleetConfig(devices=devices, vehicle=0.5),
        world=WorldConfig(kind="sionna", **world),
        sionna=sionna or SionnaConfig(),
    )
    fleet = sample_devices(config.fleet, np.full(devices, 100), 0)
    return SionnaWorld(config, fleet, lambda t: np.full(devices, 10.0 + t)), np.array(fleet.kind) == "vehicle"


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("carrier_ghz", [2.0, 3.5])
@pytest.mark.parametrize(
    ("scenario", "formula"), [("umi", by_hand.umi_db), ("uma", by_hand.uma_db), ("rma", by_hand.rma_db)]
)
def test_path_loss_by_hand(scenario, formula, carrier_ghz, seen):
    """Before and beyond the breakpoint: 119.9 m (umi), 319.6 m (uma) and 2,197 m (rma) at 2 GHz."""
    distance_m = [40.0, 110.0, 300.0, 800.0, 3000.0]
    found = Channels(SionnaConfig(scenario=scenario, carrier_hz=carrier_ghz * 1e9)).large_scale(there(distance_m, seen))
    np.testing.assert_allclose(found.path_loss_db, [formula(d, carrier_ghz, seen) for d in distance_m], rtol=1e-6)
    chance = [by_hand.line_of_sight_probability(scenario, d) for d in distance_m]
    np.testing.assert_allclose(found.line_of_sight_probability, chance, rtol=1e-6)


@pytest.mark.parametrize(
    ("scenario", "seen", "near_db", "far_db"),
    [("umi", 1, 4.0, 4.0), ("umi", 0, 7.82, 7.82), ("uma", 1, 4.0, 4.0), ("uma", 0, 6.0, 6.0), ("rma", 1, 4.0, 6.0),
     ("rma", 0, 8.0, 8.0)],
)  # fmt: skip
def test_spread_of_shadowing_by_table(scenario, seen, near_db, far_db):
    """Table 7.4.1-1; in rma with line of sight it grows beyond the breakpoint."""
    found = Channels(SionnaConfig(scenario=scenario)).large_scale(there([100.0, 3000.0], bool(seen)))
    np.testing.assert_allclose(found.shadowing_std_db, [near_db, far_db], rtol=1e-6)


def test_penetration_by_hand():
    """Up to 6 GHz 20 dB + 0.5 dB/m over 0 to 25 m; at 28 GHz glass and concrete with 4.4 dB spread."""
    place = there(np.full(2000, 300.0), False, indoor=True)
    loss_db, indoor_m = Channels(SionnaConfig()).penetration(1, place)
    np.testing.assert_allclose(loss_db, 20.0 + 0.5 * indoor_m, rtol=1e-6)
    assert stats.kstest(indoor_m / 25.0, "uniform").pvalue > 1e-4
    loss_db, indoor_m = Channels(SionnaConfig(carrier_hz=28e9)).penetration(1, place)
    wall_db = 5.0 - 10.0 * math.log10(0.3 * 10 ** (-(2 + 0.2 * 28) / 10) + 0.7 * 10 ** (-(5 + 4 * 28) / 10))
    rest_db = loss_db - wall_db - 0.5 * indoor_m
    assert rest_db.mean() == pytest.approx(0.0, abs=4 * 4.4 / math.sqrt(2000))
    assert rest_db.std() == pytest.approx(4.4, abs=4 * 4.4 / math.sqrt(4000))
    outdoors_db, _ = Channels(SionnaConfig()).penetration(1, there([300.0], False))
    assert outdoors_db[0] == 0.0


def test_gain_is_path_loss_and_shadowing():
    """With and without shadowing the level differs by N(0, σ²) of the state; four standard errors."""
    plain = SionnaConfig(line_of_sight="always", shadowing=False)
    clear, vehicle = world_of(1000, sionna=plain)
    place = clear.topology(0)
    loss_db = [by_hand.uma_db(d, 2.0, True) for d in np.hypot(*place.position_m.T)]
    np.testing.assert_allclose(10 * np.log10(clear.gain(0)), -np.array(loss_db), rtol=1e-6)
    shadowed, _ = world_of(1000, sionna=dataclasses.replace(plain, shadowing=True))
    level_db = 10 * np.log10(shadowed.gain(4) / clear.gain(4))
    assert level_db.std() == pytest.approx(4.0, abs=4 * 4.0 / math.sqrt(2000))
    assert 0 < vehicle.sum() < 1000


def test_line_of_sight_has_its_probability_and_stays_with_those_that_stand():
    driving, vehicle = world_of(2000, vehicle_speed_mps=15.0, deadline_s=4.0)
    first, later = driving.topology(0), driving.topology(3)
    for place in (first, later):
        chance = [by_hand.line_of_sight_probability("uma", d) for d in np.hypot(*place.position_m.T)]
        assert place.line_of_sight.mean() == pytest.approx(np.mean(chance), abs=4 * 0.5 / math.sqrt(2000))
    np.testing.assert_array_equal(first.line_of_sight[~vehicle], later.line_of_sight[~vehicle])
    assert (first.line_of_sight != later.line_of_sight)[vehicle].any()
    assert np.hypot(*(later.position_m - first.position_m)[vehicle].T).mean() > 50.0


def test_fading_has_mean_one_and_is_rayleighs_without_line_of_sight():
    """|H|² without line of sight is close to Exp(1): means within four standard errors, P(|H|² < 0.1) within 0.02."""
    channels, band = Channels(SionnaConfig()), np.zeros((4000, 1))
    hidden, seen = (
        channels.fading_power(7, there(np.full(4000, 200.0), sight), np.zeros((4000, 2)), band, 1, 1.0)[:, 0, 0]
        for sight in (False, True)
    )
    for power in (hidden, seen):
        assert power.mean() == pytest.approx(1.0, abs=4 * power.std() / math.sqrt(4000))
    assert (hidden < 0.1).mean() == pytest.approx(1 - math.exp(-0.1), abs=0.02)
    assert (seen < 0.1).mean() < 0.5 * (hidden < 0.1).mean()


def test_same_round_whatever_was_asked_before():
    """Bit for bit, with vehicles; and a band changes nobody else's fading."""
    args = {"vehicle_speed_mps": 10.0, "deadline_s": 2.0, "sionna": SionnaConfig(indoor=0.5, fades=3)}
    walked, _ = world_of(**args)
    assert isinstance(walked, World)
    band_hz = np.linspace(1e5, 1e6, 12)
    for t in (0, 3, 1, 3):
        fresh, _ = world_of(**args)
        np.testing.assert_array_equal(walked.observe(t).gain, fresh.observe(t).gain)
        seen = walked.fading_power(t, band_hz)
        np.testing.assert_array_equal(seen, fresh.fading_power(t, band_hz))
        assert seen.shape == (12, 3, CARRIERS)
        other = walked.fading_power(t, np.where(np.arange(12) == 5, 0.0, band_hz))
        np.testing.assert_array_equal(np.delete(seen, 5, 0), np.delete(other, 5, 0))
    assert np.all(walked.gain(1) != walked.gain(2))
    other, _ = world_of(seed=4, **args)
    assert np.all(walked.gain(1) != other.gain(1))


def test_torchs_random_numbers_are_left_alone():
    """In a process of its own, since Sionna reseeds torch as it is imported; without that care the state differs."""
    program = """
import torch
torch.manual_seed(5)
before = torch.get_rng_state()
import numpy as np
from airtune.config import SionnaConfig
from airtune.worlds.tr38901 import Channels, LinkTables, Topology
place = Topology(np.full((3, 2), 90.0), *(np.zeros(3, bool) for _ in range(3)))
channels = Channels(SionnaConfig())
channels.penetration(1, place)
channels.fading_power(1, place, np.ones((3, 2)), np.zeros((3, 2)), 2, 1.0)
LinkTables(SionnaConfig()).block_errors(np.array([4]), np.ones((1, 2)))
print(torch.equal(before, torch.get_rng_state()))
import sionna.phy
sionna.phy.config.seed = 9
print(torch.equal(before, torch.get_rng_state()))
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "False"]


def test_sionna_is_imported_in_one_file():
    source = Path(__file__).parents[2] / "src/airtune"
    names = [
        path.name
        for path in source.rglob("*.py")
        if any(f'"sionna.{part}' in path.read_text() for part in ("phy", "sys")) or "import sionna" in path.read_text()
    ]
    assert names == ["tr38901.py"]


@pytest.mark.parametrize("mcs_table", [1, 2])
def test_block_errors_by_the_raw_tables(mcs_table):
    """BLER interpolated by hand: linear in its logarithm over SINR between the table's points, at one code block size.

    1,928 bits and 16 of CRC are one code block of 1,944 bits, which Sionna looks up at 1,924; the tables have 1,000
    and 2,000. Points of no error count as a hundredth of the least that occurred, and as none below that.
    """
    from sionna.sys import PHYAbstraction

    tables = LinkTables(SionnaConfig(mcs_table=mcs_table))
    raw = PHYAbstraction(device="cpu").bler_table["category"][mcs_table - 1]["index"][mcs_table]["MCS"]
    sinr_db = np.round(np.arange(-4.0, 20.0, 0.3), 1)
    for index in (0, 9, len(tables.rates.mcs) - 1):
        assert tables.rates.block_bit[index] == 1928
        table = raw[int(tables.rates.mcs[index])]
        every = np.array([table["CBS"][size]["BLER"] for size in sorted(table["CBS"])])
        least = every[every > 0].min()
        logs = [
            np.interp(sinr_db, table["SNR_db"], np.log10(np.where(bler > 0, bler, least / 100)))
            for bler in (np.array(table["CBS"][1000]["BLER"]), np.array(table["CBS"][2000]["BLER"]))
        ]
        bler = 10 ** (0.076 * logs[0] + 0.924 * logs[1])
        expected = np.where(bler < least, 0.0, np.minimum(bler, 1.0))
        sinr = np.repeat(10 ** (sinr_db[:, None] / 10), 5, axis=1)
        found = tables.block_errors(np.full(len(sinr_db), index), sinr)
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)


def sent(snr, bits, retransmissions=0, reserve=0.0, band_hz=1e4):
    """Uploads of `bits` in 1 s at mean SNRs, over channels without fading."""
    config = RunConfig(
        world=WorldConfig(kind="sionna", deadline_s=1.0),
        sionna=SionnaConfig(retransmissions=retransmissions, reserve=reserve),
    )
    one, table = np.ones(len(snr)), np.ones((len(snr), 1))
    problem = Problem(
        t=0, rounds=1, tradeoff_v=1.0, bandwidth_hz=1e9, link=OutageLink(NOISE, 1.0), gain=snr * NOISE * band_hz,
        pa_efficiency=one, circuit_power_w=one, queue_j=one, spent_j=one, budget_j=one, weight=one, utility=table,
        payload_bit=bits * table, uplink_s=table, compute_j=table, power_max_w=table.copy(), feasible=table > 0,
    )  # fmt: skip
    decision = Decision(one.astype(np.int64), one.copy(), band_hz * one, 0.0 * one, 0.0)
    air = TransportAir(config, lambda t, band: np.ones((len(snr), 1, 2)), NOISE)
    return air.transmit(decision, problem)


def test_deliveries_have_the_frequency_of_the_link_table():
    """One block that just fits at one MCS: it arrives with 1 − BLER; four standard errors of 4,000."""
    tables, index, count = LinkTables(SionnaConfig()), 10, 4000
    band_hz = (tables.rates.elements[index] + 0.5) / ELEMENTS_PER_HZ_S
    snr_db = np.arange(0.0, 12.0, 0.2)
    bler = tables.block_errors(np.full(len(snr_db), index), 10 ** (snr_db[:, None] / 10))
    between = np.flatnonzero((bler > 0.05) & (bler < 0.95))
    assert len(between) >= 3
    for level_db, level in zip(snr_db[between], bler[between], strict=True):
        arrived = sent(np.full(count, 10 ** (level_db / 10)), 1900.0, band_hz=band_hz).delivered.mean()
        assert arrived == pytest.approx(1 - level, abs=4 * math.sqrt(level * (1 - level) / count))


def test_harq_takes_time_out_of_the_upload_and_energy_with_it():
    """Ten blocks and room for some more: time on air is that of the transmissions made, never beyond τ_up."""
    levels = 10 ** (np.repeat([3.0, 4.5, 6.0, 30.0], 300) / 10)
    done = sent(levels, 9000.0, retransmissions=3, reserve=0.5)
    airtime_s, delivered = done.airtime_s.reshape(4, 300), done.delivered.reshape(4, 300)
    assert (airtime_s <= 1.0).all() and (airtime_s[~delivered] == 1.0).all()
    assert (np.diff(delivered.mean(axis=1)) >= 0).all() and delivered[3].all() and not delivered[0].all()
    assert len(np.unique(airtime_s[3])) == 1 and airtime_s[3, 0] < airtime_s[2][delivered[2]].mean() + 1e-9
    plain = sent(levels, 9000.0, retransmissions=0, reserve=0.5).delivered.reshape(4, 300)
    assert plain.mean() < delivered.mean()


def test_no_rate_carries_more_than_the_highest_mcs():
    """5.4 bits an element and 8,666 elements: 46,800 bits may arrive, 48,000 never do, whatever the SNR."""
    high = np.full(50, 1e3)
    assert sent(high, 40000.0).delivered.all()
    lost = sent(high, 48000.0)
    assert not lost.delivered.any() and (lost.airtime_s == 1.0).all()
