"""From a round's problem to its options: which modules on which devices may pay, and the shape of their curves, §6."""

import math

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import HALF, X_MAX, Options, capped_slope, free_slope, slope_factor, value_at
from airtune.physics.link import OutageLink
from airtune.types import Problem

Floats = NDArray[np.float64]

_HUGE = 1e290
"""Quantities are held below this, so that a few of them can be multiplied."""
_TINY = 1e-290
_STEPS = 100


@compiled
def x_of_gain(h: float) -> float:
    """x with (e^x − 1)/x = h ≥ 1: Newton on ln h(x), convex in x, from its right."""
    if h <= 1.0:
        return 0.0
    goal = math.log(h)
    x = min(2.0 * goal, X_MAX)
    for _ in range(_STEPS):
        less_one = math.expm1(x)
        step = (math.log(less_one / x) - goal) * x * less_one / slope_factor(x, less_one)
        after = x - step
        if not after > 0.0:
            after = 0.5 * x
        if abs(after - x) <= 1e-7 * x:
            return after
        x = after
    return x


@compiled
def x_of_inflection(kappa: float) -> float:
    """x at which e^{−κ h(a/b)} turns from concave to convex in b: κ = x³ e^x/Q², which falls in x; bracketed Newton."""
    low, high = 1e-9, X_MAX
    log_kappa = math.log(kappa)
    x = 4.0 / kappa if kappa > 2.0 else max(1.0, -log_kappa)
    for _ in range(_STEPS):
        less_one = math.expm1(x)
        q = slope_factor(x, less_one)
        missing = 3.0 * math.log(x) + x - 2.0 * math.log(q) - log_kappa
        if missing > 0.0:
            low = x
        else:
            high = x
        slope = 3.0 + x - 2.0 * x * x * (less_one + 1.0) / q
        after = x * math.exp(min(max(-missing / slope, -2.0), 2.0))
        if not low < after < high:
            after = math.sqrt(low * high)
        if abs(after - x) <= 1e-6 * x:
            return after
        x = after
    return x


@compiled
def twice_w(rho: float) -> float:
    """u = 2w with u e^{−u} = ρ, 0 < ρ < 1/e, u < 1: Newton on ln u − u, concave, from its left."""
    goal = math.log(rho)
    u = max(rho, 1.0 - math.sqrt(2.0 * max(1.0 - math.e * rho, 0.0)))
    for _ in range(_STEPS):
        step = (goal - math.log(u) + u) * u / max(1.0 - u, 1e-9)
        u = min(u + step, 1.0)
        if abs(step) <= 1e-8 * u:
            break
    return u


@compiled
def shape(options: Options) -> None:
    """Fill in where each option's cap begins to bind and where its marginal value is largest."""
    for i in range(len(options.reward)):
        ratio, kappa, log_scale = options.ratio[i], options.kappa[i], options.log_scale[i]
        rho = options.cost_per_w[i] * options.cap_w[i] / options.reward[i]
        if rho * math.e >= 1.0:  # w reaches ½ before the cap binds
            x = x_of_gain(1.0 / (math.e * ratio))
            options.x_join[i] = options.x_top[i] = x
            options.log_join[i] = options.log_top[i] = free_slope(x, ratio, log_scale)[0] if x > 0.0 else -math.inf
            continue
        options.x_join[i], options.log_join[i] = 0.0, -math.inf
        if rho > 1e-300:
            x = x_of_gain(twice_w(rho) / kappa)
            if x > 1e-9:
                options.x_join[i], options.log_join[i] = x, free_slope(x, ratio, log_scale)[0]
        x = max(x_of_inflection(kappa), options.x_join[i])
        options.x_top[i], options.log_top[i] = x, capped_slope(x, kappa, log_scale)[0]


@compiled
def paying(options: Options, band_hz: float) -> NDArray[np.bool_]:
    """Options that are worth something with the whole band to themselves; the others never are."""
    pays = np.zeros(len(options.reward), np.bool_)
    for i in range(len(pays)):
        pays[i] = options.x_top[i] > 0.0 and value_at(options, i, options.nats_hz[i] / band_hz) > 0.0
    return pays


def options_of(problem: Problem, link: OutageLink) -> Options:
    """The options of a round that may pay; infeasible and worthless ones are left out.

    Args:
        problem: the round.
        link: its link.
    """
    able = problem.feasible & (problem.utility > 0) & (problem.uplink_s > 0) & (problem.power_max_w > 0)
    able &= (problem.gain > 0)[:, None]
    device, column = np.nonzero(able)
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        uplink, cap = problem.uplink_s[device, column], np.minimum(problem.power_max_w[device, column], _HUGE)
        queue = np.minimum(problem.queue_j[device], _HUGE)
        reward = np.minimum(problem.tradeoff_v * problem.utility[device, column], _HUGE)
        nats = np.clip(math.log(2.0) * problem.payload_bit[device, column] / uplink, _TINY, _HUGE)
        scale = np.clip(link.snr_gap * link.noise_w_per_hz * nats / problem.gain[device], _TINY, _HUGE)
        cost = queue * uplink / problem.pa_efficiency[device]
        fixed = queue * (problem.compute_j[device, column] + problem.circuit_power_w[device] * uplink)
        kappa, ratio = np.maximum(scale / cap, _TINY), cost * scale / reward
        alone = nats / problem.bandwidth_hz
        sane = (kappa < X_MAX) & (alone < X_MAX) & (ratio < 4.0 * HALF * HALF) & (fixed < reward)
    keep = np.flatnonzero(sane)
    arrays = [each[keep] for each in (reward, fixed, nats, scale, cap, cost, ratio, kappa)]
    log_scale = np.log(arrays[0]) - np.log(arrays[2])
    blank = [np.zeros(len(keep)) for _ in range(4)]
    first = _first(device[keep], len(problem.gain))
    options = Options(first, column[keep] + 1, *arrays, log_scale, *blank)
    shape(options)
    return subset(options, paying(options, problem.bandwidth_hz))


def subset(options: Options, keep: NDArray[np.bool_]) -> Options:
    """Some of the options; devices without any stay, with none."""
    devices = len(options.first) - 1
    owner = np.repeat(np.arange(devices), np.diff(options.first))
    return Options(_first(owner[keep], devices), *(each[keep] for each in options[1:]))


def of_devices(options: Options, devices: NDArray[np.int64]) -> Options:
    """The options of some devices, which become devices 0, 1, …; `devices` is ascending."""
    counts = np.diff(options.first)[devices]
    index = np.concatenate([np.arange(options.first[k], options.first[k + 1]) for k in devices])
    return Options(np.concatenate([[0], np.cumsum(counts)]), *(each[index] for each in options[1:]))


def _first(owner: NDArray[np.int64], devices: int) -> NDArray[np.int64]:
    """Where each device's options begin, from the device of each option, ascending."""
    return np.searchsorted(owner, np.arange(devices + 1)).astype(np.int64)
