"""The offline oracle: what a policy could reach that knew all T rounds' channels, §6.

    max (1/T) Σ_t Σ_k U π    s.t. Σ_t E_k(t) ≤ T Ē_k for every device, and each round's constraints

With a multiplier ν_k ≥ 0 [utility/J] on each device's budget, Σ_t max (Σ U π − Σ ν_k E_k) + T Σ ν_k Ē_k is at least
what any policy reaches that keeps the budgets, causal or not. Each inner maximum is a round (P1) with V = 1, queues ν.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.evaluation import RELATIVE_SLACK, chosen, energy_j, make_decision
from airtune.types import AirtuneError, Decision, Policy, Problem, freeze

Floats = NDArray[np.float64]

_PATIENCE = 4
"""Steps without a better bound after which they are halved."""
_STEP_MIN = 1e-3
"""Part of Polyak's step below which the search ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Oracle:
    """What the oracle proves and what it found."""

    upper_bound: float
    """No policy within the budgets reaches a higher mean of Σ_k U π per round."""
    value: float
    """Mean of Σ_k U π per round that the plan reaches."""
    plan: tuple[Decision, ...]
    """A decision for each round, together within every budget; objectives are those of the rounds as given."""
    multiplier: Floats
    """ν at the best bound, shape (K,) [utility/J]."""
    iterations: int

    def __post_init__(self) -> None:
        freeze(self)


def solve_offline(
    problems: Sequence[Problem],
    policy: Policy,
    *,
    start: Floats | None = None,
    iterations_max: int = 60,
    tolerance: float = 1e-3,
) -> Oracle:
    """Bound and plan all rounds at once by projected subgradient steps of Polyak's length.

    Args:
        problems: the rounds, all with the same devices; their V and queues are not used. Power caps must be those of a
            device that has spent nothing, else the bound holds only for policies under the same caps.
        policy: solves a round and returns a proven `upper_bound`.
        start: ν to start from, shape (K,) [utility/J]; by default what makes the mean budget worth its mean utility.
        iterations_max: multipliers at most that are tried, each of which takes T rounds.
        tolerance: relative distance of bound and plan at which the search ends.

    Raises:
        AirtuneError: no rounds, or a policy that gives no bound.
    """
    if not problems:
        raise AirtuneError("oracle: problems must hold at least one round, got none")
    allowed_j = len(problems) * problems[0].budget_j
    nu = _first_multiplier(problems) if start is None else np.maximum(np.array(start, np.float64), 0.0)
    unit = np.maximum(_first_multiplier(problems), 1e-300) / np.maximum(allowed_j, 1e-300)
    best_nu, bound, step, waited, tried = nu, np.inf, 1.0, 0, 0
    value, plan = -np.inf, ()
    while tried < iterations_max:
        tried += 1
        decisions = [_decided(problem, nu, policy) for problem in problems]
        spent = sum(_spent_j(*pair) for pair in zip(problems, decisions, strict=True))
        dual = sum(_proven(decision) for decision in decisions) + float(nu @ allowed_j)
        waited += 1
        if dual < bound:
            best_nu, bound, waited = nu, dual, 0
        repaired = _within(problems, decisions, allowed_j)
        worth = sum(_utility(*pair) for pair in zip(problems, repaired, strict=True))
        if worth > value:
            value, plan = worth, tuple(repaired)
        if bound - value <= tolerance * abs(bound) or step < _STEP_MIN:
            break
        if waited >= _PATIENCE:
            step, waited, nu = 0.5 * step, 0, best_nu
            continue
        descent = spent - allowed_j
        descent = np.where((nu <= 0) & (descent < 0), 0.0, descent)
        norm = float((unit * descent**2).sum())
        if norm == 0.0:
            break
        nu = np.maximum(nu + step * (dual - value) / norm * unit * descent, 0.0)
    count = len(problems)
    return Oracle(bound / count, value / count, plan, best_nu, tried)


def _first_multiplier(problems: Sequence[Problem]) -> Floats:
    """Best utility of each device over its budget per round, [utility/J]."""
    top = np.array([problem.utility.max(axis=1) for problem in problems]).mean(axis=0)
    return np.maximum(top, 0.0) / np.maximum(problems[0].budget_j, 1e-300)


def _decided(problem: Problem, nu: Floats, policy: Policy) -> Decision:
    return policy(dataclasses.replace(problem, tradeoff_v=1.0, queue_j=nu.copy()))


def _proven(decision: Decision) -> float:
    if decision.upper_bound is None:
        raise AirtuneError("oracle: policy must return a proven upper_bound, got None; use JointPolicy or ExactPolicy")
    return decision.upper_bound


def _spent_j(problem: Problem, decision: Decision) -> Floats:
    return energy_j(problem, decision.module, decision.power_w)


def _utility_each(problem: Problem, decision: Decision) -> Floats:
    return chosen(problem.utility, decision.module) * decision.success_probability


def _utility(problem: Problem, decision: Decision) -> float:
    return float(_utility_each(problem, decision).sum())


def _within(problems: Sequence[Problem], decisions: Sequence[Decision], allowed_j: Floats) -> list[Decision]:
    """The decisions with devices that overspend left out of their rounds of least utility per joule."""
    spent = np.array([_spent_j(*pair) for pair in zip(problems, decisions, strict=True)])
    utility = np.array([_utility_each(*pair) for pair in zip(problems, decisions, strict=True)])
    per_j = np.where(spent > 0, utility / np.where(spent > 0, spent, 1.0), np.inf)
    order = np.argsort(-per_j, axis=0, kind="stable")
    ranked = np.take_along_axis(spent, order, axis=0)
    stays = np.ones(spent.shape, np.bool_)
    total = np.zeros_like(allowed_j)
    for rank in range(len(problems)):
        fits = total + ranked[rank] <= allowed_j * (1.0 + RELATIVE_SLACK)
        total = total + np.where(fits, ranked[rank], 0.0)
        np.put_along_axis(stays, order[[rank]], fits[None], axis=0)
    return [
        make_decision(problem, np.where(keep, decision.module, 0), decision.power_w, decision.bandwidth_hz)
        for problem, decision, keep in zip(problems, decisions, stays, strict=True)
    ]
