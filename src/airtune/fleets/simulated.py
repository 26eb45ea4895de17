"""A fleet on this machine: local fine-tuning is real, delivery is drawn from the fading."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airtune.control.evaluation import chosen
from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Rates, Trained, log_prior, rates_at
from airtune.learning.stacked import Job, fits, train_stack
from airtune.physics.cost import upload_energy_j
from airtune.physics.fading import arrives, rayleigh_power
from airtune.physics.link import success_probability
from airtune.rng import Stream, generator
from airtune.types import BoolK, Decision, FloatK, Observation, Outcome, Problem, Report, Update


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
    ) -> None:
        self.measured = measured
        self.engine = engine
        self.tokens = tokens
        self.parts = parts
        self.seed = seed
        self.rounds = rounds
        self._weight = weight

    def batches(self, t: int, device: int) -> list[NDArray[np.int64]]:
        """Sample indices of each of the E local steps of a device in round t; no repeats while samples last."""
        config = self.engine.config
        count = config.local_steps * config.batch_size
        part = self.parts[device]
        draw = generator(self.seed, Stream.BATCHES, t, device)
        if config.balanced_batches and len(part) >= count:
            index = balanced(draw.permutation(part), self.tokens.label, count)
            if self.measured:
                return dealt(index, self.tokens.label, config.local_steps)
            index = draw.permutation(index)
        else:
            index = draw.choice(part, size=count, replace=len(part) < count)
        return np.split(index, config.local_steps)

    def token_counts(self, t: int) -> FloatK:
        """Tokens N_k that each device will process in round t if it is scheduled, shape K."""
        lengths = self.tokens.lengths
        return np.array(
            [float(sum(lengths[index].sum() for index in self.batches(t, device))) for device in range(len(self.parts))]
        )

    def execute(
        self, adapters: Mapping[str, Tensor], decision: Decision, problem: Problem, observation: Observation
    ) -> Outcome:
        """Charge, draw and (lazily, as the updates are consumed) train."""
        scheduled = decision.module > 0
        uplink_s = np.maximum(chosen(problem.uplink_s, decision.module), 0.0)
        transmit = upload_energy_j(decision.power_w, uplink_s, problem.pa_efficiency, problem.circuit_power_w)
        if decision.error_free:
            delivered, transmit = scheduled, np.zeros_like(transmit)
        else:
            delivered = scheduled & self._arrives(decision, problem, uplink_s)
        return Outcome(
            scheduled=scheduled,
            delivered=delivered,
            compute_j=chosen(problem.compute_j, decision.module),
            transmit_j=np.where(scheduled, transmit, 0.0),
            tokens=np.where(scheduled, observation.tokens, 0.0),
            updates=self._updates(adapters, decision, delivered, problem.t),
        )

    def _arrives(self, decision: Decision, problem: Problem, uplink_s: FloatK) -> BoolK:
        payload = chosen(problem.payload_bit, decision.module, idle=1.0)
        threshold = problem.link.outage_power_w(payload, uplink_s, decision.bandwidth_hz, problem.gain)
        least = problem.link.power_min_w(payload, uplink_s, decision.bandwidth_hz, problem.gain)
        fading = rayleigh_power(self.seed, problem.t, len(self.parts))
        possible = success_probability(threshold, decision.power_w, least) > 0.0
        return arrives(decision.power_w, threshold, fading) & possible

    def _updates(
        self, adapters: Mapping[str, Tensor], decision: Decision, delivered: BoolK, t: int
    ) -> Iterator[Update]:
        engine = self.engine
        rates = rates_at(engine.config, t, self.rounds)
        for stack in self._stacks(decision, delivered):
            jobs = [self._job(adapters, device, int(decision.module[device]), t) for device in stack]
            for device, trained in zip(stack, self._train(jobs, rates), strict=True):
                module, reading = int(decision.module[device]), trained.reading
                report = None if reading is None else Report(device, module, reading.energy, reading.noise)
                yield Update(device, module, float(self._weight[device]), trained.delta, trained.loss, report)

    def _stacks(self, decision: Decision, delivered: BoolK) -> list[list[int]]:
        """Devices trained together: one by one in their order, or up to `learning.stack` of one module, by module."""
        devices, size = np.flatnonzero(delivered), self.engine.config.stack
        if size == 1 or self.measured:
            return [[int(device)] for device in devices]
        module = decision.module[devices]
        alike = [devices[module == number].tolist() for number in np.unique(module)]
        return [own[first : first + size] for own in alike for first in range(0, len(own), size)]

    def _job(self, adapters: Mapping[str, Tensor], device: int, module: int, t: int) -> Job:
        config, family = self.engine.config, self.engine.family
        batches = self.batches(t, device)
        label = self.tokens.label[np.concatenate(batches)]
        return Job(
            family.slice(adapters, module),
            batches,
            log_prior(label, self.engine.classes) if config.prior_correction else None,
            family.rest(adapters, module) if config.context == "whole" else None,
        )

    def _train(self, jobs: Sequence[Job], rates: Rates) -> list[Trained]:
        if len(jobs) > 1 and all(fits(jobs[0], job) for job in jobs[1:]):
            return train_stack(self.engine, self.tokens, jobs, rates)
        return [
            self.engine.train(job.start, self.tokens, job.batches, rates, job.prior, job.rest, measure=self.measured)
            for job in jobs
        ]


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
