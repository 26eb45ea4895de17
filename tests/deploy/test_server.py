"""A federation of real devices in one process: equal to the simulated one, unmoved by faults, resumed after a crash."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from airtune.deploy.messages import answer_of, part_of
from airtune.deploy.server import serve
from airtune.experiment import run
from airtune.record import RunFolder
from airtune.types import AirtuneError


def assert_alike(one, other):
    """Equal rows and weights to rounding: what a device trains is laid out anew in memory by its way there."""
    ours, theirs = RunFolder.open(one), RunFolder.open(other)
    for mine, yours in (
        (ours.read_rounds(), theirs.read_rounds()),
        (ours.read_devices(), theirs.read_devices()),
    ):
        assert len(mine) == len(yours)
        for row, expected in zip(mine, yours, strict=True):
            for name, value in expected.items():
                near = isinstance(value, float) or (isinstance(value, list) and float in map(type, value))
                assert row[name] == (pytest.approx(value, rel=1e-5) if near else value), name
    a, b = load_file(one / "state.safetensors"), load_file(other / "state.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)


def events_of(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("source", ["prior", "estimated"])
def test_equals_the_simulated_fleet(tiny_config, deployment, tmp_path, source):
    config = tiny_config(tmp_path / "simulated", constants={"source": source})
    run(config)
    folder, hall = deployment(config)
    serve(folder, hall, by_key=True)
    assert_alike(folder / "run", tmp_path / "simulated")
    lost = {row["lost"] for row in RunFolder.open(folder / "run").read_devices()}
    assert lost <= {None, "faded: the simulated channel lost it"}


def test_what_cannot_be_right_is_lost_with_its_reason_and_never_averaged(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "unused", rounds=3)
    folder, hall = deployment(config)
    spoiled = {0: b"garbage", 1: b"\0" * 10_000_000, 2: "the process died", 3: None}
    sent = {}

    def spoil(device, t, answer):
        training = len(answer) > 5000
        if t == 1 and training and device in spoiled:
            sent[device] = spoiled[device]
            return spoiled[device]
        return answer

    hall.spoil = spoil
    serve(folder, hall, by_key=True)
    rows = [row for row in RunFolder.open(folder / "run").read_devices() if row["t"] == 1 and row["device"] in sent]
    kinds = {0: "malformed:", 1: "oversized:", 2: "missing: the process died", 3: "late or missing:"}
    assert sent
    for row in rows:
        assert not row["delivered"] and row["lost"].startswith(kinds[row["device"]])
    noted = {event["device"] for event in events_of(folder) if event["event"] == "lost"}
    assert noted == {f"d{device}" for device in sent}


def test_a_killed_server_goes_on_from_its_checkpoint(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "simulated")
    run(config)
    folder, hall = deployment(config)
    real = hall.ask

    class Killed(BaseException):
        pass

    def killed(blobs, t, timeout_s):
        if t == 2 and any(len(blob) > 5000 for blob in blobs.values()):
            raise Killed
        return real(blobs, t, timeout_s)

    hall.ask = killed
    with pytest.raises(Killed):
        serve(folder, hall, by_key=True)
    hall.ask = real
    serve(folder, hall, by_key=True)
    assert_alike(folder / "run", tmp_path / "simulated")
    assert [e["event"] for e in events_of(folder) if e["event"] in ("started", "resumed", "finished")] == [
        "started", "resumed", "finished"
    ]  # fmt: skip


def test_devices_leave_and_come_back(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "unused", world={"deadline_s": 4.0})
    folder, hall = deployment(config, min_devices=4, radio="measured")
    real = hall.nodes

    def nodes():
        hall.away = {0, 1} if max((t for t, *_ in hall.sent), default=-1) == 0 else set()
        return real()

    hall.nodes = nodes
    summary = serve(folder, hall, by_key=True)
    assert summary["rounds"] == 4
    events = [(e["event"], e.get("device")) for e in events_of(folder)]
    assert ("left", "d0") in events and events.count(("joined", "d0")) == 2


def test_measured_devices_replace_their_class(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "unused", rounds=2, world={"deadline_s": 4.0}, policy={"name": "traditional"})
    folder, hall = deployment(config, radio="measured")
    hall.trainers[0]._config = dataclasses.replace(hall.trainers[0]._config, uplink_bit_per_s=2e5, kind="vehicle")
    serve(folder, hall, by_key=True)
    devices = RunFolder.open(folder / "run").read_devices()
    assert {row["kind"] for row in devices if row["device"] == 0} == {"vehicle"}
    assert devices[0]["gain"] != devices[1]["gain"] == devices[2]["gain"]
    told = json.loads((folder / "devices.json").read_text())
    assert told["d0"]["uplink_bit_per_s"] == 2e5 and told["d1"]["flop_per_s"] > 0
    assert {row["energy_source"] for row in devices} <= {"computed", "rapl", "battery", "none"}


def test_a_key_that_is_not_listed_takes_no_part(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "unused", rounds=1)
    folder, hall = deployment(config, min_devices=5)
    (folder / "d5.pub").write_text("ssh another")
    serve(folder, hall, by_key=True)
    assert {(e["event"], e.get("device")) for e in events_of(folder)} >= {("refused", "node 105")}
    assert not any(device == 5 for _, device, _ in hall.sent)


def test_without_keys_devices_are_known_by_name(tiny_config, deployment, tmp_path):
    config = tiny_config(tmp_path / "simulated", rounds=2)
    run(config)
    folder, hall = deployment(config, secure=False)
    serve(folder, hall, by_key=False)
    assert_alike(folder / "run", tmp_path / "simulated")


def private(mechanism, **more):
    return {"mechanism": mechanism, "clip_norm": 0.02, "noise_multiplier": 0.01, "delta": 1e-3, **more}


@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_devices_clip_and_blur_as_simulated_ones_do(tiny_config, deployment, tmp_path, mechanism):
    pytest.importorskip("dp_accounting")
    config = tiny_config(tmp_path / "simulated", privacy=private(mechanism))
    run(config)
    folder, hall = deployment(config)
    told = []

    def listen(device, t, answer):
        told.append(answer_of(answer))
        return answer

    hall.spoil = listen
    serve(folder, hall, by_key=True)
    assert_alike(folder / "run", tmp_path / "simulated")
    updates = [(answer, part_of(tensors, "delta/")) for answer, tensors in told if answer.kind == "update"]
    assert updates and {answer.loss for answer, _ in updates} == {None}
    norms = [sum(float(one.double().square().sum()) for one in delta.values()) ** 0.5 for _, delta in updates]
    assert max(norms) == pytest.approx(0.02, rel=1e-5) if mechanism == "central" else min(norms) > 0.02
    assert RunFolder.open(folder / "run").read_rounds()[-1]["epsilon"] > 0


def test_an_update_that_was_not_clipped_is_lost(tiny_config, deployment, tmp_path):
    pytest.importorskip("dp_accounting")
    folder, hall = deployment(tiny_config(tmp_path / "unused", rounds=2, privacy=private("central")))
    trainer = hall.trainers[0]
    made = trainer._made
    trainer._bench = lambda setup: dataclasses.replace(made(setup), guard=None)
    serve(folder, hall, by_key=True)
    rows = [row for row in RunFolder.open(folder / "run").read_devices() if row["device"] == 0 and row["module"]]
    assert rows and all(row["lost"].startswith("too large") for row in rows)


def test_noise_of_a_known_seed_is_for_trials_and_a_device_may_ask_for_more(tiny_config, deployment, tmp_path):
    pytest.importorskip("dp_accounting")
    folder, hall = deployment(tiny_config(tmp_path / "unused", privacy=private("local")), radio="measured")
    with pytest.raises(AirtuneError, match='server and devices know the seed; it must be "system"'):
        serve(folder, hall, by_key=True)
    assert not (folder / "run").exists()
    for name in ("run.toml", "server.toml"):
        (folder / name).write_text((folder / name).read_text().replace('"seeded"', '"system"'))
    server = folder / "server.toml"
    server.write_text(server.read_text().replace("min_devices = 6", "min_devices = 5"))
    for device, least in ((0, 0.02), (1, 0.01)):
        trainer = hall.trainers[device]
        trainer._config = dataclasses.replace(trainer._config, local_noise=least)
    serve(folder, hall, by_key=True)
    joined = {event["device"] for event in events_of(folder) if event["event"] == "joined"}
    assert joined == {f"d{k}" for k in range(1, 6)}
    refused = [event["reason"] for event in events_of(folder) if event["event"] == "refused"]
    assert refused and all("d0 takes part only with local privacy" in reason for reason in refused)
