"""From a round's problem to its options: which modules on which devices may pay, and the shape of their curves, §6."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import HALF, X_MAX, Options, capped_slope, free_slope, growth, slope_factor, value_at
from airtune.control.market import inflection
from airtune.physics.link import OutageLink, least_bandwidth_hz
from airtune.types import Problem

Floats = NDArray[np.float64]

_HUGE = 1e290
"""Quantities are held below this, so that a few of them can be multiplied."""
_TINY = 1e-290
_STEPS = 100
_CONVERGED = 1e-4
"""Relative Newton step after which a root is exact to about 1e-8."""
_GAIN_MAX, _GAIN_STEP = 40.0, 0.05
_BEND_MIN, _BEND_MAX, _BEND_STEP = -40.0, 6.5, 0.05


def _tables() -> tuple[Floats, Floats]:
    """Where Newton's method starts: x/ln h over ln h, and ln x over ln κ at the inflection."""
    x = np.geomspace(1e-4, 60.0, 20_000)
    log_h = np.log(np.expm1(x) / x)
    gain = np.interp(np.arange(0.0, _GAIN_MAX + _GAIN_STEP, _GAIN_STEP), log_h, x / log_h)
    bend = np.log(inflection(np.exp(np.arange(_BEND_MIN, _BEND_MAX + _BEND_STEP, _BEND_STEP))))
    return gain, bend


_GAIN, _BEND = _tables()


@compiled
def _between(table: Floats, place: float) -> float:
    """Linear interpolation in a table at a place counted in its steps."""
    index = min(int(place), len(table) - 2)
    return table[index] + (table[index + 1] - table[index]) * (place - index)


@compiled
def x_of_gain(h: float) -> float:
    """x with (e^x − 1)/x = h ≥ 1: Newton on ln h(x), which is convex."""
    if h <= 1.0:
        return 0.0
    goal = math.log(h)
    x = goal * _between(_GAIN, goal / _GAIN_STEP) if goal < _GAIN_MAX else goal + math.log1p(goal)
    for _ in range(_STEPS):
        less_one = math.expm1(x)
        step = (math.log(less_one / x) - goal) * x * less_one / slope_factor(x, less_one)
        x = x - step if step < x else 0.5 * x
        if abs(step) <= _CONVERGED * x:
            break
    return x


@compiled
def x_of_inflection(kappa: float) -> float:
    """x at which e^{−κ h(a/b)} turns from concave to convex in b: κ = x³ e^x/Q², which falls in x; bracketed Newton."""
    low, high = 1e-9, X_MAX
    log_kappa = math.log(kappa)
    place = (log_kappa - _BEND_MIN) / _BEND_STEP
    x = math.exp(_between(_BEND, place)) if place > 0.0 else -log_kappa
    for _ in range(_STEPS):
        less_one = math.expm1(x)
        q = slope_factor(x, less_one)
        missing = 3.0 * math.log(x) + x - 2.0 * math.log(q) - log_kappa
        if missing > 0.0:
            low = x
        else:
            high = x
        step = -missing / (3.0 + x - 2.0 * x * x * (less_one + 1.0) / q)
        after = x * math.exp(min(max(step, -2.0), 2.0))
        x = after if low < after < high else math.sqrt(low * high)
        if abs(step) <= _CONVERGED:
            break
    return x


@compiled
def twice_w(rho: float) -> float:
    """u = 2w with u e^{−u} = ρ, 0 < ρ < 1/e, u < 1: near 1 by Newton on ln u − u, concave, from its left."""
    if rho <= HALF:
        return rho * growth(rho)
    goal = math.log(rho)
    u = max(rho, 1.0 - math.sqrt(2.0 * max(1.0 - math.e * rho, 0.0)))
    for _ in range(_STEPS):
        step = (goal - math.log(u) + u) * u / max(1.0 - u, 1e-9)
        u = min(u + step, 1.0)
        if abs(step) <= 1e-8 * u:
            break
    return u


@compiled
def shape(options: Options, i: int) -> None:
    """Fill in where the cap of option i begins to bind and where its marginal value is largest."""
    ratio, kappa, log_scale = options.ratio[i], options.kappa[i], options.log_scale[i]
    rho = options.cost_per_w[i] * options.cap_w[i] / options.reward[i]
    if rho * math.e >= 1.0:  # w reaches ½ before the cap binds
        x = x_of_gain(1.0 / (math.e * ratio))
        options.x_join[i] = options.x_top[i] = x
        options.log_join[i] = options.log_top[i] = free_slope(x, ratio, log_scale)[0] if x > 0.0 else -math.inf
        return
    options.x_join[i], options.log_join[i] = 0.0, -math.inf
    if rho > 1e-300:
        x = x_of_gain(twice_w(rho) / kappa)
        if x > 1e-9:
            options.x_join[i], options.log_join[i] = x, free_slope(x, ratio, log_scale)[0]
    x = max(x_of_inflection(kappa), options.x_join[i])
    options.x_top[i], options.log_top[i] = x, capped_slope(x, kappa, log_scale)[0]


@compiled
def cut_off(options: Options, i: int) -> None:
    """End option i at the ceiling on the rate if that lies below x_top: v' is largest there, and its price of no band.

    By (16), §6; where the ceiling lies above, nothing changes.
    """
    options.log_stop[i] = options.log_top[i]
    x = options.nats_hz[i] / options.least_hz[i] if options.least_hz[i] > 0.0 else math.inf
    if x < options.x_top[i]:
        free = x < options.x_join[i]
        number = options.ratio[i] if free else options.kappa[i]
        slope = free_slope(x, number, options.log_scale[i]) if free else capped_slope(x, number, options.log_scale[i])
        earned = value_at(options, i, x) + options.fixed[i]
        options.x_top[i], options.log_top[i] = x, slope[0]
        options.log_stop[i] = max(slope[0], math.log(earned / options.least_hz[i]) if earned > 0.0 else -math.inf)


@compiled
def gather(
    feasible: NDArray[np.bool_],
    utility: Floats,
    payload_bit: Floats,
    uplink_s: Floats,
    least_hz: Floats,
    compute_j: Floats,
    cap_w: Floats,
    gain: Floats,
    queue_j: Floats,
    pa_efficiency: Floats,
    circuit_power_w: Floats,
    tradeoff_v: float,
    noise_w_per_hz: float,
    band_hz: float,
    options: Options,
) -> int:
    """Write the options that are worth something with the whole band to themselves; returns their number."""
    n = 0
    for k in range(feasible.shape[0]):
        options.first[k] = n
        for m in range(feasible.shape[1]):
            uplink, cap = uplink_s[k, m], min(cap_w[k, m], _HUGE)
            if not (feasible[k, m] and utility[k, m] > 0.0 and uplink > 0.0 and cap > 0.0 and gain[k] > 0.0):
                continue
            reward = min(tradeoff_v * utility[k, m], _HUGE)
            nats = min(max(math.log(2.0) * payload_bit[k, m] / uplink, _TINY), _HUGE)
            scale = min(max(noise_w_per_hz / gain[k] * nats, _TINY), _HUGE)
            cost = queue_j[k] * uplink / pa_efficiency[k]
            fixed = queue_j[k] * (compute_j[k, m] + circuit_power_w[k] * uplink)
            kappa, ratio = max(scale / cap, _TINY), cost * scale / reward
            if not (kappa < X_MAX and nats / band_hz < X_MAX and ratio < 4.0 * HALF * HALF and fixed < reward):
                continue
            options.module[n], options.reward[n], options.fixed[n] = m + 1, reward, fixed
            options.nats_hz[n], options.scale_w[n], options.cap_w[n] = nats, scale, cap
            options.cost_per_w[n], options.ratio[n], options.kappa[n] = cost, ratio, kappa
            options.log_scale[n], options.least_hz[n] = math.log(reward) - math.log(nats), least_hz[k, m]
            shape(options, n)
            cut_off(options, n)
            if options.x_top[n] > 0.0 and value_at(options, n, nats / band_hz) > 0.0:
                n += 1
    options.first[feasible.shape[0]] = n
    return n


def options_of(problem: Problem, link: OutageLink) -> Options:
    """The options of a round that may pay; infeasible and worthless ones are left out.

    Args:
        problem: the round.
        link: its link.
    """
    devices, modules = problem.utility.shape
    empty = np.empty((len(Options._fields) - 2, devices * modules))
    space = Options(np.empty(devices + 1, np.int64), np.empty(devices * modules, np.int64), *empty)
    found = gather(
        problem.feasible,
        problem.utility,
        problem.payload_bit,
        problem.uplink_s,
        least_bandwidth_hz(problem.payload_bit, problem.uplink_s, link.max_efficiency_bit_per_s_hz),
        problem.compute_j,
        problem.power_max_w,
        problem.gain,
        problem.queue_j,
        problem.pa_efficiency,
        problem.circuit_power_w,
        problem.tradeoff_v,
        link.snr_gap * link.noise_w_per_hz,
        problem.bandwidth_hz,
        space,
    )
    return _selected(space, space.first, np.s_[:found])


def subset(options: Options, keep: NDArray[np.bool_]) -> Options:
    """Some of the options; devices without any stay, with none."""
    devices = len(options.first) - 1
    owner = np.repeat(np.arange(devices), np.diff(options.first))
    return _selected(options, np.searchsorted(owner[keep], np.arange(devices + 1)).astype(np.int64), keep)


def of_devices(options: Options, devices: NDArray[np.int64]) -> Options:
    """The options of some devices, which become devices 0, 1, …; `devices` is ascending."""
    counts = np.diff(options.first)[devices]
    index = np.concatenate([np.arange(*options.first[[k, k + 1]].tolist()) for k in devices])
    return _selected(options, np.concatenate([[0], np.cumsum(counts)]), index)


def _selected(options: Options, first: NDArray[np.int64], index: Any) -> Options:
    """The options at an index, which begin at `first` for each device."""
    arrays: list[Any] = [each[index] for each in options[1:]]
    return Options(first, *arrays)
