"""The health of runs under way: what a folder shows, and what a person sees."""

import json
import os

import pytest

from airtune.cli import run_cli
from airtune.commands.status import SHOWN, render
from airtune.experiment import run
from airtune.health import DeviceHealth, Health, health_of
from airtune.record import RunFolder
from airtune.tables import NONE


@pytest.fixture(scope="session")
def finished(tiny_config, tmp_path_factory):
    """A finished run of four rounds."""
    path = tmp_path_factory.mktemp("health") / "run"
    run(tiny_config(path))
    return path


def shown(health, capsys):
    from rich.console import Console

    Console(width=200).print(render(health))
    return capsys.readouterr().out


def test_a_finished_run(finished):
    written = (finished / "rounds.jsonl").stat().st_mtime
    health = health_of(finished, written + 7.0)
    rounds, devices = (RunFolder.open(finished).read_rounds(), RunFolder.open(finished).read_devices())
    assert (health.state, health.done, health.rounds, health.left_s) == ("finished", 4, 4, None)
    assert health.age_s == pytest.approx(7.0)
    assert (health.scheduled, health.delivered) == (
        sum(row["scheduled"] for row in rounds),
        sum(row["delivered"] for row in rounds),
    )
    assert health.energy_j == rounds[-1]["spent_j"]
    assert health.events == ()
    for device in health.devices:
        mine = [row for row in devices if str(row["device"]) == device.name]
        assert device.scheduled == sum(row["module"] > 0 for row in mine)
        assert device.last_delivered == max((row["t"] + 1 for row in mine if row["delivered"]), default=None)
        assert (device.connected, device.lost, device.battery) == (None, None, None)
    assert sum(device.spent_j for device in health.devices) == pytest.approx(health.energy_j)


def test_stopped_or_running_is_whether_somebody_holds_the_lock(finished, tmp_path):
    path = copy_of(finished, tmp_path / "cut")
    assert health_of(path, 0.0).state == "stopped"
    with RunFolder.open(path, write=True):
        health = health_of(path, 0.0)
        assert health.state == "running"
        assert health.left_s == pytest.approx(2 * health.round_s)
    assert health_of(path, 0.0).state == "stopped"
    with RunFolder.open(path, write=True):  # looking took no lock away
        pass


def copy_of(finished, path, rounds=2):
    """The run as it was after some of its rounds."""
    path.mkdir()
    for name in ("run.json", "config.toml", "environment.json"):
        (path / name).write_bytes((finished / name).read_bytes())
    for name in ("rounds.jsonl", "devices.jsonl", "timings.jsonl"):
        lines = (finished / name).read_text().splitlines(keepends=True)
        (path / name).write_text("".join(line for line in lines if json.loads(line)["t"] < rounds))
    return path


def test_before_the_first_round(finished, tmp_path, capsys):
    health = health_of(copy_of(finished, tmp_path / "new", rounds=0), 0.0)
    assert (health.done, health.age_s, health.round_s, health.accuracy, health.devices) == (0, None, None, None, ())
    assert "round 0/4" in shown(health, capsys)


def test_a_deployment_has_names_and_events(finished, tmp_path, capsys):
    home = tmp_path / "deployment"
    home.mkdir()
    copy_of(finished, home / "run", rounds=4)
    count = len(health_of(finished, 0.0).devices)
    names = [f"car-{k}" for k in range(count)]
    (home / "server.toml").write_text("device = [" + ", ".join(f'{{ name = "{name}" }}' for name in names) + "]")
    (home / "devices.json").write_text(json.dumps({names[1]: {"battery": 0.42}}))
    rows = [json.loads(line) for line in (home / "run/devices.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"lost": "late or missing" if row["device"] == 0 and row["t"] == 1 else None}
    (home / "run/devices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [
        {"at": "2026-01-02T03:04:05.678+00:00", "event": "started"},
        {"at": "2026-01-02T03:05:05.678+00:00", "event": "joined", "t": 0, "device": names[0]},
        {"at": "2026-01-02T03:06:05.678+00:00", "event": "left", "t": 2, "device": names[0]},
        {"at": "2026-01-02T03:07:05.678+00:00", "event": "lost", "t": 3, "device": names[1], "reason": "malformed: x"},
    ]
    (home / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"at": "2026')
    health = health_of(home, 0.0, events=2)
    assert [event["event"] for event in health.events] == ["left", "lost"]
    assert [device.name for device in health.devices] == names
    assert (health.devices[0].connected, health.devices[0].lost) == (False, "late or missing")
    assert health.devices[1].battery == 0.42
    text = shown(health, capsys)
    assert "2026-01-02 03:07:05 round 4 lost car-1: malformed: x" in text
    assert "2026-01-02 03:06:05 round 3 left car-0" in text
    assert "42 %" in text and "late or missing" in text


def test_many_devices_are_cut_to_those_that_deliver_least(capsys):
    def device(k):
        return DeviceHealth(f"d{k}", "sensor", None, 10, 9 if k % 2 else 1, 3, None, 1.0, None)

    devices = tuple(device(k) for k in range(2 * SHOWN))
    health = Health(os.curdir, "running", 5, 10, 1.0, 1.0, 0.5, 1.0, 10, 5, 1.0, devices, ())
    text = shown(health, capsys)
    assert f"those {SHOWN} of {2 * SHOWN} devices that delivered least" in text
    assert "d0 " in text and "d1 " not in text and NONE not in text.split("Energy")[-1]


def test_the_command(finished, tmp_path, capsys):
    assert run_cli(["status", str(finished)]) == 0
    assert "finished   round 4/4" in capsys.readouterr().out.replace("\n", "")
    assert run_cli(["status", str(finished), "--watch", "0.1"]) == 0  # ends with the run
    for wrong, told in (
        ([str(tmp_path)], "is not a run folder: it has no run.json"),
        ([str(finished), "--watch", "0"], "--watch: more than 0 seconds would be right, got 0"),
        ([str(finished), "--events", "-1"], "--events: at least 0 would be right, got -1"),
    ):
        assert run_cli(["status", *wrong]) == 2
        assert told in capsys.readouterr().err


def test_a_deployment_whose_first_round_has_not_begun(tmp_path, capsys):
    (tmp_path / "server.toml").write_text("device = []\n")
    (tmp_path / "run.toml").write_text("rounds = 7\n")
    for events in ("", '{"at": "2026-01-01T00:00:00+00:00", "event": "waiting", "reason": "1 devices are there"}\n'):
        (tmp_path / "events.jsonl").write_text(events)
        run_cli(["status", str(tmp_path)])
        shown = " ".join(capsys.readouterr().out.split())
        assert "waiting" in shown and "round 0/7" in shown
        assert ("1 devices are there" in shown) is bool(events)
