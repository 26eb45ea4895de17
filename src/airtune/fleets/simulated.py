"""A fleet on this machine: local fine-tuning is real, who delivers is decided by the air."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from airtune.air import FadingAir
from airtune.control.evaluation import chosen
from airtune.fleets.workers import Job, Workers
from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Trained, log_prior, rates_at
from airtune.learning.privacy import Guard
from airtune.learning.pupil import Pupil
from airtune.learning.stacked import fits, train_stack
from airtune.physics.cost import upload_energy_j
from airtune.physics.fading import rayleigh_power
from airtune.rng import Stream, generator
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
        self.measured = measured
        self.engine = engine
        self.tokens = tokens
        self.parts = parts
        self.seed = seed
        self.rounds = rounds
        self._weight = weight
        self._classes = classes
        self._air = air or FadingAir(lambda t: rayleigh_power(seed, t, len(parts)))
        self._guard = guard

    def batches(self, t: int, device: int) -> list[NDArray[np.int64]]:
        """Sample indices of each of the E local steps of a device in round t; no repeats while samples last."""
        config = self.engine.config
        count = config.local_steps * config.batch_size
        part = self.parts[device]
        draw = generator(self.seed, Stream.BATCHES, t, device)
        if config.balanced_batches and self._classes and len(part) >= count:
            index = balanced(draw.permutation(part), self.tokens.label, count)
            if self.measured:
                return dealt(index, self.tokens.label, config.local_steps)
            index = draw.permutation(index)
        else:
            index = draw.choice(part, size=count, replace=len(part) < count)
        return np.split(index, config.local_steps)

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
            sent = self._air.transmit(decision, problem)
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
        return 1 if self.measured else self.engine.config.stack

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
        engine = self.engine
        rates = rates_at(engine.config, t, self.rounds)
        devices = np.flatnonzero(delivered)
        if self._stack > 1:
            devices = devices[np.argsort(decision.module[devices], kind="stable")]
        for device in map(int, devices):
            module = int(decision.module[device])
            batches = self.batches(t, device)
            label = self.tokens.label[np.concatenate(batches)]
            prior = log_prior(label, engine.classes) if engine.config.prior_correction and self._classes else None
            lesson = lessons(device, module)
            pupil = Pupil(
                start=lesson.start,
                batches=batches,
                rates=rates,
                prior=prior,
                rest=lesson.rest,
                fixed=lesson.fixed,
                pruning=lesson.pruning,
                measure=self.measured,
            )
            yield Job(device, module, pupil)


def balanced(shuffled: NDArray[np.int64], label: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the shuffled samples, every class as often as every other as far as its samples last.

    >>> balanced(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), 4).tolist()
    [0, 5, 1, 2]
    """
    own = label[shuffled]
    turn = np.empty(len(shuffled), dtype=np.int64)
    for kind in np.unique(own):
        turn[own == kind] = np.arange(int((own == kind).sum()))
    return shuffled[np.argsort(turn, kind="stable")[:count]]


def dealt(index: NDArray[np.int64], label: NDArray[np.int64], hands: int) -> list[NDArray[np.int64]]:
    """The samples in batches of equal size whose class counts differ by one at most, as do those of a batch's halves.

    >>> [hand.tolist() for hand in dealt(np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1]), 2)]
    [[0, 1], [2, 3]]
    """
    order = index[np.argsort(label[index], kind="stable")]
    return [order[hand::hands] for hand in range(hands)]
