"""A run with training left out: the same world, controller, fleet and accounting as `airtune run`, round by round."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from airtune.build import Learner, build
from airtune.config import RunConfig
from airtune.control.evaluation import chosen
from airtune.learning.lora import Adapters
from airtune.learning.method import Combined, Method
from airtune.learning.server import ServerState, first_server
from airtune.round import Record, rounds
from airtune.types import AirtuneError, Lesson, Offer, Policy, Update

SIZES_FROM_TRAINING = ("flora", "fedex")
"""Methods whose download depends on what training left behind."""


@dataclass(frozen=True, slots=True)
class Untrained:
    """A method's sizes on the air without its learning: updates are never asked for, so no device trains."""

    method: Method

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """What the method starts from."""
        return self.method.start(adapters)

    def offer(self, t: int, server: ServerState) -> Offer | None:
        """What the method sends."""
        return self.method.offer(t, server)

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """What the method teaches."""
        return self.method.lesson(t, adapters, server, device, module)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """No change; the updates stay unmade."""
        return Combined({})

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The one adapter, which never changes."""
        return (adapters,)


@dataclass(frozen=True, slots=True)
class Trial:
    """What one seed of a configuration comes to, over all its rounds."""

    utility: float
    """Σ_t Σ_k U π over what T rounds with every best module delivered are worth; in [0, 1] where no U is negative."""
    delivered: float
    """Delivered uploads over K·T: 1 if every device delivers in every round."""
    delivery_rate: float | None
    """Delivered uploads over those sent; None if none was."""
    energy_j: float
    energy_compute_j: float
    energy_transmit_j: float
    max_overspend_ratio: float
    """Energy of the worst device over its budget T·Ē."""
    bounds: tuple[float, ...]
    """The bound (9) with (10) after each round, T values; estimated, as its constants are."""


def refuse_dependent(config: RunConfig) -> None:
    """Refuse configurations whose decisions depend on what training finds.

    Raises:
        AirtuneError: estimated constants, or a method whose sizes follow from training.
    """
    learning = config.learning
    if config.constants.source == "estimated":
        raise AirtuneError(
            "plan: constants.source estimated learns from training, which a plan leaves out; prior would be right"
        )
    if learning.method in SIZES_FROM_TRAINING or (learning.method == "hetlora" and learning.prune_weight > 0):
        instead = "learning.prune_weight 0" if learning.method == "hetlora" else "learning.method nested"
        raise AirtuneError(
            f"plan: what {learning.method} sends depends on training, which a plan leaves out; {instead} would be right"
        )


def trial(config: RunConfig, learner: Learner, policy: Policy | None = None) -> Trial:
    """Carry out all rounds of a configuration but for the training.

    Energy, deliveries and bounds equal those of `airtune run`, bit for bit.

    Args:
        config: the run.
        learner: model, data and engine, of which only sizes and token counts are used.
        policy: used instead of `config.policy` if given.

    Raises:
        AirtuneError: as `build` and `round.step`.
    """
    built = build(config, policy, lambda _: learner)
    system = replace(built.system, method=Untrained(built.system.method))
    start = replace(built.start, adapters={}, server=first_server({}, built.start.server.kept))
    worth, bounds, records = 0.0, list[float](), list[Record]()
    state, best = start, 0.0
    for state, record in rounds(system, start):
        utility, decision = record.problem.utility, record.decision
        worth += float((chosen(utility, decision.module) * decision.success_probability).sum())
        best += float(np.maximum(utility.max(axis=1), 0.0).sum())
        bounds.append(state.memory.bound)
        records.append(record)
    devices = system.cell.devices
    sent = sum(int(record.outcome.scheduled.sum()) for record in records)
    delivered = sum(int(record.outcome.delivered.sum()) for record in records)
    compute_j = math.fsum(float(record.outcome.compute_j.sum()) for record in records)
    transmit_j = math.fsum(float(record.outcome.transmit_j.sum()) for record in records)
    return Trial(
        utility=worth / best if best > 0 else 0.0,
        delivered=delivered / (len(devices.kind) * config.rounds),
        delivery_rate=delivered / sent if sent else None,
        energy_j=compute_j + transmit_j,
        energy_compute_j=compute_j,
        energy_transmit_j=transmit_j,
        max_overspend_ratio=float((state.memory.spent_j / (config.rounds * devices.budget_j)).max()),
        bounds=tuple(bounds),
    )
