"""What touches Flower itself; skipped where it is not installed. A federation over SuperLink is in the last test."""

import asyncio
import dataclasses
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import tomli_w

from airtune.deploy.server import key_line
from airtune.settings import dump

httpx = pytest.importorskip("httpx")
pytest.importorskip("flwr", reason="Flower is not installed here (docs/deploy.md)")


def test_a_blob_crosses_flowers_messages_unchanged():
    from airtune.deploy.flower.grid import disclosed, enclosed

    blob = bytes(range(256)) * 5000
    assert disclosed(enclosed(blob)) == blob
    assert disclosed({}) == b"" and disclosed({"blob": {"blob": None}}) == b""


def test_answers_are_told_from_errors_and_silence(monkeypatch):
    from flwr.app import Error, Message
    from flwr.supercore.task_identity import TaskIdentity

    from airtune.deploy.flower.grid import GridExchange, enclosed

    class Grid:
        def push_messages(self, messages):
            assert {message.metadata.ttl for message in messages} == {17.0}
            self.messages = dict(zip("012", messages, strict=True))
            for number, message in self.messages.items():
                message.metadata.__dict__["_message_id"] = number
            return list(self.messages)

        def pull_messages(self, ids):
            (number,) = ids
            message = self.messages[number]
            if number == "0":
                return [Message(content=enclosed(b"yes"), reply_to=message)]
            return [Message(Error(code=8, reason="it crashed"), reply_to=message)] if number == "1" else []

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    exchange = GridExchange(Grid())
    began = time.monotonic()
    assert exchange.ask({1: b"a", 2: b"b", 3: b"c"}, 4, 7.0) == {1: b"yes", 2: "it crashed"}
    assert 7.0 <= time.monotonic() - began < 12.0


def test_an_answer_that_is_half_there_holds_up_nobody_and_a_lost_superlink_is_told(monkeypatch):
    from flwr.app import Message
    from flwr.supercore.task_identity import TaskIdentity

    from airtune.deploy.flower.grid import GridExchange, enclosed

    class Grid:
        def push_messages(self, messages):
            self.messages = dict(zip("01", messages, strict=True))
            for number, message in self.messages.items():
                message.metadata.__dict__["_message_id"] = number
            return ["0", "1", None]

        def pull_messages(self, ids):
            if ids == ["0"]:
                time.sleep(30.0)
            return [Message(content=enclosed(b"whole"), reply_to=self.messages["1"])]

    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    began = time.monotonic()
    assert GridExchange(Grid()).ask({5: b"a", 6: b"b"}, 0, 2.0) == {6: b"whole"}
    assert time.monotonic() - began < 10.0
    monkeypatch.setattr(Grid, "pull_messages", lambda self, ids: {}[ids[0]])  # garbage that Flower stumbles over
    unread = "its answer cannot be read: KeyError"
    assert GridExchange(Grid()).ask({5: b"a", 6: b"b"}, 0, 20.0) == {5: unread, 6: unread}

    def gone(self, ids):
        raise httpx.ConnectError("no SuperLink")

    monkeypatch.setattr(Grid, "pull_messages", gone)
    with pytest.raises(httpx.ConnectError):
        GridExchange(Grid()).ask({5: b"a", 6: b"b"}, 0, 20.0)


def test_keys_and_certificates_are_what_flower_takes(tmp_path):
    from flwr.cli.supernode.register import try_load_public_key

    from airtune.deploy.flower.grid import GridExchange
    from airtune.deploy.flower.keys import write_certificates, write_device_key

    write_device_key(tmp_path / "device.key", tmp_path / "device.pub")
    assert (tmp_path / "device.key").stat().st_mode & 0o777 == 0o600
    told = try_load_public_key(tmp_path / "device.pub")
    grid = SimpleNamespace(get_nodes=lambda: [SimpleNamespace(node_id=5, public_key=told)])
    (node,) = GridExchange(grid).nodes()
    assert node.key == key_line(tmp_path / "device.pub")
    grid = SimpleNamespace(get_nodes=lambda: [SimpleNamespace(node_id=5, public_key=key) for key in (b"", b"5")])
    assert [node.key for node in GridExchange(grid).nodes()] == [None, None]
    write_certificates(tmp_path / "c", "10.1.2.3")
    assert (tmp_path / "c" / "server.key").stat().st_mode & 0o777 == 0o600
    context = ssl.create_default_context(cafile=str(tmp_path / "c" / "ca.crt"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "c" / "server.crt", tmp_path / "c" / "server.key")
    for name, right in (("10.1.2.3", True), ("localhost", True), ("127.0.0.1", True), ("10.1.2.4", False)):
        assert shakes_hands(context, server, name) is right


def shakes_hands(context, server, name):
    """Whether a client that wants `name` and a server agree, over memory."""
    ends = [ssl.MemoryBIO() for _ in range(4)]
    client = context.wrap_bio(ends[0], ends[1], server_hostname=name)
    other = server.wrap_bio(ends[2], ends[3], server_side=True)
    done = [False, False]
    for _ in range(6):
        for i, side in enumerate((client, other)):
            try:
                side.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError:
                return False
        ends[2].write(ends[1].read())
        ends[0].write(ends[3].read())
    return all(done)


@pytest.mark.parametrize(
    "path, client, allowed",
    [
        ("/v1/fleet/pull-messages", "10.0.0.9", True),
        ("/health", "10.0.0.9", True),
        ("/v1/control/start-run", "10.0.0.9", False),
        ("/v1/runtime/acquire-task", "10.0.0.9", False),
        ("/docs", "10.0.0.9", False),
        ("/v1/control/start-run", "127.0.0.1", True),
        ("/v1/control/start-run", "::1", True),
        ("/v1/control/start-run", "::ffff:127.0.0.1", True),
        ("/v1/control/start-run", "::ffff:10.0.0.9", False),
        ("/v1/control/start-run", "testclient", False),
    ],
)
def test_other_machines_reach_the_devices_api_alone(path, client, allowed):
    from flwr.superlink import main

    from airtune.deploy.flower.superlink import Closed, close

    answered = []

    async def app(scope, receive, send):
        answered.append("app")

    async def send(message):
        answered.append(message.get("status"))

    scope = {"type": "http", "path": path, "client": (client, 5), "method": "POST", "headers": []}
    asyncio.run(Closed(app)(scope, None, send))
    assert answered[0] == ("app" if allowed else 403)
    before = main._get_middleware
    try:
        close(main)
        assert main._get_middleware()[0].cls is Closed and len(main._get_middleware()) == len(before()) + 1
    finally:
        main._get_middleware = before


@pytest.mark.skipif("AIRTUNE_SLOW" not in os.environ, reason="minutes of processes; set AIRTUNE_SLOW=1 to run it")
def test_a_federation_over_superlink_survives_the_death_of_its_server(tiny_config, tmp_path):
    from airtune.deploy.children import free_port
    from airtune.experiment import run

    changes = {"rounds": 3, "fleet": {"devices": 2}, "partition": {"min_samples": 100}}
    config = tiny_config(tmp_path / "simulated", **changes)
    run(config)
    plain = {k: v for k, v in dump(dataclasses.replace(config, out=None)).items() if v is not None}
    file = tmp_path / "tiny.toml"
    file.write_text(tomli_w.dumps(_without_none(plain)))
    out = tmp_path / "real"
    command = [sys.executable, "-c", "from airtune.cli import main; main()", "deploy", "local", str(file)]
    command += ["--out", str(out), "--radio", "simulated", "--min-devices", "2", "--overhead-s", "120"]
    command += ["--address", f"localhost:{free_port()}"]
    process = subprocess.Popen(command)
    limit = time.monotonic() + 900
    while not (out / "run" / "rounds.jsonl").exists() and time.monotonic() < limit:
        time.sleep(1)
    os.kill(int((out / "state" / "server.pid").read_text()), signal.SIGKILL)
    assert process.wait(900) == 0
    events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert events.count("died") >= 1 and "resumed" in events and events[-1] == "finished"
    rows = [json.loads(line)["t"] for line in (out / "run" / "rounds.jsonl").read_text().splitlines()]
    assert rows == [0, 1, 2]


def _without_none(table):
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}
