"""What the controller is told of real devices: what they measure, and their class for the rest."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airtune.config import FleetConfig, WorldConfig
from airtune.deploy.config import Slot
from airtune.deploy.federation import Federation, Journal, Node
from airtune.deploy.messages import Standing, Task, answer_blob
from airtune.deploy.validation import Accepted, Expected, Refused
from airtune.deploy.world import devices_of, gains_of, present
from airtune.physics.cost import compute_energy_j, compute_time_s
from airtune.physics.devices import CLASSES
from airtune.physics.link import OutageLink
from airtune.worlds.analytic import radio_of


def standing(**changes):
    given = {"name": "a", "t": 0, "kind": "vehicle", "samples": 30, "tokens": 100.0, "model": "feed"}
    return Standing(**{**given, **changes})


def test_a_measured_speed_and_power_are_what_time_and_energy_come_out_of():
    said = {1: standing(flop_per_s=2e9, compute_power_w=7.0, memory_byte=5e8)}
    devices = devices_of(["sensor", "sensor"], said, FleetConfig(budget_scale=2.0))
    tokens, flop = np.array([100.0, 100.0]), np.array([1e8])
    time_s = compute_time_s(tokens, flop, devices.frequency_hz, devices.flop_per_cycle)
    energy_j = compute_energy_j(tokens, flop, devices.frequency_hz, devices.flop_per_cycle, devices.capacitance)
    assert time_s[1, 0] == pytest.approx(100 * 1e8 / 2e9)
    assert energy_j[1, 0] == pytest.approx(7.0 * time_s[1, 0])
    assert time_s[0, 0] == pytest.approx(100 * 1e8 / (1.2e9 * 10.0))
    assert devices.kind == ("sensor", "vehicle") and devices.memory_byte.tolist() == [256e6, 5e8]
    assert devices.budget_j.tolist() == [2 * CLASSES["sensor"].budget_j, 2 * CLASSES["vehicle"].budget_j]


def test_weights_are_equal_or_by_reported_samples():
    said = {0: standing(samples=30), 1: standing(samples=10, kind="no such class")}
    assert devices_of(["sensor"] * 2, said, FleetConfig()).weight.tolist() == [0.5, 0.5]
    devices = devices_of(["sensor"] * 2, said, FleetConfig(weighting="samples"))
    assert devices.weight.tolist() == [0.75, 0.25] and devices.kind == ("vehicle", "sensor")


@pytest.mark.parametrize("rate_bit_per_s", [2e4, 1e6, 5e6])
def test_the_gain_is_that_at_which_full_power_just_carries_the_throughput(rate_bit_per_s):
    world = WorldConfig()
    radio = radio_of(world)
    said = {1: standing(uplink_bit_per_s=rate_bit_per_s)}
    devices = devices_of(["sensor", "sensor"], said, FleetConfig())
    gain = gains_of(devices, said, world, radio)
    link = OutageLink(radio.noise_w_per_hz, radio.snr_gap)
    power_w = link.outage_power_w(3.0 * rate_bit_per_s, 3.0, radio.bandwidth_hz, gain)
    assert power_w[1] == pytest.approx(devices.power_max_w[1])
    assert gain[0] == pytest.approx(10 ** -((128.1 + 37.6 * np.log10(0.25)) / 10))


def test_a_throughput_beyond_the_band_counts_for_a_good_link():
    world, said = WorldConfig(), {0: standing(uplink_bit_per_s=1e12)}
    devices = devices_of(["sensor"], said, FleetConfig())
    most = {0: standing(uplink_bit_per_s=10 * world.bandwidth_hz)}
    assert np.isfinite(gains_of(devices, said, world, radio_of(world))[0])
    assert gains_of(devices, said, world, radio_of(world)) == gains_of(devices, most, world, radio_of(world))


def test_who_is_there():
    assert present(4, [0, 2]).tolist() == [True, False, True, False] and not present(2, []).any()


class Room:
    """An exchange whose nodes say what they are told to."""

    def __init__(self, **said):
        self.said = {int(node.removeprefix("n")): words for node, words in said.items()}
        self.online = list(self.said)

    def nodes(self):
        return [Node(node, None) for node in self.online]

    def ask(self, blobs, t, timeout_s):
        answers = {}
        for node, blob in blobs.items():
            task, words = Task.of(blob), self.said[node]
            if isinstance(words, Standing):
                told = dataclasses.asdict(dataclasses.replace(words, t=task.t))
                about = {"kind": "report", "t": task.t, "device": task.device, "module": 0, "standing": told}
                answers[node] = answer_blob(about, {})
            elif words is not None:
                answers[node] = words
        return answers


def federation(tmp_path, room, **changes):
    given = {"keys": None, "exchange": room, "journal": Journal(tmp_path / "events.jsonl"), "setup": {}}
    given |= {"model": "feed", "report_s": 1.0, **changes}
    return Federation([Slot(name="a"), Slot(name="b")], **given)


def told(tmp_path):
    rows = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    return [(row["event"], row.get("device"), row.get("reason")) for row in rows]


def test_only_listed_names_with_the_right_model_join(tmp_path):
    room = Room(n1=standing(), n2=standing(name="b", model="beef"), n3=standing(name="c"), n4=b"?", n5="it crashed")
    assert federation(tmp_path, room).gather(0, 1) == [0]
    events = told(tmp_path)
    assert ("joined", "a", None) in events and ("silent", "node 5", "it crashed") in events
    reasons = [reason for event, _, reason in events if event == "refused"]
    assert len(reasons) == 3 and any("model is beef" in reason for reason in reasons)
    assert "it calls itself c" in reasons and any(reason.startswith("malformed:") for reason in reasons)


def test_nobody_takes_the_place_of_a_device_that_is_there(tmp_path):
    room = Room(n1=standing(), n2=standing())
    fed = federation(tmp_path, room)
    assert fed.gather(0, 1) == [0]
    assert [reason for event, _, reason in told(tmp_path) if event == "refused"] == [
        "another node is this device already"
    ]
    room.online = [2]
    assert fed.gather(1, 1) == [0]
    assert [event for event, *_ in told(tmp_path)][-2:] == ["left", "joined"]


def test_a_round_waits_for_enough_devices(tmp_path):
    room = Room(n1=standing(), n2=standing(name="b"))
    room.online, naps = [1], []

    def sleep(seconds):
        naps.append(seconds)
        room.online = [1, 2] if len(naps) == 3 else [1]

    assert federation(tmp_path, room, sleep=sleep, told=tmp_path / "devices.json").gather(0, 2) == [0, 1]
    assert len(naps) == 3 and [event for event, *_ in told(tmp_path)].count("waiting") == 1
    assert json.loads((tmp_path / "devices.json").read_text())["b"]["samples"] == 30


def test_every_task_has_a_result_whatever_comes_back(tmp_path):
    room = Room(n1=standing(), n2=standing(name="b"))
    fed = federation(tmp_path, room)
    fed.gather(0, 2)
    room.said[2] = None
    tasks = {k: Task(1, k, {}) for k in range(2)}
    expected = {k: Expected(1, k, 0, {}, 0.0, 1) for k in range(2)}
    results = fed.ask(tasks, expected, 5.0, 0)
    assert isinstance(results[0], Accepted) and fed.standings[0].t == 1
    assert results[1] == Refused("late or missing: no answer within 5 s") and fed.standings[1].t == 0
    room.said[2] = "it crashed"
    assert fed.ask(tasks, expected, 5.0, 0)[1] == Refused("missing: it crashed")
    room.online = [1]
    fed.gather(1, 1)
    assert fed.ask(tasks, expected, 5.0, 0)[1] == Refused("missing: it is not connected")


EXTREMES = {
    name: st.none() | st.sampled_from([1e-3, 1e18]) | st.floats(1e-3, 1e18)
    for name in ("memory_byte", "flop_per_s", "compute_power_w", "uplink_bit_per_s")
}


@given(st.fixed_dictionaries({**EXTREMES, "samples": st.integers(1, 10**9), "kind": st.sampled_from([*CLASSES])}))
def test_whatever_a_device_may_say_can_be_computed_with(said):
    world, heard = WorldConfig(), {0: standing(**said)}
    devices = devices_of(["sensor", "sensor"], heard, FleetConfig(weighting="samples"))
    gain = gains_of(devices, heard, world, radio_of(world))
    assert np.isfinite(gain).all() and (gain > 0).all()
    assert np.isfinite(devices.weight).all() and devices.weight.sum() == pytest.approx(1.0)
    time_s = compute_time_s(np.array([1e3, 1e3]), np.array([1e8]), devices.frequency_hz, devices.flop_per_cycle)
    assert np.isfinite(time_s).all() and (time_s > 0).all()
    for field in ("flop_per_s", "compute_power_w", "uplink_bit_per_s"):
        for value in (5e-324, 1e-310, 0.0, 1e19):
            with pytest.raises(ValidationError):
                standing(**{field: value})
    with pytest.raises(ValidationError):
        standing(samples=10**30)


def test_a_lost_link_and_who_does_not_come_back_are_in_the_record(tmp_path):
    told_file = tmp_path / "devices.json"
    told_file.write_text('{"a": {}, "b": {}}')
    room = Room(n1=standing(), n2=None)
    one = federation(tmp_path, room, told=told_file)
    assert one.gather(0, 1) == [0]
    room.said[1] = standing(links_lost=2)
    one.gather(1, 1)
    one.gather(2, 1)
    events = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    noted = [(event["event"], event.get("device"), event.get("reason")) for event in events]
    assert ("left", "b", "it was there before the server was started again") in noted
    assert [row for row in noted if row[0] == "died"] == [("died", "a", "its SuperNode, 2 times")]
    assert [row[1] for row in noted].count("b") == 1
