"""Feasible points of a round: the band shared among devices whose modules are fixed, power at its best, §6."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import Options, power_at, root, value_at
from airtune.control.dual import HIGH, LOG_PRICE_MIN, LOW, Demand

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_STEPS = 100
_ROUNDING = 1e-12
"""Relative excess over the band that is rounding."""
_SHARED = 1e-7
"""Relative rest of the band at which it is shared out: stretching every share over it costs only its square."""


class Incumbent(NamedTuple):
    """The best feasible point so far."""

    value: Floats
    """(P1), shape (1,) [J²]."""
    pick: Ints
    """Option of each device, −1 for none, shape (K,)."""
    band_hz: Floats
    """b, shape (K,)."""


def new_incumbent(devices: int) -> Incumbent:
    """Everybody idle, worth 0."""
    return Incumbent(np.zeros(1), np.full(devices, -1, np.int64), np.zeros(devices))


@compiled
def recover(options: Options, demand: Demand, band_hz: float, tolerance: float, guess: Floats, best: Incumbent) -> None:
    """Improve the incumbent with what is wanted just above and just below the price, and with changes between the two.

    Args:
        options: the round's options.
        demand: what is wanted on both sides of the minimum of D.
        band_hz: B [Hz].
        tolerance: stop as soon as the incumbent is this close to D, relatively.
        guess: roots x by option; updated.
        best: the incumbent; improved.
    """
    devices = len(options.first) - 1
    fits, over = demand.pick[HIGH].copy(), demand.pick[LOW].copy()
    enough = min(demand.dual[LOW], demand.dual[HIGH]) * (1.0 - tolerance)
    improve(options, fits.copy(), band_hz, demand.log_price[HIGH], guess, best)
    changed, left, smallest = 0, band_hz - demand.total_hz[HIGH], math.inf
    for k in range(devices):
        changed += fits[k] != over[k]
    if changed == 0 or best.value[0] >= enough:
        return
    improve(options, over.copy(), band_hz, demand.log_price[LOW], guess, best)
    if changed == 1 or best.value[0] >= enough:
        return
    marginal = -1
    for k in range(devices):
        if fits[k] == over[k]:
            continue
        more = max(demand.band_hz[LOW, k] - demand.band_hz[HIGH, k], 0.0)
        if more <= left:
            fits[k], left = over[k], left - more
        elif more < smallest:
            marginal, smallest = k, more
    improve(options, fits.copy(), band_hz, demand.log_price[HIGH], guess, best)
    if marginal >= 0:
        fits[marginal] = over[marginal]
        improve(options, fits, band_hz, demand.log_price[LOW], guess, best)


@compiled
def count(pick: Ints) -> int:
    """How many devices have an option."""
    total = 0
    for option in pick:
        total += option >= 0
    return total


@compiled
def improve(options: Options, pick: Ints, band_hz: float, log_price: float, guess: Floats, best: Incumbent) -> None:
    """Share the band among these options, again without whoever got nothing, and keep the result if it is better.

    If somebody got nothing though the least bands, (16), fit together, also with every one of them kept to.
    """
    least_hz, whole = 0.0, pick.copy()
    for i in pick:
        least_hz += options.least_hz[i] if i >= 0 else 0.0
    keep_better(options, pick, band_hz, log_price, False, guess, best)
    if 0.0 < least_hz <= band_hz and count(pick) < count(whole):
        keep_better(options, whole, band_hz, log_price, True, guess, best)


@compiled
def keep_better(
    options: Options, pick: Ints, band_hz: float, log_price: float, held: bool, guess: Floats, best: Incumbent
) -> None:
    """One way of `improve`; arguments as in `share`."""
    band = np.zeros(len(pick))
    for _ in range(3):
        before = count(pick)
        value = share(options, pick, band_hz, log_price, held, guess, band)
        if value > best.value[0]:
            best.value[0] = value
            for k in range(len(pick)):
                best.pick[k], best.band_hz[k] = pick[k], band[k]
        if count(pick) == before:
            break


@compiled
def share(
    options: Options, pick: Ints, band_hz: float, log_price: float, held: bool, guess: Floats, band: Floats
) -> float:
    """Split B among devices whose options are fixed, by one price; those that are not worth their share get nothing.

    Args:
        options: the round's options.
        pick: option of each device, −1 for none, shape (K,); devices that get nothing are set to −1.
        band_hz: B [Hz].
        log_price: ln λ to start from.
        held: whether options keep their least bands, which fit together, at any price.
        guess: roots x by option; updated.
        band: b of each device [Hz]; written.

    Returns:
        Σ v [J²].
    """
    t_low, t_high, step = -math.inf, math.inf, 0.0
    over, under, fits = math.inf, 0.0, log_price
    for _ in range(_STEPS):
        total = wanted(options, pick, band_hz, log_price, held, guess, band)
        if total > band_hz * (1.0 + _ROUNDING):
            t_low, over = log_price, total
        else:
            t_high, under, fits = log_price, total, log_price
            if total >= band_hz * (1.0 - _SHARED) or t_high < LOG_PRICE_MIN:
                break
        if t_low == -math.inf or t_high == math.inf:
            away = 2.1 * abs(math.log(max(total, 1e-9 * band_hz) / band_hz))
            step = min(max(2.0 * step, away, 1e-12), 8.0)
            log_price += step if t_low == log_price else -step
            continue
        if t_high - t_low <= 1e-14 * max(abs(t_low), 1.0):
            break
        log_price = 0.5 * (t_low + t_high)
        if under > 0.5 * band_hz and over < 2.0 * band_hz:
            left, right = math.log(over / band_hz), math.log(under / band_hz)
            log_price = t_low + (t_high - t_low) * min(max(left / (left - right), 1e-3), 1.0 - 1e-3)
    total = wanted(options, pick, band_hz, fits, held, guess, band)
    return _settle(options, pick, band_hz, total, band)


@compiled
def wanted(
    options: Options, pick: Ints, band_hz: float, log_price: float, held: bool, guess: Floats, band: Floats
) -> float:
    """Band that fixed options want at a price, whether or not it pays; 0, or the least, where none meets the price."""
    total = 0.0
    for k in range(len(pick)):
        i = pick[k]
        band[k] = 0.0
        if i >= 0 and log_price < options.log_top[i]:
            x = options.nats_hz[i] / band_hz
            if x < options.x_top[i]:
                guess[i] = root(options, i, log_price, float(guess[i]))
                x = max(guess[i], x)
            band[k] = options.nats_hz[i] / x
        elif i >= 0 and (held or log_price < options.log_stop[i]):
            band[k] = options.least_hz[i]
        total += band[k]
    return total


@compiled
def _settle(options: Options, pick: Ints, band_hz: float, total: float, band: Floats) -> float:
    """Stretch the bands to fill B, drop who is not worth it, and add up what is left."""
    value, used = 0.0, 0.0
    stretch = min(band_hz / total, 1e6) if total > 0.0 else 1.0
    for k in range(len(pick)):
        if pick[k] < 0:
            continue
        band[k] = min(band[k] * stretch, band_hz)
        worth = value_at(options, pick[k], options.nats_hz[pick[k]] / band[k]) if band[k] > 0.0 else 0.0
        if worth <= 0.0 or used + band[k] > band_hz * (1.0 + _ROUNDING):
            pick[k], band[k] = -1, 0.0
            continue
        value += worth
        used += band[k]
    return value


@compiled
def settled(options: Options, best: Incumbent) -> tuple[Ints, Floats, Floats, float]:
    """Module (0 idle, else 1…M), power [W] and success probability of each device of the incumbent, and (P1) [J²]."""
    devices = len(best.pick)
    module, power, success, objective = np.zeros(devices, np.int64), np.zeros(devices), np.zeros(devices), 0.0
    for k in range(devices):
        i = best.pick[k]
        if i >= 0:
            x = options.nats_hz[i] / best.band_hz[k]
            module[k], power[k] = options.module[i], power_at(options, i, x)
            success[k] = math.exp(-options.scale_w[i] * math.expm1(x) / x / power[k])
            objective += options.reward[i] * success[k] - options.cost_per_w[i] * power[k] - options.fixed[i]
    return module, power, success, objective
