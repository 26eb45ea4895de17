"""The federation of `round.step` over quadratics: the same round that fine-tunes, on a problem whose gap is exact."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.config import FleetConfig, Horizon, LearningConfig, WorldConfig
from airtune.control.evaluation import chosen, energy_j
from airtune.control.problem import Cell, first_memory
from airtune.learning.methods.means import PlainMethod
from airtune.learning.server import first_server
from airtune.physics.devices import sample_devices
from airtune.physics.fading import arrives, rayleigh_power
from airtune.physics.link import link_of, success_probability
from airtune.round import State, System
from airtune.testbed.problems import Floats, Quadratics, from_squares
from airtune.theory.constants import Constants
from airtune.types import BoolK, Decision, Lessons, Modules, Observation, Outcome, Policy, Problem, Report, Update
from airtune.worlds.analytic import AnalyticWorld, radio_of, received_w

NAME = "theta"
"""The one tensor of the adapter."""
PLAIN = LearningConfig(server_optimizer="mean", server_rate=1.0, server_momentum=0.0, average=0.0, final_rate=1.0)
"""The server adds the aggregated change: with `PlainMethod` this is (8)."""
TOKENS = 2000.0
"""Tokens per device and round."""


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticFleet:
    """A `Fleet` whose devices know their quadratic: energy as ever, delivery from the fading, errors drawn afresh."""

    problem: Quadratics
    step: float
    """η of (8)."""
    seed: int

    def execute(self, lessons: Lessons, decision: Decision, problem: Problem, observation: Observation) -> Outcome:
        """Charge the energy, draw who delivers, and upload −η Π_m g_k of those.

        A device tells half the squared difference of two of its errors, one of them the uploaded one, as its noise.
        """
        scheduled = decision.module > 0
        compute_j = chosen(problem.compute_j, decision.module)
        delivered = scheduled & self._arrives(decision, problem)
        return Outcome(
            scheduled=scheduled,
            delivered=delivered,
            compute_j=compute_j,
            transmit_j=energy_j(problem, decision.module, decision.power_w) - compute_j,
            tokens=np.where(scheduled, observation.tokens, 0.0),
            updates=self._updates(lessons(0, 1).start[NAME].numpy(), decision.module, delivered, problem.t),
        )

    def _arrives(self, decision: Decision, problem: Problem) -> BoolK:
        uplink_s = np.maximum(chosen(problem.uplink_s, decision.module), 0.0)
        payload = chosen(problem.payload_bit, decision.module, idle=1.0)
        threshold = problem.link.outage_power_w(payload, uplink_s, decision.bandwidth_hz, problem.gain)
        least = problem.link.power_min_w(payload, uplink_s, decision.bandwidth_hz, problem.gain)
        fading = rayleigh_power(self.seed, problem.t, len(problem.gain))
        possible = success_probability(threshold, decision.power_w, least) > 0.0
        return arrives(decision.power_w, threshold, fading) & possible

    def _updates(self, theta: Floats, module: NDArray[np.int64], delivered: BoolK, t: int) -> Iterator[Update]:
        gradients, kept = self.problem.gradients(theta[None])[0], (0, *self.problem.kept)
        rng = np.random.default_rng((self.seed, t))
        devices, draws = np.arange(len(module)), self.problem.errors.shape[1]
        error = self.problem.errors[devices, rng.integers(0, draws, len(module))]
        other = self.problem.errors[devices, rng.integers(0, draws, len(module))]
        for k in map(int, np.flatnonzero(delivered)):
            mask = np.arange(len(theta)) < kept[module[k]]
            move = -self.step * mask * (gradients[k] + error[k])
            loss = 0.5 * float(gradients[k] @ (theta - self.problem.centre[k]))
            energy = np.add.reduceat((move / self.step) ** 2, kept[:-1])
            noise = np.add.reduceat(0.5 * mask * (error[k] - other[k]) ** 2, kept[:-1])
            report = Report(k, int(module[k]), energy.astype(np.float64), noise.astype(np.float64))
            yield Update(k, int(module[k]), float(self.problem.weight[k]), {NAME: torch.from_numpy(move)}, loss, report)


def module_family(kept: tuple[int, ...], payload_bit: float) -> Modules:
    """Modules whose payload and work grow with their coordinates; the whole one has `payload_bit`."""
    share = np.array(kept) / kept[-1]
    return Modules(
        rank=np.array(kept),
        depth=np.ones(len(kept), np.int64),
        parameters=np.array(kept),
        payload_bit=payload_bit * share,
        downlink_bit=np.full(len(kept), payload_bit),
        flop_per_token=2e7 * (0.5 + 0.5 * share),
        memory_byte=1e8 * (0.5 + 0.5 * share),
    )


def constants_at(problem: Quadratics, theta: Floats, step: float) -> Constants:
    """The constants of Theorem 1 as they are at θ, shape d; those of later rounds differ."""
    curvature = problem.curvature
    error_sq = (problem.errors**2).mean(axis=1)
    local = from_squares(problem.gradients(theta[None])[0] ** 2, error_sq, problem.kept)
    gap = float(problem.risk(theta[None])[0]) - curvature.least
    return Constants(local.gamma_sq, local.delta, local.noise, 1.0 - step * curvature.pl, step, gap)


def federation(
    problem: Quadratics,
    theta: Floats,
    step: float,
    policy: Policy,
    *,
    rounds: int,
    tradeoff_v: float,
    seed: int,
    world: WorldConfig,
    fleet: FleetConfig,
    payload_bit: float = 2e6,
    horizon: Horizon = "flat",
    account: bool = True,
    queue_start: float = 0.0,
    mean: Literal["sum", "renormalised"] = "sum",
    learning: LearningConfig = PLAIN,
) -> tuple[System, State]:
    """A system and its first state for `round.rounds`.

    Args:
        problem: K quadratics; their weights become ω_k.
        theta: θ_0, shape d.
        step: η.
        policy: decides.
        rounds: T.
        tradeoff_v: V.
        seed: of channels, fades and errors.
        world: cell and channel; shadowing_correlation 0 makes the rounds independent.
        fleet: device classes and budgets; `devices` is K.
        payload_bit: upload of the whole module [bit].
        horizon: how the rounds are weighted.
        account: whether no device may spend more than T·Ē_k.
        queue_start: Z_k(0) in units of Ē_k.
        mean: how updates are combined; "sum" is (8).
        learning: the server's step and what stands in for lost uploads.
    """
    devices = sample_devices(fleet, np.full(fleet.devices, 100, np.int64), seed)
    devices = replace(devices, weight=problem.weight.copy())
    radio = radio_of(world)
    tokens = np.full(fleet.devices, TOKENS)
    drawn = AnalyticWorld(world, devices, seed, lambda t: tokens)
    cell = Cell(
        devices=devices,
        modules=module_family(problem.kept, payload_bit),
        radio=radio,
        link=link_of(world, radio, received_w(world, drawn.gain, devices.power_max_w, rounds)),
        constants=constants_at(problem, theta, step),
        rounds=rounds,
        tradeoff_v=tradeoff_v,
        account=account,
        horizon=horizon,
    )
    system = System(
        cell=cell,
        world=drawn,
        policy=policy,
        fleet=QuadraticFleet(problem, step, seed),
        method=PlainMethod(mean),
        learning=learning,
    )
    adapters = {NAME: torch.from_numpy(theta.copy())}
    return system, State(0, adapters, first_server(adapters), first_memory(cell, queue_start))
