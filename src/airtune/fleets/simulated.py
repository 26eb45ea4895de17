"""A fleet on this machine: local fine-tuning is real, who delivers is decided by the air."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from airtune.air import FadingAir
from airtune.control.evaluation import chosen
from airtune.fleets.workers import Job, Workers
from airtune.learning.batches import Study
from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Trained
from airtune.learning.privacy import Guard
from airtune.learning.stacked import fits, train_stack
from airtune.physics.cost import upload_energy_j
from airtune.physics.fading import rayleigh_power
from airtune.types import Air, BoolK, Decision, FloatK, Lessons, Observation, Outcome, Problem, Report, Update


class SimulatedFleet:
    """Carries a decision out: charges the energy, draws who delivers, trains those devices for real.

    A device whose upload is lost is charged but not trained: nothing of its local steps survives the round.

    Args:
        engine: trains slices.
        tokens: the training samples of the whole fleet.
        parts: sample indices of each device, K arrays.
        weight: ω_k, shape K.
        seed: the run's seed.
        rounds: T, for the learning-rate schedule.
        measured: whether devices report energy and noise of their gradient, for the online estimates; balanced batches
            are then balanced one by one, so that their noise is that of independent draws within each class.
        workers: processes that train in place of `engine`; None for none.
        classes: whether labels are classes; where not, batches are plain draws and there is no prior.
        air: decides who delivers; None for Rayleigh fades of the seed.
        guard: what makes of an update what a device sends; None where it sends that and its loss as they are.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: TokenSet,
        parts: Sequence[NDArray[np.int64]],
        weight: FloatK,
        seed: int,
        rounds: int,
        *,
        measured: bool = False,
        workers: Workers | None = None,
        classes: bool = True,
        air: Air | None = None,
        guard: Guard | None = None,
    ) -> None:
        self.workers = workers
        self.engine = engine
        self.tokens = tokens
        self.parts = parts
        self.seed = seed
        self.air = air or FadingAir(lambda t: rayleigh_power(seed, t, len(parts)))
        self._weight = weight
        self._study = Study(engine, tokens, seed, rounds, measured, classes)
        self._guard = guard

    def batches(self, t: int, device: int) -> list[NDArray[np.int64]]:
        """Sample indices of each of the E local steps of a device in round t; no repeats while samples last."""
        return self._study.batches(self.parts[device], t, device)

    def token_counts(self, t: int, among: BoolK | None = None) -> FloatK:
        """Tokens N_k that each device will process in round t if it is scheduled, shape K.

        Args:
            t: the round.
            among: the devices whose batches are drawn, shape K, the others counting 0; None for all.
        """
        lengths, counts = self.tokens.lengths, np.zeros(len(self.parts))
        for device in range(len(self.parts)) if among is None else map(int, np.flatnonzero(among)):
            counts[device] = sum(lengths[index].sum() for index in self.batches(t, device))
        return counts

    def execute(self, lessons: Lessons, decision: Decision, problem: Problem, observation: Observation) -> Outcome:
        """Charge, draw and (lazily, as the updates are consumed) train."""
        scheduled = decision.module > 0
        if decision.error_free:
            delivered, transmit = scheduled, np.zeros_like(decision.power_w)
        else:
            sent = self.air.transmit(decision, problem)
            transmit = upload_energy_j(decision.power_w, sent.airtime_s, problem.pa_efficiency, problem.circuit_power_w)
            delivered = scheduled & sent.delivered
        return Outcome(
            scheduled=scheduled,
            delivered=delivered,
            compute_j=chosen(problem.compute_j, decision.module),
            transmit_j=np.where(scheduled, transmit, 0.0),
            tokens=np.where(scheduled, observation.tokens, 0.0),
            updates=self._updates(lessons, decision, delivered, problem.t),
        )

    def _updates(self, lessons: Lessons, decision: Decision, delivered: BoolK, t: int) -> Iterator[Update]:
        for job, trained in self._trained(self._jobs(lessons, decision, delivered, t)):
            reading = trained.reading
            report = None if reading is None else Report(job.device, job.module, reading.energy, reading.noise)
            delta, loss = trained.delta, trained.loss
            if self._guard is not None:
                delta, loss = self._guard.upload(delta, t, job.device), None
            yield Update(job.device, job.module, float(self._weight[job.device]), delta, loss, report)

    def _trained(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Trained]]:
        """Each job with its result, one at a time and in order, or in stacks of one module."""
        if self.workers is not None:
            return self.workers.train(jobs)
        if self._stack > 1:
            return self._stacked(jobs)
        return ((job, job.pupil.train(self.engine, self.tokens)) for job in jobs)

    @property
    def _stack(self) -> int:
        """Devices trained in one pass; one where each is measured."""
        return 1 if self._study.measured else self.engine.config.stack

    def _stacked(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Trained]]:
        """Jobs of one module together, at most `learning.stack` at once; those that do not fit, one by one."""
        for _, alike in groupby(jobs, key=lambda job: job.module):
            while stack := list(islice(alike, self._stack)):
                pupils = [job.pupil for job in stack]
                if len(pupils) > 1 and all(fits(pupils[0], other) for other in pupils):
                    yield from zip(stack, train_stack(self.engine, self.tokens, pupils), strict=True)
                else:
                    yield from ((job, job.pupil.train(self.engine, self.tokens)) for job in stack)

    def _jobs(self, lessons: Lessons, decision: Decision, delivered: BoolK, t: int) -> Iterator[Job]:
        """What each device that delivers trains, as it is asked for."""
        devices = np.flatnonzero(delivered)
        if self._stack > 1:
            devices = devices[np.argsort(decision.module[devices], kind="stable")]
        for device in map(int, devices):
            module = int(decision.module[device])
            yield Job(device, module, self._study.pupil(lessons(device, module), self.batches(t, device), t))
