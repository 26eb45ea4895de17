"""The priced dual of a round, minimised over the one price: (15), §6.

D(λ) is convex in λ with subgradient B − Σ_k b_k(λ). Its minimum lies between a price at which too much band is wanted
and one at which B suffices; two tangents bound it from below, so the search knows how far it is from the end.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import Options, offer

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOW, HIGH, LATEST = 0, 1, 2
"""Rows of a `Demand`: at a price below the minimiser of D (too much band is wanted), above it, and the latest one."""
LOG_PRICE_MIN = -650.0
"""Prices below e^this are as good as 0."""
_EXPANSIONS = 200
_EVALUATIONS = 60
_DUAL_TOLERANCE = 1e-8
"""Relative distance of D(λ) to its minimum at which the price search ends."""
_BAND_TOLERANCE = 1e-13
"""Relative mismatch of demand and band at which a price is exact."""
_JUMP = 1e-3
"""Relative difference of demand at both ends that counts as a jump."""
_ROUNDING = 1e-13
"""Relative rounding error of a term of D, added to the bound."""


class Limits(NamedTuple):
    """What may be chosen."""

    alive: NDArray[np.bool_]
    """Options that may be used, shape (n,)."""
    least_hz: Floats
    """Least band of each device, shape (K,)."""
    most_hz: Floats
    """Most band of each device, shape (K,)."""
    guess: Floats
    """Roots x found so far, by option (0: none): where the next search for them starts; updated in place."""


class Demand(NamedTuple):
    """What the devices want at prices, a row each of `LOW`, `HIGH` and `LATEST`."""

    log_price: Floats
    """ln λ, shape (3,)."""
    dual: Floats
    """D(λ) [J²], rounded up, shape (3,)."""
    total_hz: Floats
    """Σ b, shape (3,)."""
    pick: Ints
    """Option of each device, −1 for none, shape (3, K)."""
    band_hz: Floats
    """b, shape (3, K)."""
    phi: Floats
    """φ_{k,m}(λ) of every option [J²], shape (3, n)."""
    offered_hz: Floats
    """b of every option at its φ, shape (3, n)."""


def free_limits(devices: int, options: int, band_hz: float) -> Limits:
    """Everything may be chosen."""
    return Limits(np.ones(options, np.bool_), np.zeros(devices), np.full(devices, band_hz), np.zeros(options))


def new_demand(devices: int, options: int) -> Demand:
    """Space for a search."""
    pick, wide, many = np.full((3, devices), -1, np.int64), np.zeros((3, devices)), np.zeros((3, options))
    return Demand(np.zeros(3), np.zeros(3), np.zeros(3), pick, wide, many, many.copy())


@compiled
def dual_at(options: Options, limits: Limits, band_hz: float, log_price: float, demand: Demand) -> float:
    """Priced dual D(λ) = λB + Σ_k max(0, max_m φ_{k,m}(λ)) [J²] with every b_k within its limits, (15).

    Args:
        options: the round's options.
        limits: what may be chosen; a device may also stay idle, at the price of its least band.
        band_hz: B [Hz].
        log_price: ln λ [ln J²/Hz].
        demand: row `LATEST` is written.

    Returns:
        Σ b [Hz].
    """
    price = math.exp(log_price)
    dual, total, size = price * band_hz, 0.0, price * band_hz
    for k in range(len(options.first) - 1):
        least = limits.least_hz[k]
        best, taken, wanted = -price * least, -1, least
        for i in range(options.first[k], options.first[k + 1]):
            if not limits.alive[i]:
                continue
            phi, band = -options.fixed[i], 0.0
            if least > 0.0 or log_price < options.log_stop[i]:
                phi, band, x = offer(options, i, price, log_price, least, limits.most_hz[k], limits.guess[i])
                if x > 0.0:
                    limits.guess[i] = x
            demand.phi[LATEST, i], demand.offered_hz[LATEST, i] = phi, band
            if phi > best:
                best, taken, wanted = phi, i, band
        demand.pick[LATEST, k], demand.band_hz[LATEST, k] = taken, wanted
        dual += best
        total += wanted
        size += abs(best)
        if taken >= 0:
            size += options.fixed[taken] + options.reward[taken]
    demand.log_price[LATEST], demand.total_hz[LATEST] = log_price, total
    demand.dual[LATEST] = dual + _ROUNDING * size
    return total


@compiled
def keep(demand: Demand, row: int) -> None:
    """Copy the latest row to another."""
    demand.log_price[row], demand.dual[row] = demand.log_price[LATEST], demand.dual[LATEST]
    demand.total_hz[row] = demand.total_hz[LATEST]
    for k in range(demand.pick.shape[1]):
        demand.pick[row, k], demand.band_hz[row, k] = demand.pick[LATEST, k], demand.band_hz[LATEST, k]
    for i in range(demand.phi.shape[1]):
        demand.phi[row, i], demand.offered_hz[row, i] = demand.phi[LATEST, i], demand.offered_hz[LATEST, i]


@compiled
def minimise_dual(options: Options, limits: Limits, band_hz: float, start: float, demand: Demand) -> int:
    """Fill rows `LOW` and `HIGH` with the two prices around the minimum of D, searching from ln λ = start.

    Where all of B is never wanted, or exactly B, both rows hold the same price. Returns how often D was worked out.
    """
    log_price, step, used = start, 0.0, 0
    low_known = high_known = False
    while used < _EXPANSIONS and not (low_known and high_known):
        total = dual_at(options, limits, band_hz, log_price, demand)
        used += 1
        away = 2.2 * abs(math.log(max(total, 1e-9 * band_hz) / band_hz))
        step = min(max(2.0 * step, away, 1e-3), 8.0)
        if total > band_hz * (1.0 + _BAND_TOLERANCE):
            keep(demand, LOW)
            low_known = True
            log_price += step
            continue
        keep(demand, HIGH)
        high_known = True
        nothing = not low_known and math.exp(log_price) * band_hz <= 1e-16 * demand.dual[HIGH]
        if total >= band_hz * (1.0 - _BAND_TOLERANCE) or nothing or log_price < LOG_PRICE_MIN:
            keep(demand, LOW)
            return used
        log_price -= step
    return used + _narrow(options, limits, band_hz, demand)


@compiled
def _narrow(options: Options, limits: Limits, band_hz: float, demand: Demand) -> int:
    """Close the bracket: secants of ln demand (Illinois) where it is smooth, crossings of tangents where it jumps."""
    alive = limits.alive.copy()
    inner = Limits(alive, limits.least_hz, limits.most_hz, limits.guess)
    used, width, last = 0, demand.log_price[HIGH] - demand.log_price[LOW], LATEST
    excess, rest = _mismatch(demand, LOW, band_hz), _mismatch(demand, HIGH, band_hz)
    while used < _EVALUATIONS:
        t_low, t_high = demand.log_price[LOW], demand.log_price[HIGH]
        crossing, gap = _crossing(demand, band_hz)
        if gap <= _DUAL_TOLERANCE or t_high - t_low <= 1e-14 * max(abs(t_low), 1.0):
            break
        if used in (0, 2):
            _strike_out(options, alive, limits.least_hz, demand)
        jumps = demand.total_hz[LOW] > (1.0 + _JUMP) * demand.total_hz[HIGH]
        log_price = t_low + (t_high - t_low) * excess / (excess - rest)
        if jumps and used >= 4 and used % 2 == 0:
            log_price = crossing
        if used >= 7 and used % 4 == 3:
            now = t_high - t_low
            log_price, width = 0.5 * (t_low + t_high) if now > 0.125 * width else log_price, now
        if not t_low < log_price < t_high:
            log_price = 0.5 * (t_low + t_high)
        total = dual_at(options, inner, band_hz, log_price, demand)
        used += 1
        side = LOW if total > band_hz * (1.0 + _BAND_TOLERANCE) else HIGH
        keep(demand, side)
        if side == HIGH and total >= band_hz * (1.0 - _BAND_TOLERANCE):
            keep(demand, LOW)
            break
        if side == LOW:
            excess, rest = _mismatch(demand, LOW, band_hz), 0.5 * rest if last == LOW else rest
        else:
            rest, excess = _mismatch(demand, HIGH, band_hz), 0.5 * excess if last == HIGH else excess
        last = side
    return used


@compiled
def _mismatch(demand: Demand, row: int, band_hz: float) -> float:
    """ln(Σ b / B) of a row, held above −20."""
    return math.log(max(demand.total_hz[row] / band_hz, 2e-9))


@compiled
def _crossing(demand: Demand, band_hz: float) -> tuple[float, float]:
    """ln λ where the tangents of D at both ends cross, and how far the better end lies above it, relatively."""
    low, high = math.exp(demand.log_price[LOW]), math.exp(demand.log_price[HIGH])
    fall, rise = band_hz - demand.total_hz[LOW], band_hz - demand.total_hz[HIGH]
    price = (demand.dual[HIGH] - demand.dual[LOW] + fall * low - rise * high) / (fall - rise)
    best = min(demand.dual[LOW], demand.dual[HIGH])
    least = demand.dual[LOW] + fall * (price - low)
    return math.log(price) if price > 0.0 else -math.inf, (best - least) / best if best > 0.0 else 0.0


@compiled
def _strike_out(options: Options, alive: NDArray[np.bool_], least_hz: Floats, demand: Demand) -> None:
    """Strike out options that are nobody's best at any price in the bracket.

    φ is convex in λ with slope −b: its chord bounds it from above, the tangents of the options taken at the ends bound
    the device's best from below. The chord is linear and the bound is convex, so they are compared at its corners.
    """
    low, high = math.exp(demand.log_price[LOW]), math.exp(demand.log_price[HIGH])
    for k in range(len(options.first) - 1):
        taken, other = demand.pick[LOW, k], demand.pick[HIGH, k]
        v_low = demand.phi[LOW, taken] if taken >= 0 else -low * least_hz[k]
        v_high = demand.phi[HIGH, other] if other >= 0 else -high * least_hz[k]
        b_low = demand.offered_hz[LOW, taken] if taken >= 0 else least_hz[k]
        b_high = demand.offered_hz[HIGH, other] if other >= 0 else least_hz[k]
        corner = low
        if b_low > b_high:
            corner = (v_low - v_high + b_low * low - b_high * high) / (b_low - b_high)
        corner = min(max(corner, low), high)
        v_corner = max(v_low - b_low * (corner - low), v_high + b_high * (high - corner))
        share = (corner - low) / (high - low)
        for i in range(options.first[k], options.first[k + 1]):
            if not alive[i] or i == taken or i == other:
                continue
            from_low, from_high = demand.phi[LOW, i], demand.phi[HIGH, i]
            chord = from_low + (from_high - from_low) * share
            slack = 1e-12 * (abs(v_low) + options.fixed[i])
            alive[i] = from_low > v_low - slack or from_high > v_high - slack or chord > v_corner - slack
