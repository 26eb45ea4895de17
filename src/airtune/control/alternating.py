"""Solver A: the paper's decomposition, switching, power and bandwidth in turn until nothing is gained, §5."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.bandwidth import allocate_bandwidth
from airtune.control.evaluation import device_value, make_decision
from airtune.control.starts import Offers, starts, switched
from airtune.types import Decision, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PRICE_LADDER = np.array([0.5, 1.0, 2.0, 4.0, 8.0])
"""Prices at which devices are offered in again, relative to the band's."""
_LARGE_SHARE = 0.04
"""Part of the band whose holder may be moved to make room for others."""
_ROOM_MAX = 8
"""Holders at most that are tried so."""
_FILL_STEPS = 12
"""Moves at most while the room is filled."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Candidate decisions for one round, a row each, and what they are worth."""

    module: Ints
    """Shape (S, K)."""
    power_w: Floats
    bandwidth_hz: Floats
    value: Floats
    """(P1), shape (S,) [J²]."""

    def rows(self, index: NDArray[np.int64]) -> "Point":
        """Some of the rows."""
        return Point(self.module[index], self.power_w[index], self.bandwidth_hz[index], self.value[index])

    def or_better(self, other: "Point") -> "Point":
        """Row by row the more valuable of two."""
        take = other.value > self.value
        return Point(
            np.where(take[:, None], other.module, self.module),
            np.where(take[:, None], other.power_w, self.power_w),
            np.where(take[:, None], other.bandwidth_hz, self.bandwidth_hz),
            np.maximum(self.value, other.value),
        )


@dataclass(frozen=True, slots=True)
class AlternatingPolicy:
    """Solver A: SP1, SP2 and SP3 in turn from several starts; monotone, never worse than its best start.

    Source: the decomposition described in arXiv 2509.19306, §5.
    """

    sweeps_max: int = 40
    """Sweeps at most, from one set of starts."""
    tolerance: float = 1e-6
    """Relative gain of a sweep below which it has converged."""
    survivors: int = 3
    """Starts that are followed beyond the first sweeps."""
    offers_max: int = 3
    """Times that the result is offered around again."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round. `iterations` counts sweeps; `status` is "sweeps_max" if a start was cut short."""
        if not (problem.feasible & (problem.utility > 0)).any():
            nothing = np.zeros(len(problem.gain))
            return make_decision(problem, nothing.astype(np.int64), nothing, nothing)
        offers = Offers.of(problem)
        bandwidth, allowed = starts(problem, offers)
        point, used = self._alternate(problem, evaluated(problem, *switched(problem, bandwidth, allowed), bandwidth), 2)
        point = point.rows(np.argsort(-point.value, kind="stable")[: self.survivors])
        point, more = self._alternate(problem, point, self.sweeps_max)
        cut_short = more == self.sweeps_max
        best = point.rows(np.argmax(point.value, keepdims=True))
        sweeps = used + more
        for _ in range(self.offers_max):
            offered, more = self._alternate(problem, _offer_again(problem, offers, best), 1)
            offered = offered.rows(np.argsort(-offered.value, kind="stable")[: self.survivors])
            offered, further = self._alternate(problem, offered, self.sweeps_max)
            sweeps += more + further
            top = offered.rows(np.argmax(offered.value, keepdims=True))
            gain = float(top.value[0] - best.value[0])
            best = best.or_better(top)
            if gain <= self.tolerance * abs(float(best.value[0])):
                break
        status = "sweeps_max" if cut_short else "ok"
        return make_decision(
            problem, best.module[0], best.power_w[0], best.bandwidth_hz[0], iterations=sweeps, status=status
        )

    def _alternate(self, problem: Problem, point: Point, sweeps_max: int) -> tuple[Point, int]:
        """Sweep all rows until none gains; rows never get worse. The point and the sweeps taken."""
        for done in range(sweeps_max):
            after = sweep(problem, point)
            gain = after.value - point.value
            point = after
            if np.all(gain <= self.tolerance * np.abs(point.value)):
                return point, done + 1
        return point, sweeps_max


def evaluated(problem: Problem, module: Ints, power_w: Floats, bandwidth_hz: Floats) -> Point:
    """A point from its arrays, each (S, K), bandwidth within the band."""
    value = device_value(problem, module, power_w, bandwidth_hz).sum(axis=-1)
    return Point(module, power_w, bandwidth_hz, value)


def sweep(problem: Problem, point: Point) -> Point:
    """SP1 and SP2, then SP3, keeping each row's best; no row gets worse.

    SP1 judges every module at its own SP2 power, so a module is not passed over for the power of the last one.
    """
    module, power = switched(problem, point.bandwidth_hz, problem.feasible)
    point = point.or_better(evaluated(problem, module, power, np.where(module > 0, point.bandwidth_hz, 0.0)))
    return point.or_better(_shared(problem, point.module, point.power_w))


def _shared(problem: Problem, module: Ints, power_w: Floats) -> Point:
    """SP3; who gets no bandwidth sits out."""
    bandwidth = allocate_bandwidth(problem, module, power_w).bandwidth_hz
    module = np.where(bandwidth > 0, module, 0)
    return evaluated(problem, module, np.where(module > 0, power_w, 0.0), bandwidth)


def _offer_again(problem: Problem, offers: Offers, best: Point) -> Point:
    """Points next to the best: at prices about its own, idle devices are let in again, or all take the best offer.

    Prices well above its own matter where few devices hold the band: the price that their last hertz fetches is low,
    and hides that a small upload would be worth more than the band that it displaces.
    """
    here = allocate_bandwidth(problem, best.module[0], best.power_w[0]).price
    clearing = offers.clearing_price(problem.bandwidth_hz)
    modules, bands = offers.take(np.concatenate([float(here) * _PRICE_LADDER, clearing * _PRICE_LADDER]))
    idle = best.module[0] == 0
    modules = np.concatenate([np.where(idle, modules, best.module[0]), modules])
    bands = np.concatenate([np.where(idle, bands, best.bandwidth_hz[0]), bands])
    filled_modules, filled_bands = _make_room(problem, offers, best)
    modules, bands = np.concatenate([modules, filled_modules]), np.concatenate([bands, filled_bands])
    distinct = np.sort(np.unique(np.hstack([modules, bands]), axis=0, return_index=True)[1])
    modules, bands = modules[distinct], bands[distinct]
    only = modules[..., None] == np.arange(1, problem.utility.shape[1] + 1)
    fitted = bands * (problem.bandwidth_hz / np.maximum(bands.sum(axis=-1, keepdims=True), problem.bandwidth_hz))
    as_taken = _shared(problem, *switched(problem, bands, only & problem.feasible))
    return as_taken.or_better(evaluated(problem, *switched(problem, fitted, only & problem.feasible), fitted))


def _make_room(problem: Problem, offers: Offers, best: Point) -> tuple[Ints, Floats]:
    """The best with its leftover band filled, and with one large user of the band removed and its room filled."""
    share = best.bandwidth_hz[0] / problem.bandwidth_hz
    order = np.argsort(-share, kind="stable")[:_ROOM_MAX]
    large = order[share[order] > _LARGE_SHARE]
    stays = np.ones((1 + len(large), len(share)), np.bool_)
    stays[np.arange(1, 1 + len(large)), large] = False
    worth = device_value(problem, best.module, best.power_w, best.bandwidth_hz)
    value = np.where(stays, worth, 0.0)
    module, band = np.where(stays, best.module, 0), np.where(stays, best.bandwidth_hz, 0.0)
    filled = [
        offers.fill(value, module, band, problem.bandwidth_hz, _FILL_STEPS, per_hz=each) for each in (True, False)
    ]
    return np.concatenate([modules for modules, _ in filled]), np.concatenate([bands for _, bands in filled])
