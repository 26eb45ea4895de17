"""The offline oracle as a policy: it plays the plan that was made with all rounds in view."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from airtune.control.evaluation import chosen, make_decision
from airtune.control.joint import JointPolicy
from airtune.control.oracle import solve_offline
from airtune.physics.link import OutageLink
from airtune.types import AirtuneError, Decision, Problem


@dataclass(frozen=True, slots=True, eq=False)
class OraclePolicy:
    """Plays a plan that keeps every device's whole budget T Ē_k, made by `solve_offline`.

    Source: Lagrangian relaxation over time, docs/theory.md §6.
    """

    plan: tuple[Decision, ...]
    """A decision for each round."""

    def __call__(self, problem: Problem) -> Decision:
        """The plan's decision for the round; power is held below what rounding left of the energy account.

        Raises:
            AirtuneError: a round beyond the plan.
        """
        if problem.t >= len(self.plan):
            raise AirtuneError(f"oracle: the plan is for {len(self.plan)} rounds, there is none for round {problem.t}")
        planned = self.plan[problem.t]
        module = np.where(chosen(problem.feasible.astype(np.float64), planned.module) > 0, planned.module, 0)
        power = np.minimum(planned.power_w, np.maximum(chosen(problem.power_max_w, module), 0.0))
        return make_decision(problem, module, power, planned.bandwidth_hz)


def oracle_policy(problems: Sequence[Problem]) -> OraclePolicy:
    """Plan all rounds at once.

    Args:
        problems: every round, posed for devices that have spent nothing.

    Raises:
        AirtuneError: no rounds, or a link without the bounds that the search needs.
    """
    if problems and not isinstance(problems[0].link, OutageLink):
        raise AirtuneError("policy.name oracle needs the bounds that Solver B proves on world.link outage")
    return OraclePolicy(solve_offline(problems, JointPolicy()).plan)
