"""The priced dual of a round, minimised over the one price, and bands for fixed modules: (15), §6.

D(λ) is convex in λ with subgradient B − Σ_k b_k(λ). Its minimum lies between a price at which too much band is wanted
and one at which B suffices; two tangents bound it from below, so the search knows how far it is from the end.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import Options, offer, root, value_at

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_EXPANSIONS = 200
_EVALUATIONS = 60
_DUAL_TOLERANCE = 1e-9
"""Relative distance of D(λ) to its minimum at which the price search ends."""
_BAND_TOLERANCE = 1e-13
"""Relative mismatch of demand and band at which a price is exact."""
_ROUNDING = 1e-13
"""Relative rounding error of a term of D, added to the bound."""


class Demand(NamedTuple):
    """What the devices want at two prices, index 0 below the minimiser of D (too much band) and 1 above it."""

    log_price: Floats
    """ln λ, shape (2,)."""
    dual: Floats
    """D(λ) [J²], shape (2,)."""
    total_hz: Floats
    """Σ b, shape (2,)."""
    pick: Ints
    """Option of each device, −1 for none, shape (2, K)."""
    band_hz: Floats
    """b, shape (2, K)."""


@compiled
def new_demand(devices: int) -> Demand:
    """Space for a search."""
    return Demand(
        np.zeros(2), np.zeros(2), np.zeros(2), np.full((2, devices), -1, np.int64), np.zeros((2, devices))
    )


@compiled
def dual_at(
    options: Options,
    alive: NDArray[np.bool_],
    least_hz: Floats,
    most_hz: Floats,
    guess: Floats,
    band_hz: float,
    log_price: float,
    pick: Ints,
    band: Floats,
) -> tuple[float, float]:
    """Priced dual D(λ) = λB + Σ_k max(0, max_m φ_{k,m}(λ)) [J²] with b_k limited to [least, most], (15).

    Args:
        options: the round's options.
        alive: which of them may be chosen.
        least_hz: shape (K,) [Hz].
        most_hz: shape (K,) [Hz].
        guess: roots x of earlier prices, by option; updated.
        band_hz: B [Hz].
        log_price: ln λ [ln J²/Hz].
        pick: option taken by each device, −1 for none; written.
        band: b of each device [Hz]; written.

    Returns:
        D(λ), rounded up, and the band wanted in all.
    """
    price = math.exp(log_price)
    dual, total = price * band_hz, 0.0
    size = dual
    for k in range(len(options.first) - 1):
        best, taken, wanted = -price * least_hz[k], -1, least_hz[k]
        for i in range(options.first[k], options.first[k + 1]):
            if not alive[i] or (log_price >= options.log_top[i] and least_hz[k] == 0.0):
                continue
            phi, inside, x = offer(options, i, price, log_price, least_hz[k], most_hz[k], guess[i])
            if x > 0.0:
                guess[i] = x
            if phi > best:
                best, taken, wanted = phi, i, inside
        pick[k], band[k] = taken, wanted
        dual += best
        total += wanted
        size += abs(best)
        if taken >= 0:
            size += options.fixed[taken]
    return dual + _ROUNDING * size, total


@compiled
def minimise_dual(
    options: Options,
    alive: NDArray[np.bool_],
    least_hz: Floats,
    most_hz: Floats,
    guess: Floats,
    band_hz: float,
    start: float,
    demand: Demand,
) -> int:
    """Fill `demand` with the two prices around the minimum of D, from ln λ = start; returns how often D was worked out.

    The arguments are those of `dual_at`. Where all of B is never wanted, both sides hold a price near 0.
    """
    log_price, step, used = start, 0.25, 0
    low_known = high_known = False
    while used < _EXPANSIONS and not (low_known and high_known):
        side = 1
        pick, band = np.empty(len(least_hz), np.int64), np.empty(len(least_hz))
        dual, total = dual_at(options, alive, least_hz, most_hz, guess, band_hz, log_price, pick, band)
        used += 1
        if total > band_hz * (1.0 + _BAND_TOLERANCE):
            side, low_known = 0, True
        else:
            high_known = True
        store(demand, side, log_price, dual, total, pick, band)
        enough = total >= band_hz * (1.0 - _BAND_TOLERANCE)
        idle = side == 1 and not low_known and math.exp(log_price) * band_hz <= 1e-16 * dual
        if side == 1 and (enough or idle or log_price < -650.0):
            store(demand, 0, log_price, dual, total, pick, band)
            return used
        away = 2.0 * abs(math.log(max(total, 1e-9 * band_hz) / band_hz))
        step = min(max(2.0 * step, 1.1 * away), 8.0) if used > 1 else min(max(1.1 * away, 1e-3), 8.0)
        log_price += step if side == 0 else -step
    return used + narrow(options, alive, least_hz, most_hz, guess, band_hz, demand)


@compiled
def store(
    demand: Demand, side: int, log_price: float, dual: float, total: float, pick: Ints, band: Floats
) -> None:
    """Put what was found at a price on its side."""
    demand.log_price[side], demand.dual[side], demand.total_hz[side] = log_price, dual, total
    demand.pick[side, :] = pick
    demand.band_hz[side, :] = band


@compiled
def narrow(
    options: Options,
    alive: NDArray[np.bool_],
    least_hz: Floats,
    most_hz: Floats,
    guess: Floats,
    band_hz: float,
    demand: Demand,
) -> int:
    """Close the bracket: secants of ln demand where it is smooth, crossings of tangents where it jumps, else halving."""
    pick, band = np.empty(len(least_hz), np.int64), np.empty(len(least_hz))
    used, width = 0, demand.log_price[1] - demand.log_price[0]
    halve = False
    while used < _EVALUATIONS:
        t_low, t_high = demand.log_price[0], demand.log_price[1]
        low, high = math.exp(t_low), math.exp(t_high)
        fall, rise = band_hz - demand.total_hz[0], band_hz - demand.total_hz[1]
        crossing = (demand.dual[1] - demand.dual[0] + fall * low - rise * high) / (fall - rise)
        least = demand.dual[0] + fall * (crossing - low)
        best = min(demand.dual[0], demand.dual[1])
        if best - least <= _DUAL_TOLERANCE * best or t_high - t_low <= 1e-14 * max(abs(t_low), 1.0):
            break
        log_price = math.log(crossing) if low < crossing < high else 0.5 * (t_low + t_high)
        if used % 2 == 0 and demand.total_hz[1] > 0.0:
            left, right = math.log(demand.total_hz[0] / band_hz), math.log(demand.total_hz[1] / band_hz)
            log_price = t_low + (t_high - t_low) * left / (left - right)
        if halve or not t_low < log_price < t_high:
            log_price = 0.5 * (t_low + t_high)
        dual, total = dual_at(options, alive, least_hz, most_hz, guess, band_hz, log_price, pick, band)
        used += 1
        side = 0 if total > band_hz * (1.0 + _BAND_TOLERANCE) else 1
        store(demand, side, log_price, dual, total, pick, band)
        if side == 1 and total >= band_hz * (1.0 - _BAND_TOLERANCE):
            store(demand, 0, log_price, dual, total, pick, band)
            break
        if used % 3 == 0:
            halve = demand.log_price[1] - demand.log_price[0] > 0.25 * width
            width = demand.log_price[1] - demand.log_price[0]
        else:
            halve = False
    return used


@compiled
def share(options: Options, pick: Ints, band_hz: float, log_price: float, guess: Floats, band: Floats) -> float:
    """Split B among devices whose options are fixed, by one price; those that are not worth their share get nothing.

    Args:
        options: the round's options.
        pick: option of each device, −1 for none, shape (K,); devices that get nothing are set to −1.
        band_hz: B [Hz].
        log_price: ln λ to start from.
        guess: roots x by option; updated.
        band: b of each device [Hz]; written.

    Returns:
        Σ v [J²].
    """
    t_low, t_high, step = -math.inf, math.inf, 0.1
    over, under = 0.0, 0.0
    best_price, exact = log_price, False
    for _ in range(_EXPANSIONS):
        total = wanted(options, pick, band_hz, log_price, guess, band)
        if total > band_hz:
            t_low, over = log_price, total
        else:
            t_high, under = log_price, total
            best_price = log_price
            exact = total >= band_hz * (1.0 - 1e-12)
        if exact or t_high < -650.0:
            break
        if t_low == -math.inf or t_high == math.inf:
            away = 2.0 * abs(math.log(max(total, 1e-9 * band_hz) / band_hz))
            step = min(max(2.0 * step, 1.05 * away), 8.0) if step > 0.1 else min(max(1.05 * away, 1e-9), 8.0)
            log_price += step if total > band_hz else -step
            continue
        if t_high - t_low <= 1e-14 * max(abs(t_low), 1.0):
            break
        log_price = 0.5 * (t_low + t_high)
        if under > 0.5 * band_hz and over < 2.0 * band_hz:
            left, right = math.log(over / band_hz), math.log(under / band_hz)
            log_price = t_low + (t_high - t_low) * min(max(left / (left - right), 1e-3), 1.0 - 1e-3)
    total = wanted(options, pick, band_hz, best_price, guess, band)
    value, used = 0.0, 0.0
    stretch = min(band_hz / total, 1e6) if total > 0.0 else 1.0
    for k in range(len(pick)):
        band[k] = min(band[k] * stretch, band_hz)
        if pick[k] < 0:
            continue
        worth = value_at(options, pick[k], options.nats_hz[pick[k]] / band[k]) if band[k] > 0.0 else 0.0
        if worth <= 0.0 or used + band[k] > band_hz * (1.0 + 1e-12):
            pick[k], band[k] = -1, 0.0
            continue
        value += worth
        used += band[k]
    return value


@compiled
def wanted(
    options: Options, pick: Ints, band_hz: float, log_price: float, guess: Floats, band: Floats
) -> float:
    """Band that fixed options want at a price, whether or not it pays; 0 where the price is above any they could meet."""
    total = 0.0
    for k in range(len(pick)):
        i = pick[k]
        band[k] = 0.0
        if i >= 0 and log_price < options.log_top[i]:
            x_least = options.nats_hz[i] / band_hz
            x = x_least
            if x_least < options.x_top[i]:
                guess[i] = root(options, i, log_price, guess[i])
                x = max(guess[i], x_least)
            band[k] = options.nats_hz[i] / x
            total += band[k]
    return total
