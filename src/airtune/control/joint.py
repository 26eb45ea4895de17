"""Solver B: module, power and bandwidth of all devices jointly, with a proof of how good the decision is, §6."""

import math
from dataclasses import dataclass

import numpy as np

from airtune.control.alternating import AlternatingPolicy
from airtune.control.branching import Incumbent, close_gap, hopeless, new_incumbent, recover
from airtune.control.curve import Options, power_at
from airtune.control.dual import Demand, minimise_dual, new_demand
from airtune.control.evaluation import make_decision
from airtune.control.options import options_of, subset
from airtune.physics.link import OutageLink
from airtune.types import Decision, Problem


@dataclass(frozen=True, slots=True)
class JointPolicy:
    """Solver B: one price for the band, each module solved jointly in power and bandwidth, the gap closed by branching.

    Every decision carries an upper bound on the optimum of (P1). On a link other than `OutageLink` Solver A decides,
    without a bound.
    Source: Lagrangian dual decomposition with branch and bound over the separable problem, docs/theory.md §6.
    """

    tolerance: float = 1e-5
    """Relative distance of bound and objective at which the search ends."""
    nodes_max: int = 400
    """Nodes of the search at most."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round; `iterations` counts nodes, `status` is "nodes_max" if the gap stayed above the tolerance."""
        if not isinstance(problem.link, OutageLink):
            return AlternatingPolicy()(problem)
        options = options_of(problem, problem.link)
        devices, band_hz = len(problem.gain), problem.bandwidth_hz
        best, demand, guess = new_incumbent(devices), new_demand(devices), np.zeros(len(options.reward))
        bound, nodes = 0.0, 0
        if len(options.reward):
            alive = np.ones(len(options.reward), np.bool_)
            least, most = np.zeros(devices), np.full(devices, band_hz)
            minimise_dual(options, alive, least, most, guess, band_hz, first_log_price(options, band_hz), demand)
            recover(options, demand, band_hz, guess, best)
            bound, nodes = float(demand.dual.min()), 1
            if bound - best.value[0] > self.tolerance * bound:
                bound, nodes = self._branch(options, band_hz, demand, guess, best)
        return decided(problem, options, best, max(bound, float(best.value[0])), nodes, self.tolerance)

    def _branch(
        self, options: Options, band_hz: float, demand: Demand, guess: np.ndarray, best: Incumbent
    ) -> tuple[float, int]:
        """Strike out what no better point can use, and search over what is left."""
        alive = np.ones(len(options.reward), np.bool_)
        side = int(demand.dual.argmin())
        bound = float(demand.dual[side])
        gap = (bound - float(best.value[0])) * (1.0 + 1e-9) + 1e-12 * bound
        hopeless(options, alive, band_hz, float(demand.log_price[side]), gap, guess)
        return close_gap(options, alive, band_hz, demand, self.tolerance, self.nodes_max, guess, best)


def first_log_price(options: Options, band_hz: float) -> float:
    """A price to start from, ln λ [ln J²/Hz]: all worth that there is, spread over the band."""
    return math.log(float((options.reward - options.fixed).sum()) / band_hz)


def decided(
    problem: Problem, options: Options, best: Incumbent, bound: float, nodes: int, tolerance: float
) -> Decision:
    """The incumbent as a decision."""
    module, power = np.zeros(len(best.pick), np.int64), np.zeros(len(best.pick))
    for k in np.flatnonzero(best.pick >= 0):
        i = int(best.pick[k])
        module[k] = options.module[i]
        power[k] = power_at(options, i, float(options.nats_hz[i] / best.band_hz[k]))
    decision = make_decision(problem, module, power, best.band_hz, iterations=nodes)
    upper = max(bound, decision.objective)
    status = "ok" if upper - decision.objective <= 1.01 * tolerance * upper else "nodes_max"
    return make_decision(
        problem, module, power, best.band_hz, upper_bound=upper, iterations=nodes, status=status
    )
