"""A fleet of real devices: decisions go out as tasks, and what comes back in time and as it must be is delivered."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airtune.config import RunConfig
from airtune.control.evaluation import chosen
from airtune.deploy.federation import Federation
from airtune.deploy.messages import Limits, Task
from airtune.deploy.validation import SLACK, Accepted, Expected, Refused, largest_change
from airtune.learning.engine import rates_at
from airtune.learning.privacy import guard_of
from airtune.physics.cost import upload_energy_j
from airtune.types import Air, Decision, FloatK, Lessons, Note, Observation, Outcome, Problem, Report, Update


class Uplinks(Protocol):
    """What the devices' answers travel through."""

    def round(self, t: int, limits: Mapping[int, Limits], faded: Collection[int]) -> AbstractContextManager[None]:
        """Within it uplinks have the rates of their limits, by device, and those in `faded` lose what they carry."""
        ...


class DeployedFleet:
    """Carries a decision out on the devices of a federation, which are asked all at once.

    A late, missing, malformed, oversized, foreign, wrongly shaped, non-finite or too large update is a lost delivery
    with its reason; its energy is charged all the same. Devices that sit the round out are asked what they have to say
    for the next one.

    Args:
        federation: the devices.
        config: the run's.
        modules: M.
        weight: ω_k, shape K.
        wait_s: how long answers may take.
        air: decides which of the updates that came are lost all the same, and energies are the model's; None for real
            deliveries and measured energies.
        uplinks: shapes what the devices send through, and cuts it where the air loses an upload.
    """

    def __init__(
        self,
        federation: Federation,
        config: RunConfig,
        modules: int,
        weight: FloatK,
        wait_s: float,
        air: Air | None,
        uplinks: Uplinks | None = None,
    ) -> None:
        self._federation = federation
        self._config = config
        self._modules = modules
        self._weight = weight
        self._wait_s = wait_s
        self._air = air
        self._uplinks = uplinks
        self._guard = guard_of(config.privacy, config.seed)

    def execute(self, lessons: Lessons, decision: Decision, problem: Problem, observation: Observation) -> Outcome:
        """Send the tasks, wait for the answers, and let what is right through."""
        t, scheduled = problem.t, decision.module > 0
        tasks: dict[int, Task] = {}
        expected: dict[int, Expected] = {}
        for k in map(int, np.flatnonzero(scheduled)):
            tasks[k], expected[k] = self._training(lessons, decision, problem, k)
        if t + 1 < problem.rounds:
            for k in map(int, np.flatnonzero(observation.available & ~scheduled)):
                tasks[k] = Task(t + 1, k, self._federation.setup)
                expected[k] = Expected(t + 1, k, 0, {}, 0.0, self._modules, model=self._federation.model)
        reached, airtime_s = scheduled, np.maximum(chosen(problem.uplink_s, decision.module), 0.0)
        if self._air is not None and not decision.error_free:
            sent = self._air.transmit(decision, problem)
            reached, airtime_s = sent.delivered, sent.airtime_s
        with self._shaped(t, tasks, np.flatnonzero(scheduled & ~reached)):
            results = self._federation.ask(tasks, expected, self._wait_s, t) if tasks else {}
        transmit_j = upload_energy_j(decision.power_w, airtime_s, problem.pa_efficiency, problem.circuit_power_w)
        notes: dict[int, Note] = {}
        accepted: dict[int, Accepted] = {}
        compute_j = chosen(problem.compute_j, decision.module)
        for k in map(int, np.flatnonzero(scheduled)):
            result, source = results[k], "computed"
            if result.answer is not None and result.answer.compute_j is not None and self._air is None:
                compute_j[k], source = result.answer.compute_j, result.answer.energy_source
            if isinstance(result, Refused):
                self._federation.journal.note("lost", t, self._federation.slots[k].name, result.reason)
                notes[k] = Note(result.reason, source)
            elif reached[k]:
                notes[k], accepted[k] = Note(None, source), result
            else:
                notes[k] = Note("faded: the simulated channel lost it", source)
        delivered = np.zeros_like(scheduled)
        delivered[list(accepted)] = True
        return Outcome(
            scheduled=scheduled,
            delivered=delivered,
            compute_j=compute_j,
            transmit_j=np.zeros_like(transmit_j) if decision.error_free else np.where(scheduled, transmit_j, 0.0),
            tokens=np.where(scheduled, observation.tokens, 0.0),
            updates=self._updates(accepted),
            notes=notes,
        )

    def _shaped(self, t: int, tasks: Mapping[int, Task], faded: NDArray[np.intp]) -> AbstractContextManager[None]:
        """Uplinks at the rates of the tasks, if there is anything that shapes them."""
        if self._uplinks is None:
            return nullcontext()
        limits = {k: task.limits for k, task in tasks.items() if task.limits is not None}
        return self._uplinks.round(t, limits, set(map(int, faded)))

    def _training(self, lessons: Lessons, decision: Decision, problem: Problem, k: int) -> tuple[Task, Expected]:
        """What a scheduled device is asked, and what its answer must be."""
        module = int(decision.module[k])
        uplink_s = max(float(problem.uplink_s[k, module - 1]), 0.0)
        limits = Limits(
            power_w=float(decision.power_w[k]),
            bandwidth_hz=float(decision.bandwidth_hz[k]),
            uplink_s=uplink_s,
            rate_bit_per_s=float(problem.payload_bit[k, module - 1]) / uplink_s if uplink_s else 0.0,
        )
        lesson = lessons(k, module)
        task = Task(problem.t, k, self._federation.setup, module, limits, lesson)
        return task, Expected(
            t=problem.t,
            device=k,
            module=module,
            shapes={name: tuple(tensor.shape) for name, tensor in lesson.start.items()},
            norm_max=self._largest(lesson.start, problem),
            modules=self._modules,
            measured=self._config.constants.source == "estimated",
            model=self._federation.model,
        )

    def _largest(self, start: Mapping[str, Tensor], problem: Problem) -> float:
        """Norm of an update that nothing honest exceeds."""
        if self._guard is not None:
            return SLACK * self._guard.largest(sum(tensor.numel() for tensor in start.values()))
        learning = self._config.learning
        return largest_change(learning, rates_at(learning, problem.t, problem.rounds), start)

    def _updates(self, accepted: dict[int, Accepted]) -> Iterator[Update]:
        for k, one in accepted.items():
            reading, answer = one.reading, one.answer
            report = None if reading is None else Report(k, answer.module, reading.energy, reading.noise)
            yield Update(k, answer.module, float(self._weight[k]), one.delta, answer.loss, report)
