"""Where Solver A starts from, §5: several bandwidth splits of one round, as rows of a leading axis.

A start is a bandwidth per device and the modules it may choose from; switching and power follow from those.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.switching import best_module, module_power_w, module_value
from airtune.physics.link import WaterfallLink, max_efficiency_of
from airtune.types import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EFFICIENCY_LADDER = np.geomspace(0.05, 24.0, 14)
"""Spectral efficiencies [bit/s/Hz] of the trial bandwidths, held below the ceiling; SP3 refines what is taken."""
_FINE_LADDER = np.geomspace(0.05, 24.0, 40)
"""The same for the waterfall link, where SP3 moves bandwidth only down to what the power at hand needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Offers:
    """Every module of every device at trial bandwidths, each at its best power."""

    bandwidth_hz: Floats
    """Trial bandwidth S/(τ_up η) [Hz], shape (K, N)."""
    value: Floats
    """V U π − Z E there [J²], −∞ where not allowed, shape (K, N)."""
    module: Ints
    """1…M of each column, shape (N,)."""

    @classmethod
    def of(cls, problem: Problem) -> "Offers":
        """All offers of a round; N = M times the number of trial bandwidths."""
        devices, modules = problem.utility.shape
        worthwhile = problem.feasible & (problem.utility > 0) & (problem.uplink_s > 0)
        payload, uplink = np.where(worthwhile, problem.payload_bit, 0.0), np.where(worthwhile, problem.uplink_s, 1.0)
        most = max_efficiency_of(problem.link)
        with np.errstate(over="ignore"):  # an upload that would need infinite bandwidth is offered the whole band
            band = payload / uplink / np.minimum(_EFFICIENCY_LADDER, most)[:, None, None]
        if isinstance(problem.link, WaterfallLink):
            cap = np.maximum(problem.power_max_w, 0.0)
            least = problem.link.bandwidth_min_hz(payload, uplink, cap, problem.gain[:, None])
            band = np.concatenate([payload / uplink / np.minimum(_FINE_LADDER, most)[:, None, None], least[None]])
        band = np.minimum(band, problem.bandwidth_hz)
        value = module_value(problem, module_power_w(problem, band), band)
        value = np.where(worthwhile & (band > 0), value, -np.inf)
        columns = (devices, modules * len(band))
        names = np.tile(np.arange(1, modules + 1), len(band))
        return cls(band.swapaxes(0, 1).reshape(columns), value.swapaxes(0, 1).reshape(columns), names)

    def take(self, price: Floats) -> tuple[Ints, Floats]:
        """Each device's best offer at prices λ (S,) [J²/Hz]: module (0 if none pays) and bandwidth, both (S, K)."""
        picked = np.stack([np.argmax(self.value - each * self.bandwidth_hz, axis=-1) for each in price])
        rows = np.arange(len(self.value))
        band = self.bandwidth_hz[rows, picked]
        pays = self.value[rows, picked] > price[:, None] * band
        return np.where(pays, self.module[picked], 0), np.where(pays, band, 0.0)

    def fill(
        self, value: Floats, module: Ints, band: Floats, band_hz: float, steps: int, *, per_hz: bool
    ) -> tuple[Ints, Floats]:
        """Move devices to better offers while the band holds them, most gain first.

        Args:
            value: what each device is worth now [J²], shape (R, K).
            module: 0…M, shape (R, K).
            band: bandwidth taken now [Hz], shape (R, K).
            band_hz: B [Hz].
            steps: moves at most.
            per_hz: whether gain counts per extra hertz.
        """
        rows = np.arange(len(module))
        for _ in range(steps):
            left = np.maximum(band_hz - band.sum(axis=-1, keepdims=True), 0.0)
            gain = np.where(self.bandwidth_hz <= (band + left)[..., None], self.value - value[..., None], -np.inf)
            extra = np.maximum(self.bandwidth_hz - band[..., None], 1e-9 * band_hz) if per_hz else 1.0
            best = np.where(gain > 1e-12 * np.abs(value[..., None]), gain / extra, -np.inf).reshape(len(rows), -1)
            device, offer = np.divmod(best.argmax(axis=-1), len(self.module))
            moves = best.max(axis=-1) > 0
            if not moves.any():
                break
            value, module, band = value.copy(), module.copy(), band.copy()
            r, k, n = rows[moves], device[moves], offer[moves]
            value[r, k], module[r, k], band[r, k] = self.value[k, n], self.module[n], self.bandwidth_hz[k, n]
        return module, band

    def clearing_price(self, band_hz: float, steps: int = 24) -> float:
        """A price λ [J²/Hz] at which the offers taken fill the band as far as they can without overfilling it."""
        if self.take(np.zeros(1))[1].sum() <= band_hz:
            return 0.0
        per_hz = np.where(self.value > 0, self.value, 0.0) / np.where(self.bandwidth_hz > 0, self.bandwidth_hz, 1.0)
        high = float(per_hz.max())
        while (
            self.take(np.array([high]))[1].sum() > band_hz
        ):  # equal devices may all buy at their own price, by rounding
            high *= 1.0 + 1e-9
        low = high * 1e-9
        for _ in range(steps):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if self.take(np.array([middle]))[1].sum() > band_hz else (low, middle)
        return high


def starts(problem: Problem, offers: Offers) -> tuple[Floats, NDArray[np.bool_]]:
    """Bandwidths (S, K) [Hz] and the modules allowed (S, K, M) of every start.

    Equal shares among the n most valuable devices for n in a geometric ladder from all to one; shares in proportion
    to payload with the smallest and with the largest feasible module of each; and the offers that fill the band at one
    price.
    """
    ladder, rows = _equal_shares(problem), problem.feasible
    smallest = np.cumsum(rows, axis=-1) == 1
    largest = np.cumsum(rows[:, ::-1], axis=-1)[:, ::-1] == 1
    only = [rows & smallest, rows & largest]
    payload = np.stack([np.where(mask, problem.payload_bit, 0.0).sum(axis=-1) for mask in only])
    proportional = problem.bandwidth_hz * payload / np.maximum(payload.sum(axis=-1, keepdims=True), 1e-300)
    module, taken = offers.take(np.array([offers.clearing_price(problem.bandwidth_hz)]))
    priced = rows & (module[0][:, None] == np.arange(1, rows.shape[1] + 1))
    bandwidth = np.concatenate([ladder, proportional, taken])
    total = bandwidth.sum(axis=-1, keepdims=True)
    over = total > problem.bandwidth_hz * (1.0 + 1e-9)
    bandwidth = np.where(over, bandwidth * (problem.bandwidth_hz / np.where(over, total, 1.0)), bandwidth)
    free = np.broadcast_to(rows, (len(ladder), *rows.shape))
    return bandwidth, np.concatenate([free, np.stack([*only, priced])])


def _equal_shares(problem: Problem) -> Floats:
    """B/n for each of the n devices worth most at that share, a row for each n."""
    able = problem.feasible.any(axis=-1)
    count = max(int(able.sum()), 1)
    sizes = np.unique(np.round(np.geomspace(1, count, min(7, count))).astype(np.int64))
    share = np.broadcast_to((problem.bandwidth_hz / sizes)[:, None, None], (len(sizes), *problem.utility.shape))
    value = module_value(problem, module_power_w(problem, share), share).max(axis=-1)
    rank = np.argsort(np.argsort(-value, axis=-1, kind="stable"), axis=-1)
    chosen = able & (rank < sizes[:, None])
    return np.where(chosen, problem.bandwidth_hz / sizes[:, None], 0.0)


def switched(problem: Problem, bandwidth_hz: Floats, allowed: NDArray[np.bool_]) -> tuple[Ints, Floats]:
    """SP1 with each module at its SP2 power: modules and powers (…, K) for bandwidth (…, K), from those allowed."""
    band = bandwidth_hz[..., None]
    power = module_power_w(problem, band)
    module = best_module(np.where(allowed, module_value(problem, power, band), -np.inf))
    column = np.maximum(module, 1)[..., None] - 1
    return module, np.where(module > 0, np.take_along_axis(power, column, axis=-1)[..., 0], 0.0)
