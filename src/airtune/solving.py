"""One round's problem (P1), solved on its own: for a simulator or a testbed other than ours."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

from airtune.control.evaluation import energy_j
from airtune.problem_file import problem_from
from airtune.types import AirtuneError, Decision, Policy, Problem

Solver = Literal["joint", "alternating", "exact"]


@dataclass(frozen=True, slots=True)
class DeviceDecision:
    """What one device is told to do."""

    module: int | None
    """Position in the device's list of modules, from 0; None to sit the round out."""
    power_w: float
    """p [W]."""
    bandwidth_hz: float
    """b [Hz]."""
    success_probability: float
    """π, (6)."""
    energy_j: float
    """E_cmp + E_up [J]."""


@dataclass(frozen=True, slots=True)
class Solution:
    """A decision for one round and what is known about it."""

    objective: float
    """Value of (P1) [J²]."""
    upper_bound: float | None
    """No decision is worth more than this [J²]; None from a solver that proves nothing."""
    certificate: float | None
    """(upper_bound − objective)/|upper_bound|: the part of the bound that a better decision could still gain; 0 if the
    two are equal, None without a bound."""
    status: str
    """"ok", or what went less than well."""
    solve_s: float
    """Wall time of the solver [s], without the time to load or compile it."""
    decisions: tuple[DeviceDecision, ...]
    """One per device, in the order given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `airtune solve --json` prints them."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        names = [field.name for field in fields(DeviceDecision)]
        plain["decisions"] = [{name: getattr(each, name) for name in names} for each in self.decisions]
        return plain


def solve(problem: Problem | Mapping[str, Any], solver: Solver = "joint") -> Solution:
    """Solve one round's problem (P1).

    Args:
        problem: values in the shape of the JSON that docs/solve.md describes, or a `Problem`.
        solver: "joint" (near-optimal, with a bound), "alternating" (the paper's decomposition, no bound) or "exact"
            (proven optimal, for a few devices).

    Returns:
        The decision, its value and its bound. Modules count from 0 here, not from 1 as in a `Decision`.

    Raises:
        AirtuneError: a mistake in the problem, in one line.
    """
    posed = problem if isinstance(problem, Problem) else problem_from(problem)
    decide = _ready(solver)
    start = time.perf_counter()
    decision = decide(posed)
    return _solution(posed, decision, time.perf_counter() - start)


@cache
def _ready(solver: Solver) -> Policy:
    """A solver that is loaded and, where it is compiled, compiled: a round that needs all of it has been solved."""
    decide = solver_of(solver)
    if solver == "joint":
        module = {"utility": 0.3, "payload_bit": 1e6, "uplink_s": 8.0, "compute_j": 0.4}
        plain = {"gain": 1e-12, "power_max_w": 0.2, "pa_efficiency": 0.35, "circuit_power_w": 0.1, "queue_j": 0.5}
        cell = {"bandwidth_hz": 2e4, "noise_w_per_hz": 4e-21, "snr_gap": 2.0, "tradeoff_v": 20.0}
        decide(problem_from(cell | {"devices": [plain | {"modules": [module]}] * 12}))
    return decide


def solver_of(name: Solver) -> Policy:
    """The policy behind a solver's name."""
    match name:
        case "joint":
            from airtune.control.joint import JointPolicy

            return JointPolicy()
        case "alternating":
            from airtune.control.alternating import AlternatingPolicy

            return AlternatingPolicy()
        case "exact":
            from airtune.control.exact import ExactPolicy

            return ExactPolicy()
        case _:  # pyright: ignore[reportUnnecessaryComparison]
            raise AirtuneError(f"solver: must be one of {', '.join(get_args(Solver))}, got {name!r}")


def _solution(problem: Problem, decision: Decision, solve_s: float) -> Solution:
    if decision.upper_bound is not None:  # what is attained bounds the rounding of the bound
        decision = dataclasses.replace(decision, upper_bound=max(decision.upper_bound, decision.objective))
    spent_j = energy_j(problem, decision.module, decision.power_w)
    columns = (decision.module, decision.power_w, decision.bandwidth_hz, decision.success_probability, spent_j)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    decisions = tuple(DeviceDecision(module - 1 if module else None, *numbers) for module, *numbers in rows)
    return Solution(decision.objective, decision.upper_bound, decision.certificate, decision.status, solve_s, decisions)
