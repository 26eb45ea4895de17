"""Solver B: module, power and bandwidth of all devices jointly, with a proof of how good the decision is, §6."""

import math
from dataclasses import dataclass

import numpy as np

from airtune.control.alternating import AlternatingPolicy
from airtune.control.branching import close_gap, new_tree, worth_keeping
from airtune.control.curve import Options
from airtune.control.dual import HIGH, LOW, free_limits, minimise_dual, new_demand
from airtune.control.options import of_devices, options_of, subset
from airtune.control.sharing import Incumbent, new_incumbent, recover, settled
from airtune.physics.link import OutageLink
from airtune.types import Decision, Problem

_SAMPLE = 64
"""Devices on which the price search begins where there are many more."""


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
        best, found = new_incumbent(len(problem.gain)), options_of(problem, problem.link)
        options, bound, nodes, price = found, 0.0, 0, 0.0
        if len(found.reward):
            options, bound, nodes, price = self._solve(found, problem, best)
        module, power, success, objective = settled(options, best)
        bound = max(bound, objective)
        return Decision(
            module=module,
            power_w=power,
            bandwidth_hz=best.band_hz,
            success_probability=success,
            objective=objective,
            upper_bound=bound,
            price=price,
            iterations=nodes,
            status="ok" if bound - objective <= 1.01 * self.tolerance * bound else "nodes_max",
        )

    def _solve(self, options: Options, problem: Problem, best: Incumbent) -> tuple[Options, float, int, float]:
        """Improve the incumbent; the options that it refers to, a proven upper bound [J²], the nodes used and λ."""
        devices, band_hz = len(best.pick), problem.bandwidth_hz
        start = math.log(problem.price) if problem.price else first_log_price(options, band_hz)
        demand = new_demand(devices, len(options.reward))
        limits = free_limits(devices, len(options.reward), band_hz)
        minimise_dual(options, limits, band_hz, start, demand)
        recover(options, demand, band_hz, self.tolerance, limits.guess, best)
        bound, price = float(demand.dual[[LOW, HIGH]].min()), math.exp(demand.log_price[HIGH])
        gap = bound - float(best.value[0])
        if gap <= self.tolerance * bound:
            return options, bound, 1, price
        close = worth_keeping(options, limits, band_hz, gap * (1.0 + 1e-9) + 1e-12 * bound, demand)
        active = best.pick >= 0
        close[best.pick[active]] = True
        best.pick[active] = (np.cumsum(close) - 1)[best.pick[active]]
        left = subset(options, close)
        demand, limits = new_demand(devices, len(left.reward)), free_limits(devices, len(left.reward), band_hz)
        minimise_dual(left, limits, band_hz, math.log(price), demand)
        bound, nodes = close_gap(left, limits, band_hz, demand, self.tolerance, new_tree(self.nodes_max + 2), best)
        return left, bound, nodes, price


def first_log_price(options: Options, band_hz: float) -> float:
    """A price to start from, ln λ [ln J²/Hz], from the market of a sample of the devices with its part of the band."""
    devices = len(options.first) - 1
    start = math.log(float((options.reward - options.fixed).sum()) / band_hz)
    if devices <= 4 * _SAMPLE:
        return start - 4.0
    sample = of_devices(options, np.arange(0, devices, devices // _SAMPLE))
    count = len(sample.first) - 1
    if not len(sample.reward):
        return start
    demand = new_demand(count, len(sample.reward))
    part_hz = band_hz * count / devices
    minimise_dual(sample, free_limits(count, len(sample.reward), part_hz), part_hz, start - 4.0, demand)
    return float(demand.log_price[HIGH])
