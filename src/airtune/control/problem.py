"""From what is known before a round to its problem (P1), §4."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from airtune.config import Horizon
from airtune.control.queues import next_queue_j
from airtune.physics.cost import affordable_power_w, compute_energy_j, compute_time_s, downlink_time_s, uplink_time_s
from airtune.theory.bound import bound_step, divergence_phi, divergence_tight, horizon_weight, utility
from airtune.theory.constants import Constants
from airtune.theory.estimates import Online, Prior, constants_of, first_estimates, prior_of, relative, update_estimates
from airtune.types import (
    Decision,
    Devices,
    Link,
    Memory,
    Modules,
    Observation,
    Offer,
    Outcome,
    Problem,
    Radio,
    Report,
)


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """Everything about the radio cell and its devices that does not change over the rounds."""

    devices: Devices
    modules: Modules
    radio: Radio
    link: Link
    constants: Constants
    """Known, or assumed before anything was heard."""
    rounds: int
    """T."""
    tradeoff_v: float
    account: bool
    """Whether a device may never spend more than its whole run's budget T·Ē_k."""
    horizon: Horizon = "flat"
    """Whether V is the same in every round, or follows the weight of the round in (9)."""
    online: Online = field(default_factory=Online)
    """How the constants are learned, and whether decisions use what was learned."""

    @property
    def prior(self) -> Prior:
        """What the estimates start from."""
        return prior_of(self.constants, self.modules, self.devices.samples, self.online)


def first_memory(cell: Cell, queue_start: float) -> Memory:
    """The controller before the first round; `queue_start` is Z_k(0) in units of Ē_k."""
    budget = cell.devices.budget_j
    return Memory(
        queue_j=queue_start * budget,
        spent_j=np.zeros_like(budget),
        bound=cell.constants.initial_gap,
        bound_tight=cell.constants.initial_gap,
        estimates=first_estimates(len(budget), len(cell.modules)),
    )


def believed(cell: Cell, memory: Memory) -> Constants:
    """The constants that Φ_t is computed with: those of the cell, or the estimates in their own units."""
    return constants_of(memory.estimates, cell.prior) if cell.online.used else cell.constants


def decisive(cell: Cell, memory: Memory) -> Constants:
    """The constants that utilities are computed with: those of the cell, or the estimates with optimism, scaled so that
    the fleet's mean Σ_k ω_k Γ_k² is the cell's and V keeps its meaning.
    """
    if not cell.online.used:
        return cell.constants
    return relative(
        constants_of(memory.estimates, cell.prior, cell.online.optimism), cell.constants, cell.devices.weight
    )


def pose(cell: Cell, memory: Memory, observation: Observation, offer: Offer | None = None) -> Problem:
    """The round's problem (P1) from what is remembered and observed.

    The energy account lowers the power cap of (k, m) to what the device's remaining budget can pay for.

    Args:
        cell: what does not change.
        memory: queues, energy spent, estimates.
        observation: gains, availability, tokens; speed, power and memory of the devices where they are measured.
        offer: what the learning method sends in this round; None for the modules' own sizes.
    """
    devices, modules, radio = observation.devices or cell.devices, cell.modules, cell.radio
    offer = offer or own_offer(modules)
    compute_s = compute_time_s(observation.tokens, modules.flop_per_token, devices.frequency_hz, devices.flop_per_cycle)
    compute_j = compute_energy_j(
        observation.tokens, modules.flop_per_token, devices.frequency_hz, devices.flop_per_cycle, devices.capacitance
    )
    uplink_s = uplink_time_s(radio.deadline_s, downlink_time_s(offer.downlink_bit, observation.gain, radio), compute_s)
    power_max_w = np.broadcast_to(devices.power_max_w[:, None], uplink_s.shape).copy()
    if cell.account:
        left_j = (cell.rounds * cell.devices.budget_j - memory.spent_j)[:, None]
        affordable_w = affordable_power_w(left_j - compute_j, uplink_s, devices.pa_efficiency, devices.circuit_power_w)
        power_max_w = np.minimum(power_max_w, affordable_w)
    fits = modules.memory_byte[None, :] <= devices.memory_byte[:, None]
    if offer.largest is not None:
        fits = fits & (np.arange(1, len(modules) + 1) <= offer.largest[:, None])
    constants = decisive(cell, memory)
    return Problem(
        t=observation.t,
        rounds=cell.rounds,
        tradeoff_v=cell.tradeoff_v * _round_weight(cell, observation.t),
        bandwidth_hz=radio.bandwidth_hz,
        link=cell.link,
        gain=observation.gain,
        pa_efficiency=devices.pa_efficiency,
        circuit_power_w=devices.circuit_power_w,
        queue_j=memory.queue_j,
        spent_j=memory.spent_j,
        budget_j=cell.devices.budget_j,
        weight=cell.devices.weight,
        utility=utility(cell.devices.weight, constants.gamma_sq, constants.delta, constants.noise),
        payload_bit=np.broadcast_to(offer.payload_bit, uplink_s.shape).copy(),
        uplink_s=uplink_s,
        compute_j=compute_j,
        power_max_w=power_max_w,
        feasible=fits & (uplink_s > 0) & observation.available[:, None] & (power_max_w > 0),
        price=memory.price,
        candidates=observation.candidates,
    )


def own_offer(modules: Modules) -> Offer:
    """The modules' own sizes, for a method that asks for nothing else."""
    return Offer(modules.payload_bit, modules.downlink_bit)


def _round_weight(cell: Cell, t: int) -> float:
    """w_t, mean 1 over the run."""
    match cell.horizon:
        case "flat":
            return 1.0
        case "bound":
            return horizon_weight(t, cell.rounds, cell.constants.contraction)


def divergence(cell: Cell, memory: Memory, decision: Decision) -> tuple[float, float]:
    """Φ_t of a decision by (10), and Φ'_t by (12), with the constants believed before it.

    Decisions minimise the first; reports use the second where Theorem 2's assumptions hold. Both are estimates where
    the constants are.
    """
    constants = believed(cell, memory)
    known = (cell.devices.weight, constants.gamma_sq, constants.delta, constants.noise)
    chosen = (decision.module, decision.success_probability)
    return float(divergence_phi(*known, *chosen)), float(divergence_tight(*known, *chosen))


def remember(
    cell: Cell,
    memory: Memory,
    phi: float,
    phi_tight: float,
    outcome: Outcome,
    reports: Sequence[Report] = (),
    price: float | None = None,
) -> Memory:
    """The controller after a round: queues by (13), energy spent, both bounds by (9) so far, the estimates of §7, λ."""
    energy_j, constants = outcome.energy_j, cell.constants
    return Memory(
        queue_j=next_queue_j(memory.queue_j, energy_j, cell.devices.budget_j),
        spent_j=memory.spent_j + energy_j,
        bound=bound_step(memory.bound, phi, constants.contraction, constants.step),
        bound_tight=bound_step(memory.bound_tight, phi_tight, constants.contraction, constants.step),
        estimates=update_estimates(memory.estimates, reports, cell.prior),
        price=price,
    )
