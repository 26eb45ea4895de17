"""Emulated links: rates, outages and times on real namespaces (root, iproute2), and what is told of them."""

import json
import socket
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest

from airtune.deploy import links as links_module
from airtune.deploy.config import ServerConfig, checked
from airtune.deploy.emulation import (
    ROWS,
    EmulatedUplinks,
    read_uploads,
    told_by,
    upload_of,
)
from airtune.deploy.links import BASE, Links, missing, namespace
from airtune.deploy.messages import Limits
from airtune.deploy.server import serve
from airtune.record import RunFolder
from airtune.types import AirtuneError

emulated = pytest.mark.skipif(missing() is not None, reason=f"links cannot be emulated here: {missing()}")
RATE = 4e5


def limits(payload_bit, rate_bit_per_s=RATE):
    return Limits(power_w=0.1, bandwidth_hz=1e5, uplink_s=payload_bit / rate_bit_per_s, rate_bit_per_s=rate_bit_per_s)


def sender(links, k, port, count):
    """A process in device k's namespace that sends so many bytes to the base station."""
    code = f"import socket; s = socket.create_connection(('{BASE}', {port})); s.sendall(bytes({count})); s.close()"
    return subprocess.Popen(links.inside(k, [sys.executable, "-c", code]))


@pytest.fixture
def door():
    with socket.create_server((BASE, 0)) as server:
        server.settimeout(20.0)
        yield server


@pytest.fixture
def cell():
    with Links(2) as links:
        yield links


def received(door, timeout_s=20.0):
    """Bytes of the next caller until it hangs up or is silent for so long."""
    line, (host, _) = door.accept()
    line.settimeout(timeout_s)
    count = 0
    with line:
        try:
            while part := line.recv(1 << 16):
                count += len(part)
        except TimeoutError:
            return host, count, False
    return host, count, True


@emulated
def test_an_upload_takes_as_long_as_its_rate_says(cell, door, tmp_path):
    uplinks = EmulatedUplinks(cell, tmp_path / ROWS, ["a", "b"])
    count = 100_000
    with uplinks.round(3, {0: limits(8 * count), 1: limits(8 * count, 4 * RATE)}, set()):
        processes = [sender(cell, k, door.getsockname()[1], count) for k in (0, 1)]
        callers = dict(received(door)[:2] for _ in processes)
        assert [process.wait() for process in processes] == [0, 0]
    assert callers == {"10.77.0.2": count, "10.77.0.3": count}
    rows = {row["device"]: row for row in read_uploads(tmp_path)}
    for name, predicted_s in (("a", 2.0), ("b", 0.5)):
        assert rows[name]["predicted_s"] == predicted_s and rows[name]["t"] == 3
        assert 1.0 < rows[name]["wire_bit"] / (8 * count) < 1.15
    on_the_wire_s = rows["a"]["wire_bit"] / RATE
    assert 0.9 * on_the_wire_s < rows["a"]["measured_s"] < 1.5 * on_the_wire_s  # a busy machine may be late
    assert rows["b"]["measured_s"] < rows["a"]["measured_s"]


@emulated
def test_a_faded_upload_finds_its_link_down_until_the_round_is_over(cell, door, tmp_path):
    uplinks = EmulatedUplinks(cell, tmp_path / ROWS, ["a", "b"])
    count = 200_000
    with uplinks.round(0, {0: limits(8 * count)}, {0}):
        process = sender(cell, 0, door.getsockname()[1], count)
        _, before, whole = received(door, 2.0)
        assert not whole and before < 0.6 * count
        state = json.loads(subprocess.check_output(["ip", "-n", namespace(0), "-j", "link", "show", "uplink"]))
        assert "UP" not in state[0]["flags"]
    process.kill()
    process.wait()
    (row,) = read_uploads(tmp_path)
    assert row["faded"] and row["measured_s"] is None and row["wire_bit"] < 8 * count
    process = sender(cell, 0, door.getsockname()[1], 10)  # up again, and not shaped
    assert received(door) == ("10.77.0.2", 10, True)
    process.wait()


@emulated
def test_a_second_emulation_is_refused_and_what_a_killed_one_left_is_replaced(cell):
    holder = subprocess.Popen(cell.inside(1, [sys.executable, "-c", "import time; time.sleep(60)"]))
    try:
        while not subprocess.check_output(["ip", "netns", "pids", namespace(1)]).strip():
            time.sleep(0.05)
        with pytest.raises(AirtuneError, match="another emulation is running in namespace airtune-1"), Links(2):
            pass
    finally:
        holder.kill()
        holder.wait()
    with Links(2) as again:
        assert again.there(0) and again.there(1)
    assert not again.there(0) and not again.there(1)


@emulated
def test_a_federation_tells_its_links_what_the_controller_gave_and_the_channel_loses(
    tiny_config, deployment, tmp_path, cell
):
    given = {"policy": {"name": "traditional"}, "world": {"delivery": 0.5}}
    config = tiny_config(tmp_path / "unused", rounds=4, fleet={"devices": 2, "budget_scale": 100.0}, **given)
    folder, hall = deployment(config, emulated=True)
    shaped = []

    def shape(self, k, rate_bit_per_s):
        shaped.append((f"d{k}", rate_bit_per_s))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Links, "shape", shape)
        serve(folder, hall, by_key=True)
    rows, devices = read_uploads(folder), RunFolder.open(folder / "run").read_devices()
    sent = [row for row in devices if row["module"]]
    assert [(row["device"], row["rate_bit_per_s"]) for row in rows] == shaped
    assert [(row["t"], row["device"]) for row in rows] == [(row["t"], f"d{row['device']}") for row in sent]
    assert [row["faded"] for row in rows] == [not row["delivered"] for row in sent]
    assert {row["faded"] for row in rows} == {True, False}
    assert all(row["payload_bit"] == pytest.approx(row["rate_bit_per_s"] * row["predicted_s"], abs=1) for row in rows)


def test_without_its_links_an_emulated_deployment_does_not_start(tiny_config, deployment, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "unused", fleet={"devices": 2})
    folder, hall = deployment(config, emulated=True)
    monkeypatch.setattr(Links, "there", lambda self, k: False)
    with pytest.raises(AirtuneError, match="start it with `airtune deploy local"):
        serve(folder, hall, by_key=True)


def test_why_links_cannot_be_emulated_is_said(monkeypatch):
    monkeypatch.setattr(links_module.os, "geteuid", lambda: 1000)
    assert missing() == "only root may make network namespaces"
    with pytest.raises(AirtuneError, match="emulated links: only root"), Links(4):
        pass
    monkeypatch.setattr(links_module.os, "geteuid", lambda: 0)
    monkeypatch.setattr(links_module.shutil, "which", lambda name, path=None: None)
    assert missing() == "there is no ip nor tc; install iproute2"
    monkeypatch.setattr(links_module.sys, "platform", "darwin")
    assert missing() == "network namespaces are Linux's"


def test_outages_are_those_of_a_simulated_channel():
    slots = [{"name": "a", "key": "a.pub"}]
    with pytest.raises(AirtuneError, match="emulated: outages are those of radio"):
        checked({"address": "a:1", "emulated": True, "device": slots}, ServerConfig, "test")


def frames(begin_s, count, every_s=0.1):
    return [(begin_s + every_s * number, 1500) for number in range(count)]


def heard(*parts):
    return tuple(map(np.array, zip(*sorted(chain(*parts)), strict=True)))


CHATTER = [(float(at), 365) for at in range(0, 30, 3)]


def test_the_time_of_an_upload_is_that_of_its_large_frames():
    seen_s, size_byte = heard(CHATTER, frames(11.0, 81))
    upload_s, upload_byte = upload_of(seen_s, size_byte, 8 * 81 * 1400)
    assert upload_byte == 81 * 1500 + 3 * 365 and upload_s == pytest.approx(8.1, rel=1e-3)
    assert upload_of(seen_s[size_byte < 1000], size_byte[size_byte < 1000], 1e5) == (None, 0)
    assert upload_of(np.zeros(0), np.zeros(0, dtype=np.int64), 1e5) == (None, 0)


def test_what_is_left_of_the_last_rounds_upload_is_not_part_of_it_and_a_pause_within_it_is():
    payload_bit = 8 * 81 * 1400
    alone = upload_of(*heard(CHATTER, frames(11.0, 81)), payload_bit)
    assert upload_of(*heard(CHATTER, frames(2.0, 60), frames(11.0, 81)), payload_bit) == alone
    upload_s, upload_byte = upload_of(*heard(CHATTER, frames(5.0, 30), frames(14.0, 51)), payload_bit)
    assert upload_s == pytest.approx(14.1, rel=1e-2) and upload_byte > 81 * 1500
    assert upload_of(*heard(frames(5.0, 30)), payload_bit) == (
        None,
        30 * 1500,
    )  # less than the payload: it did not come


def test_figures_by_device_and_by_size(tmp_path):
    row = {"t": 0, "device": "a", "payload_bit": 100, "rate_bit_per_s": 50.0, "predicted_s": 2.0, "measured_s": 3.0}
    row |= {"wire_bit": 110, "faded": False}
    lost = {**row, "t": 1, "measured_s": None, "faded": True}
    (tmp_path / ROWS).write_text("".join(json.dumps(one) + "\n" for one in (row, lost, {**lost, "device": "b"})))
    told = told_by("device", read_uploads(tmp_path))
    assert (told["a"].arrived, told["a"].lost, told["a"].slower, told["a"].framing) == (1, 1, 1.5, 1.1)
    assert (told["b"].arrived, told["b"].lost) == (0, 1) and np.isnan(told["b"].measured_s)
    assert [(one.arrived, one.lost) for one in told_by("payload_bit", read_uploads(tmp_path)).values()] == [(1, 2)]
