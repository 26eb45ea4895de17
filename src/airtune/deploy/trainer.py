"""The device's side: keeps model and samples, and answers the server's tasks one at a time."""

import dataclasses
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.build import Learner, learner_of
from airtune.config import PrivacyConfig
from airtune.deploy.config import DeviceConfig
from airtune.deploy.energy import EnergyMeter, battery_charge, memory_byte
from airtune.deploy.messages import Standing, Task, answer_blob
from airtune.deploy.wire import Malformed
from airtune.learning.batches import Study
from airtune.learning.partition import partition, strata
from airtune.learning.privacy import Guard, guard_of
from airtune.settings import load
from airtune.types import AirtuneError, Lesson


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    """What a device trains with in a run."""

    learner: Learner
    study: Study
    part: NDArray[np.int64]
    """Its samples."""
    guard: Guard | None
    """Makes of an update what is sent under differential privacy."""

    def batches(self, t: int, device: int) -> list[NDArray[np.int64]]:
        return self.study.batches(self.part, t, device)

    def tokens(self, t: int, device: int) -> float:
        """N_k of round t; at least 1, for a controller divides by what follows from it."""
        lengths = self.learner.train.lengths
        return max(float(sum(lengths[index].sum() for index in self.batches(t, device))), 1.0)


class Trainer:
    """Answers tasks; whatever goes wrong becomes an answer, too.

    Args:
        config: device.toml, its paths absolute.
        throughput: measures the uplink [bit/s]; None where nothing does.
        links_lost: counts the connections that were lost.
    """

    def __init__(
        self,
        config: DeviceConfig,
        throughput: Callable[[], float | None] = lambda: None,
        links_lost: Callable[[], int] = lambda: 0,
    ) -> None:
        self._config = config
        self._throughput = throughput
        self._links_lost = links_lost
        self._bench = lru_cache(maxsize=1)(self._made)
        self._flop_per_s: float | None = None
        self._power_w: float | None = None

    def answer(self, blob: bytes) -> bytes:
        """The answer to one task."""
        try:
            task = Task.of(blob)
        except Malformed as fault:
            return _failure(Task(0, -1, {}), f"the task is malformed: {fault}")
        try:
            bench = self._bench(json.dumps(task.setup, sort_keys=True))
            return self._trained(bench, task) if task.module else self._told(bench, task)
        except Exception as error:
            kind = "" if isinstance(error, AirtuneError) else f"{type(error).__name__}: "
            return _failure(task, f"{kind}{error}")

    def _made(self, setup: str) -> _Bench:
        """Model and samples for a run, as the device has them."""
        own, config = self._config, load(json.loads(setup), "the server's configuration")
        if own.local_noise is not None and not _private(config.privacy, own.local_noise):
            raise AirtuneError(
                f"{own.name} takes part only with local privacy, noise of the system and a multiplier of at least "
                f"{own.local_noise:g}"
            )
        config = dataclasses.replace(
            config,
            data_dir=own.data_dir or config.data_dir,
            model=config.model if own.model is None else dataclasses.replace(config.model, name=str(own.model)),
            learning=dataclasses.replace(config.learning, device=own.compute),
        )
        learner = learner_of(config)
        part = np.arange(len(learner.train))
        if own.share is not None:
            label = strata(learner.train.label, learner.data.kind, config.partition)
            parts = partition(label, learner.train.group, config.partition, config.fleet.devices, config.seed)
            if own.share >= len(parts):
                raise AirtuneError(f"share {own.share}: the run deals its samples to devices 0 to {len(parts) - 1}")
            part = parts[own.share]
        study = Study(
            learner.engine,
            learner.train,
            config.seed,
            config.rounds,
            measured=config.constants.source == "estimated",
            classes=learner.data.kind == "classification",
        )
        return _Bench(learner, study, part, guard_of(config.privacy, config.seed))

    def _trained(self, bench: _Bench, task: Task) -> bytes:
        pupil = bench.study.pupil(task.lesson or Lesson({}), bench.batches(task.t, task.device), task.t)
        meter = EnergyMeter()
        trained = pupil.train(bench.learner.engine, bench.learner.train)
        spent = meter.read()
        flop = trained.tokens * float(bench.learner.modules.flop_per_token[task.module - 1])
        self._flop_per_s = flop / spent.seconds
        self._power_w = None if spent.energy_j is None else spent.energy_j / spent.seconds
        delta, loss = trained.delta, trained.loss
        if bench.guard is not None:
            delta, loss = bench.guard.upload(delta, task.t, task.device), None
        told = {"loss": loss, "compute_j": spent.energy_j, "energy_source": spent.source}
        return answer_blob(self._about(bench, task, "update", task.t + 1) | told, delta, trained.reading)

    def _told(self, bench: _Bench, task: Task) -> bytes:
        return answer_blob(self._about(bench, task, "report", task.t), {})

    def _about(self, bench: _Bench, task: Task, kind: str, t: int) -> dict[str, Any]:
        """An answer of this kind, with what the device says of itself for round t."""
        config = self._config
        device = task.device if task.device >= 0 else config.share or 0
        standing = Standing(
            name=config.name,
            t=t,
            kind=config.kind,
            samples=len(bench.part),
            tokens=bench.tokens(t, device),
            model=bench.learner.source.sha256,
            memory_byte=config.memory_byte or memory_byte(),
            flop_per_s=self._flop_per_s,
            compute_power_w=self._power_w or None,
            uplink_bit_per_s=config.uplink_bit_per_s or self._throughput(),
            links_lost=self._links_lost(),
            battery=battery_charge(),
        )
        return {
            "kind": kind,
            "t": task.t,
            "device": task.device,
            "module": task.module,
            "standing": dataclasses.asdict(standing),
        }


def _private(privacy: PrivacyConfig, multiplier: float) -> bool:
    """Whether what a device sends carries at least so much noise that nobody else can know."""
    secret = privacy.mechanism == "local" and privacy.noise == "system"
    return secret and privacy.noise_multiplier >= multiplier


def _failure(task: Task, reason: str) -> bytes:
    about = {"kind": "failure", "t": task.t, "device": task.device, "module": task.module}
    return answer_blob(about | {"reason": reason[:400]}, {})
