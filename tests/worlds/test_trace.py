"""Traces: what is written is what is read, and every mistake in a file is one line."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.config import FleetConfig, RunConfig, TraceConfig, WorldConfig
from airtune.physics.devices import sample_devices
from airtune.physics.fading import rayleigh_power
from airtune.physics.link import OutageLink, fading_of_rate
from airtune.settings import load
from airtune.types import AirtuneError, World
from airtune.worlds.analytic import radio_of
from airtune.worlds.trace import TraceWorld, read_trace

GOOD = "round,device,gain_db\n0,0,-100\n0,1,-90\n1,0,-101\n1,1,-91\n"


def write(path, text):
    path.write_text(text)
    return path


def world_of(path, rounds=2, devices=2, **trace):
    config = RunConfig(
        rounds=rounds,
        seed=5,
        fleet=FleetConfig(devices=devices),
        world=WorldConfig(kind="trace"),
        trace=TraceConfig(file=path, **trace),
    )
    fleet = sample_devices(config.fleet, np.full(devices, 100), 0)
    return TraceWorld(config, fleet, radio_of(config.world), lambda t: np.full(devices, 10.0 + t)), fleet


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_what_is_written_is_read(tmp_path_factory, data):
    rounds, devices = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    count = rounds * devices
    gain_db = np.array(data.draw(st.lists(st.floats(-200, 0), min_size=count, max_size=count)))
    rate = np.array(data.draw(st.lists(st.floats(0, 1e9), min_size=count, max_size=count)))
    t, device = np.divmod(np.arange(count), devices)
    table = pd.DataFrame({"round": t, "device": device, "gain_db": gain_db, "throughput_bit_per_s": rate})
    if data.draw(st.booleans()):
        table = table.rename(columns={"gain_db": "gain_linear"}).assign(gain_linear=10 ** (gain_db / 10))
    table = table.sample(frac=1.0, random_state=data.draw(st.integers(0, 99)))
    folder = tmp_path_factory.mktemp("trace")
    table.to_csv(folder / "one.csv", index=False)
    table.to_parquet(folder / "one.parquet")
    for name in ("one.csv", "one.parquet"):
        found = read_trace(folder / name)
        np.testing.assert_allclose(found.gain, 10 ** (gain_db.reshape(rounds, devices) / 10), rtol=1e-12)
        np.testing.assert_array_equal(found.throughput_bit_per_s, rate.reshape(rounds, devices))
        assert found.available.all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read as a table"),
        ("round,device,gain_db\n", "holds no rows"),
        ("round,device\n0,0\n", "one of the columns gain_db and gain_linear is needed, got neither"),
        ("round,device,gain_db,gain_linear\n0,0,1,1\n", "one of the columns"),
        ("device,gain_db\n0,-90\n", "column 'round' is missing"),
        ("round,device,gain\n0,0,-90\n", "unknown column 'gain'; there are round, device, gain_db"),
        (GOOD + "1,1,-91\n", "round 1 of device 1 is there twice"),
        (GOOD.replace("0,1,-90\n", ""), "round 0 of device 1 is missing; a row with available 0 would be right"),
        (GOOD.replace("1,1,-91\n", ""), "round 1 of device 1 is missing"),
        (GOOD.replace("-90", "loud"), "gain_db is no number in row 2, got 'loud'"),
        (GOOD.replace("-90", ""), "gain_db of device 1 in round 0 must be a number of dB from -400 to 400, got nan"),
        (GOOD.replace("-90", "1e9"), "gain_db of device 1 in round 0 must be"),
        (GOOD.replace("gain_db", "gain_linear"), "gain_linear of device 0 in round 0 must be a finite number > 0"),
        (GOOD.replace("0,1,", "0.5,1,"), "round counts from 0 in whole numbers, got 0.5 in row 2"),
        (GOOD.replace("1,0,", "1,-3,"), "device counts from 0 in whole numbers, got -3 in row 3"),
        ("round,device,gain_db,available\n0,0,-90,2\n", "available of device 0 in round 0 must be 0 or 1, got 2"),
        ("round,device,gain_db,available\n0,0,,0\n1,0,,0\n", "device 0 is never available"),
        ("round,device,gain_db,throughput_bit_per_s\n0,0,-90,-1\n", "throughput_bit_per_s of device 0 in round 0"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, told):
    with pytest.raises(AirtuneError) as caught:
        read_trace(write(tmp_path / "bad.csv", text))
    assert told in str(caught.value) and "bad.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_another_kind_and_no_parquet(tmp_path):
    with pytest.raises(AirtuneError, match=r"nowhere\.csv: no such file"):
        read_trace(tmp_path / "nowhere.csv")
    with pytest.raises(AirtuneError, match=r"ends in \.csv or \.parquet, not \.txt"):
        read_trace(write(tmp_path / "one.txt", GOOD))
    with pytest.raises(AirtuneError, match="cannot be read as a table"):
        read_trace(write(tmp_path / "one.parquet", GOOD))


def test_beyond_its_end_a_trace_is_refused_or_starts_again(tmp_path):
    path = write(tmp_path / "one.csv", GOOD)
    with pytest.raises(AirtuneError, match=r"ends after 2 rounds of 5; rounds 2 or trace\.beyond repeat"):
        world_of(path, rounds=5)
    world, _ = world_of(path, rounds=5, beyond="repeat")
    assert isinstance(world, World)
    for t in range(5):
        np.testing.assert_allclose(10 * np.log10(world.observe(t).gain), [-100 - t % 2, -90 - t % 2], rtol=1e-12)
    np.testing.assert_array_equal(world.observe(3).tokens, [13.0, 13.0])
    with pytest.raises(AirtuneError, match=r"has 2 devices; fleet\.devices 2 would be right, got 3"):
        world_of(path, devices=3)


def test_who_was_out_of_reach_keeps_a_gain_and_is_not_available(tmp_path):
    text = "round,device,gain_db,available\n0,0,,0\n1,0,-80,1\n2,0,,0\n0,1,-70,1\n1,1,-71,1\n2,1,-72,1\n"
    world, _ = world_of(write(tmp_path / "one.csv", text), rounds=3)
    assert [world.observe(t).available.tolist() for t in range(3)] == [[False, True], [True, True], [False, True]]
    np.testing.assert_allclose([10 * np.log10(world.gain(t)[0]) for t in range(3)], [-80, -80, -80])


def test_without_throughput_fades_are_rayleighs(tmp_path):
    world, _ = world_of(write(tmp_path / "one.csv", GOOD))
    np.testing.assert_array_equal(world.fading_power(1), rayleigh_power(5, 1, 2))


@given(st.floats(1e3, 5e6), st.floats(0.3, 3.0))
def test_measured_throughput_carries_what_it_says(rate_bit_per_s, share):
    """At full power over the whole band an upload arrives, p h ≥ c, iff the throughput is at least its rate."""
    radio, gain, power_w, time_s = radio_of(WorldConfig()), 1e-11, 0.2, 7.0
    fade = float(fading_of_rate(rate_bit_per_s, power_w, gain, radio))
    link = OutageLink(radio.noise_w_per_hz, radio.snr_gap)
    outage_w = float(link.outage_power_w(share * rate_bit_per_s * time_s, time_s, radio.bandwidth_hz, gain))
    assert (power_w * fade >= outage_w) == (share <= 1.0) or share == pytest.approx(1.0, rel=1e-9)


def test_settings_that_contradict_each_other():
    with pytest.raises(AirtuneError, match=r"trace\.file must be given exactly when world\.kind is 'trace'"):
        load({"world": {"kind": "trace"}})
    with pytest.raises(AirtuneError, match=r"trace\.file must be given exactly"):
        load({"trace": {"file": "one.csv"}})
    with pytest.raises(AirtuneError, match=r"world\.delivery gives the deliveries"):
        load({"world": {"kind": "sionna", "delivery": 0.5}, "policy": {"name": "traditional"}})


def test_an_observation_cannot_change_the_trace(tmp_path):
    world, _ = world_of(write(tmp_path / "one.csv", GOOD))
    gain = world.gain(0)
    gain[:] = 0.0
    assert (world.gain(0) > 0).all()
    assert dataclasses.is_dataclass(world.trace) and not world.trace.gain.flags.writeable
