"""Solver B with one of its freedoms taken away: what switching, power, band and queues are each worth.

Each poses a restricted round, lets Solver B decide it, and evaluates the decision in the round as it was. What Solver B
proves is about the restricted round, so none of these carries a bound.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.control.baselines import fixed_module
from airtune.control.evaluation import chosen, make_decision
from airtune.control.joint import JointPolicy
from airtune.control.switching import best_module, module_power_w, module_value
from airtune.physics.cost import affordable_power_w
from airtune.types import Decision, Problem

Floats = NDArray[np.float64]

_COUNTS_MAX = 64
"""Numbers of devices at most among which equal shares of the band are tried."""


@dataclass(frozen=True, slots=True)
class FixedModulePolicy:
    """Ours without switching: one module for everybody, power and band by Solver B; a device may still sit out.

    Source: the ablation of SP1, §5.
    """

    module: int | None
    """The module of every device; None for the largest."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round."""
        only = np.arange(1, problem.feasible.shape[1] + 1) == fixed_module(problem, self.module)
        return _decided(problem, replace(problem, feasible=problem.feasible & only))


@dataclass(frozen=True, slots=True)
class FullPowerPolicy:
    """Ours without power control: every upload at its power cap, module and band by Solver B.

    Power that costs nothing at the margin is always worth its cap, so the energy of full power is moved into what is
    paid anyway. Source: the ablation of SP2, §5.
    """

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round."""
        cap_w, uplink_s = np.maximum(problem.power_max_w, 0.0), np.maximum(problem.uplink_s, 0.0)
        full_j = cap_w * uplink_s / problem.pa_efficiency[:, None]
        restricted = replace(
            problem, compute_j=problem.compute_j + full_j, pa_efficiency=np.full_like(problem.pa_efficiency, np.inf)
        )
        return _decided(problem, restricted, full_power=True)


@dataclass(frozen=True, slots=True)
class EqualBandPolicy:
    """Ours without bandwidth allocation: who takes part shares the band equally; module and power by SP1 and SP2.

    With n equal shares devices no longer couple: each takes its best module at its best power, and the n most valuable
    take part. Of the numbers n the best is kept: all are tried up to about 20, above that a geometric series of them.
    Source: the ablation of SP3, §5.
    """

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round; `iterations` is how many numbers of devices were tried."""
        devices, nothing = len(problem.gain), np.zeros(len(problem.gain))
        best = make_decision(problem, nothing.astype(np.int64), nothing, nothing)
        counts = np.unique(np.geomspace(1, devices, _COUNTS_MAX).round()).astype(int)
        for count in counts.tolist():
            share = np.full((devices, 1), problem.bandwidth_hz / count)
            power_km = module_power_w(problem, share)
            value_km = np.where(power_km > 0, module_value(problem, power_km, share), -np.inf)
            module = best_module(value_km)
            order = np.argsort(-value_km.max(axis=1), kind="stable")
            module[order[count:]] = 0
            decision = make_decision(problem, module, chosen(power_km, module), share[:, 0], iterations=len(counts))
            best = decision if decision.objective > best.objective else best
        return best


@dataclass(frozen=True, slots=True)
class MyopicPolicy:
    """No queues: in every round the most utility that E_k(t) ≤ Ē_k allows, by Solver B; nothing is saved or borrowed.

    The budget becomes a cap on power, p ≤ ξ ((Ē − E_cmp)/τ_up − P_circ). An ablation of the queues (13); budgets
    round by round are what J. Xu and H. Wang set against long-term ones (IEEE Trans. Wireless Commun. 20(2), 2021).
    """

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round."""
        left_j = problem.budget_j[:, None] - problem.compute_j
        affordable_w = affordable_power_w(left_j, problem.uplink_s, problem.pa_efficiency, problem.circuit_power_w)
        cap_w = np.minimum(problem.power_max_w, affordable_w)
        restricted = replace(
            problem,
            queue_j=np.zeros_like(problem.queue_j),
            power_max_w=cap_w,
            feasible=problem.feasible & (cap_w > 0),
        )
        return _decided(problem, restricted)


def _decided(problem: Problem, restricted: Problem, *, full_power: bool = False) -> Decision:
    """Solver B's decision on the restricted round, at full power if asked, as one of the round itself."""
    found = JointPolicy()(restricted)
    power = chosen(np.maximum(problem.power_max_w, 0.0), found.module) if full_power else found.power_w
    return make_decision(
        problem, found.module, power, found.bandwidth_hz, iterations=found.iterations, status=found.status
    )
