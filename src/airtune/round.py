"""One round, as one straight line. Simulation and deployment share it; only World and Fleet differ."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from airtune.config import LearningConfig
from airtune.control.baselines import UnlimitedPolicy
from airtune.control.evaluation import validate_decision
from airtune.control.problem import Cell, divergence, own_offer, pose, remember
from airtune.learning.basis import energy_ordered
from airtune.learning.delivery import chances, compensated
from airtune.learning.engine import rates_at
from airtune.learning.lora import Adapters
from airtune.learning.method import Method
from airtune.learning.privacy import Guard, heaviest
from airtune.learning.server import ServerState, server_step
from airtune.types import (
    AirtuneError,
    Decision,
    Fleet,
    Memory,
    Observation,
    Offer,
    Outcome,
    Policy,
    Problem,
    Report,
    Update,
    World,
)


@dataclass(frozen=True, slots=True, eq=False)
class System:
    """The parts of a federation that do not change from round to round."""

    cell: Cell
    world: World
    policy: Policy
    fleet: Fleet
    method: Method
    """What devices train and send, and how the server combines it."""
    learning: LearningConfig
    guard: Guard | None = None
    """Differential privacy of the updates; None for none."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Everything that a round changes; exactly a checkpoint."""

    t: int
    adapters: Adapters
    """The global adapter θ_t."""
    server: ServerState
    memory: Memory


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What happened in a round."""

    observation: Observation
    problem: Problem
    offer: Offer
    """What was sent up and down for each module."""
    decision: Decision
    outcome: Outcome
    phi: float
    """Φ_t, (10)."""
    phi_tight: float
    """Φ'_t, (12)."""
    loss: float | None
    """Mean training loss of those who delivered; None if nobody did, or told."""
    observe_s: float
    """Wall time to observe and pose the problem."""
    decide_s: float
    """Wall time of the policy."""


def step(system: System, state: State) -> tuple[State, Record]:
    """Observe, decide, execute, aggregate, remember.

    Raises:
        AirtuneError: the policy's decision breaks a constraint, or training diverged.
    """
    clock = [time.perf_counter()]
    observation = system.world.observe(state.t)
    offer = system.method.offer(state.t, state.server) or own_offer(system.cell.modules)
    problem = pose(system.cell, state.memory, observation, offer)
    clock.append(time.perf_counter())
    decision = system.policy(problem)
    clock.append(time.perf_counter())
    validate_decision(problem, decision, unlimited=isinstance(system.policy, UnlimitedPolicy))
    lessons = partial(system.method.lesson, state.t, state.adapters, state.server)
    outcome = system.fleet.execute(lessons, decision, problem, observation)
    adapters, server, heard = _learn(system, state, decision, outcome)
    phi, phi_tight = divergence(system.cell, state.memory, decision)
    memory = remember(system.cell, state.memory, phi, phi_tight, outcome, heard.reports, decision.price)
    waits = (clock[1] - clock[0], clock[2] - clock[1])
    record = Record(observation, problem, offer, decision, outcome, phi, phi_tight, heard.loss, *waits)
    return State(state.t + 1, adapters, server, memory), record


def rounds(system: System, state: State) -> Iterator[tuple[State, Record]]:
    """Rounds from `state` to the horizon; evaluation, logging and checkpoints belong to the caller's loop."""
    while state.t < system.cell.rounds:
        state, record = step(system, state)
        yield state, record


@dataclass(frozen=True, slots=True)
class _Heard:
    """What the round's updates told besides the change of θ."""

    losses: list[float] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def listen(self, updates: Iterable[Update]) -> Iterator[Update]:
        """Hand the updates on, one at a time, and keep what they tell."""
        for update in updates:
            if update.loss is not None:
                self.losses.append(update.loss)
            if update.report is not None:
                self.reports.append(update.report)
            yield update

    @property
    def loss(self) -> float | None:
        """Mean training loss; None if nobody was heard."""
        return float(np.mean(self.losses)) if self.losses else None


def _learn(system: System, state: State, decision: Decision, outcome: Outcome) -> tuple[Adapters, ServerState, _Heard]:
    """Aggregate what was delivered (8); a round in which nothing arrived leaves the model as it is."""
    heard, config, guard = _Heard(), system.learning, system.guard
    server = state.server if guard is None else guard.counted(state.server, outcome.scheduled)
    if not outcome.delivered.any():
        return state.adapters, server, heard
    anew: Adapters = {}
    updates = compensated(config, heard.listen(outcome.updates), decision, outcome, server.kept, anew)
    if guard is not None:
        weight = heaviest(system.cell.devices.weight, chances(config, decision), outcome.delivered)
        updates = guard.aggregate(updates, state.adapters, weight, state.t)
    combined = system.method.combine(state.t, state.adapters, server, updates)
    if not all(bool(tensor.isfinite().all()) for tensor in combined.change.values()):
        raise AirtuneError(
            f"training diverged: an update is not finite; lower learning.rate (now {config.rate:g}) or "
            f"learning.server_rate (now {config.server_rate:g})"
        )
    schedule = rates_at(config, state.t, system.cell.rounds).server
    adapters, server = server_step(state.adapters, server, combined.change, config, schedule, combined.share)
    server = replace(server, kept={**server.kept, **anew, **combined.kept})
    if config.basis == "energy":
        adapters, server = energy_ordered(adapters, server)
    return adapters, server, heard
