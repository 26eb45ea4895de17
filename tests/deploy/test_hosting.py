"""Processes: what is started again, what ends with what, and the files of a deployment. Flower is played by scripts."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from airtune.cli import run_cli
from airtune.deploy import children, hosting
from airtune.deploy.children import end, environment, free_port, is_alive, start, stop
from airtune.deploy.config import ServerConfig, checked, read_toml
from airtune.deploy.device import Link
from airtune.deploy.folder import read_device, slots_of, write_folder
from airtune.deploy.hosting import Host
from airtune.deploy.refusals import Refusals
from airtune.deploy.server import key_line, run_config
from airtune.types import AirtuneError


def wait_until(there, seconds=60.0):
    limit = time.monotonic() + seconds
    while not there() and time.monotonic() < limit:
        time.sleep(0.05)
    assert there()


@pytest.fixture
def folder(tiny_config, tmp_path):
    """A deployment without TLS of two devices."""
    config = tiny_config(tmp_path / "unused", fleet={"devices": 2})
    values = {"address": "localhost:9443", "secure": False, "device": slots_of(config)}
    server = checked(values, ServerConfig, "test")
    write_folder(tmp_path / "made", config, server, secure=False, shares=True, threads=1)
    return tmp_path / "made"


def test_what_init_writes_can_be_read_again(folder, tiny_config, tmp_path):
    assert run_config(folder).out == folder / "run"
    assert run_config(folder).learning == tiny_config(tmp_path).learning
    assert [slot.name for slot in read_toml(folder / "server.toml", ServerConfig).device] == ["device-0", "device-1"]
    device = read_device(folder / "devices" / "device-1" / "device.toml")
    assert (device.name, device.share, device.threads, device.secure) == ("device-1", 1, 1, False)
    with pytest.raises(AirtuneError, match="not empty"):
        write_folder(folder, run_config(folder), ServerConfig(address="a:1", secure=False, device=slots_of(
            run_config(folder))), secure=False, shares=True, threads=1)  # fmt: skip


def test_a_key_is_one_line(tmp_path):
    (tmp_path / "a.pub").write_text("ssh-kind AAAA somebody@somewhere\n")
    assert key_line(tmp_path / "a.pub") == "ssh-kind AAAA"
    for text in ("", "one", "\u00fc \u00fc"):
        (tmp_path / "b.pub").write_text(text)
        with pytest.raises(AirtuneError, match="no OpenSSH public key"):
            key_line(tmp_path / "b.pub")


def test_without_flower_a_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(children, "find_spec", lambda name: None)
    for arguments in (["init", "demo", "--out", str(tmp_path / "x")], ["local", "demo", "--out", str(tmp_path / "x")]):
        assert run_cli(["deploy", *arguments]) == 2
        assert capsys.readouterr().err.startswith("airtune: deploy needs Flower: pip install 'airtune[deploy]'")
    assert run_cli(["deploy", "fly"]) == 2
    assert "there are init, server, device and local" in capsys.readouterr().err
    assert run_cli(["deploy"]) == 0 and "airtune deploy COMMAND" in capsys.readouterr().out


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_a_child_ends_with_its_parent_even_by_sigkill(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from airtune.deploy.children import start\n"
        f"child = start({SLEEPER!r}, {{}}, Path({str(tmp_path / 'log')!r}))\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = int((tmp_path / "pid").read_text())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_alive(child))


def test_a_process_that_has_ended_but_was_not_waited_for_is_not_alive():
    process = subprocess.Popen(["true"])
    wait_until(lambda: not is_alive(process.pid))
    assert Path(f"/proc/{process.pid}").exists()
    process.wait()
    assert not is_alive(process.pid)


def test_only_the_program_that_is_meant_is_ended(tmp_path):
    process = start(SLEEPER, os.environ, tmp_path / "log")
    end(process.pid, "another-program")
    assert process.poll() is None
    stop(process)
    assert process.poll() == -signal.SIGTERM
    end(process.pid, "python")  # is gone already
    assert environment(tmp_path)["FLWR_TELEMETRY_ENABLED"] == "0" and free_port() > 0


def test_a_supernode_that_ends_is_started_again(folder, tmp_path, monkeypatch):
    config = read_device(folder / "devices" / "device-0" / "device.toml")
    starts = tmp_path / "starts"
    monkeypatch.setattr(Link, "_command", lambda self: ["sh", "-c", f"echo x >> {starts}"])
    link = Link(config, tmp_path, tmp_path / "door")
    monkeypatch.setattr(link._over, "wait", lambda seconds: time.sleep(0.05))
    link.start()
    wait_until(lambda: starts.exists() and len(starts.read_text().split()) >= 3)
    link.stop()
    link.join(10)
    assert not link.is_alive()


class Played(Host):
    """A host whose SuperLink sleeps and whose rounds are scripts, one for each start."""

    def __init__(self, folder, scripts):
        super().__init__(folder)
        self.scripts, self.asked, self.links = list(scripts), [], []
        self.lingering = None

    def _link(self):
        self.links.append(start(SLEEPER, os.environ, self.folder / "state" / "link.log"))
        return self.links[-1]

    def _flwr(self, *arguments):
        self.asked.append(arguments[0])
        if arguments[0] == "run":
            script = f"echo $$ > {self.folder}/state/server.pid; cd {self.folder}; {self.scripts.pop(0)}"
            process = subprocess.Popen(["sh", "-c", script])
            if "LINGER" in script:
                self.lingering = process
            else:
                process.wait(60)
        return {"run-id": "7"}


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(hosting, "need_flower", lambda: None)
    monkeypatch.setattr(Host, "_pause", lambda self: (self.beat(), time.sleep(0.02)))
    return Played


DONE = "mkdir -p run; echo '{}' > run/summary.json"


def test_rounds_that_die_are_started_again_until_the_summary(played, folder):
    host = played(folder, ["exit 9", "kill -9 $$", DONE])
    assert host.run() == folder / "run"
    assert host.asked == ["run", "stop", "run", "stop", "run"] and len(host.links) == 1
    assert (folder / "events.jsonl").read_text().count('"died"') == 2
    assert host.links[0].poll() is not None


def test_rounds_that_never_get_anywhere_are_given_up(played, folder, monkeypatch):
    monkeypatch.setattr(hosting, "ATTEMPTS", 3)
    progress = "mkdir -p run; echo x >> run/rounds.jsonl"
    host = played(folder, ["exit 9", "exit 9", progress, "exit 9", "exit 9", "exit 9"])
    with pytest.raises(AirtuneError, match="3 starts without a finished round"):
        host.run()
    assert not host.scripts


def test_a_port_in_use_is_told(folder, monkeypatch):
    monkeypatch.setattr(hosting, "need_flower", lambda: None)
    host = Host(folder)
    with socket.create_server(("127.0.0.1", 0)) as other:
        host._port = other.getsockname()[1]
        with pytest.raises(AirtuneError, match="something listens on port"):
            host.run()


def test_a_superlink_that_dies_is_started_again(played, folder):
    host = played(folder, ["exec sleep 600 # LINGER", DONE])
    host.beat = lambda: host.links and len(host.links) == 1 and host.links[0].kill()
    assert host.run() == folder / "run"
    assert len(host.links) == 2 and "SuperLink, with code -9" in (folder / "events.jsonl").read_text()
    host.lingering.kill()
    host.lingering.wait()


def test_what_the_user_must_mend_ends_it_with_its_line(played, folder):
    host = played(folder, ["echo 'data_dir: there is no folder x' > state/failure.txt"])
    with pytest.raises(AirtuneError, match="there is no folder x"):
        host.run()
    host = played(folder, [DONE])
    assert host.run() == folder / "run"


def test_whom_superlink_turned_away_is_told_once_a_minute(tmp_path):
    log, now = tmp_path / "superlink.log", [0.0]
    log.write_text('10.0.0.8:1 - "POST /v1/fleet/activate-node HTTP/1.1" 412\n')
    refusals = Refusals(log, lambda: now[0])
    assert list(refusals.new()) == []  # of an earlier process
    with log.open("a") as file:
        file.write('x INFO 10.0.0.9:5 - "POST /v1/fleet/activate-node HTTP/1.1" 412\n' * 3)
        file.write('x INFO 10.0.0.7:5 - "POST /v1/fleet/pull-messages HTTP/1.1" 401\n')
        file.write('x INFO 10.0.0.6:5 - "POST /v1/fleet/pull-messages HTTP/1.1" 200\nx 10.0.0.5:5 - "POST /v1/fl')
    assert list(refusals.new()) == [
        "a node at 10.0.0.9: its key is not listed", "a node at 10.0.0.7: its signature is not right"
    ]  # fmt: skip
    with log.open("a") as file:
        file.write(
            'eet/send-node-heartbeat HTTP/1.1" 401\nx 10.0.0.9:6 - "POST /v1/fleet/activate-node HTTP/1.1" 412\n'
        )
    assert list(refusals.new()) == ["a node at 10.0.0.5: its signature is not right"]
    now[0] = 61.0
    with log.open("a") as file:
        file.write('x 10.0.0.9:6 - "POST /v1/fleet/activate-node HTTP/1.1" 412\n')
    assert list(refusals.new()) == ["a node at 10.0.0.9: its key is not listed"]
    assert list(Refusals(tmp_path / "none").new()) == []
