"""A deployment in one process: a folder, devices that answer, and an exchange that hands blobs across."""

import dataclasses
from pathlib import Path

import pytest
import tomli_w

from airtune.config import RunConfig
from airtune.deploy.config import DeviceConfig
from airtune.deploy.federation import Node
from airtune.deploy.trainer import Trainer
from airtune.settings import dump


def without_none(table):
    return {k: without_none(v) if isinstance(v, dict) else v for k, v in table.items() if v is not None}


class Hall:
    """An exchange over trainers in this process; node 100 + k is device k.

    `spoil(device, t, answer)` may put something else in place of an answer: bytes, a reason, or None for silence.
    """

    def __init__(self, trainers, spoil=lambda device, t, answer: answer):
        self.trainers = trainers
        self.spoil = spoil
        self.away = set()
        self.sent = []

    def nodes(self):
        return [Node(100 + k, f"ssh {k}") for k in self.trainers if k not in self.away]

    def ask(self, blobs, t, timeout_s):
        answers = {}
        for node, blob in blobs.items():
            self.sent.append((t, node - 100, blob))
            answer = self.spoil(node - 100, t, self.trainers[node - 100].answer(blob))
            if answer is not None and node - 100 not in self.away:
                answers[node] = answer
        return answers


@pytest.fixture
def deployment(tmp_path):
    """`deployment(config, **server)`: folder and hall of a run, each device with its share of the samples."""

    def make(config: RunConfig, **server) -> tuple[Path, Hall]:
        folder = tmp_path / "deployment"
        folder.mkdir()
        run = without_none(dump(dataclasses.replace(config, out=None)))
        (folder / "run.toml").write_text(tomli_w.dumps(run))
        count = config.fleet.devices
        slots = [{"name": f"d{k}", "key": f"d{k}.pub"} for k in range(count)]
        for k in range(count):
            (folder / f"d{k}.pub").write_text(f"ssh {k} comment\n")
        values = {"address": "localhost:1", "min_devices": count, "radio": "simulated", "device": slots, **server}
        (folder / "server.toml").write_text(tomli_w.dumps(values))
        trainers = {
            k: Trainer(
                DeviceConfig(name=f"d{k}", server="localhost:1", secure=False, share=k, data_dir=config.data_dir)
            )
            for k in range(count)
        }
        return folder, Hall(trainers)

    return make
