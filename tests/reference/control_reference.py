"""Slow, obvious solvers of one round for tiny K, written from the formulas; shares no code with src.

The band is cut into N equal cells. For each device and each number of cells the best module and power are found by a
dense search over power; the cells are then dealt by dynamic programming, which is exact on the grid.
"""

import numpy as np


def link_terms(link, payload_bit, uplink_s, band_hz, gain):
    """(c, least power) of a link from its public numbers, for bandwidth > 0 (array)."""
    with np.errstate(over="ignore"):
        snr = 2.0 ** np.minimum(payload_bit / (uplink_s * band_hz), 1000.0) - 1.0
        for_rate = link.snr_gap * link.noise_w_per_hz * band_hz * snr / gain
    too_fast = payload_bit > link.max_efficiency_bit_per_s_hz * uplink_s * band_hz
    for_rate = np.where(too_fast, np.inf, for_rate)
    if hasattr(link, "m_linear"):
        return link.m_linear * link.noise_w_per_hz * band_hz / gain, for_rate
    return for_rate, np.zeros_like(for_rate)


def best_over_power(reward, price_per_w, c, least, cap, points=200, zooms=4):
    """Max over p in [max(least, 0+), cap] of reward e^{-c/p} - price p, elementwise in c; -inf where none."""
    low = np.maximum(least, cap * 1e-7)
    high = np.full_like(low, cap)
    allowed = least <= cap
    low = np.minimum(low, high)
    best = np.full_like(low, -np.inf)
    grid = np.linspace(0.0, 1.0, points)
    for _ in range(zooms):
        p = low[:, None] * (high / low)[:, None] ** grid
        with np.errstate(over="ignore"):
            value = reward * np.exp(-c[:, None] / p) - price_per_w * p
        j = value.argmax(axis=1)
        rows = np.arange(len(j))
        best = np.maximum(best, value[rows, j])
        low, high = p[rows, np.maximum(j - 1, 0)], p[rows, np.minimum(j + 1, points - 1)]
    return np.where(allowed, best, -np.inf)


def device_curve(problem, k, cells):
    """Best value of device k with at most j cells, j = 0…cells; 0 for sitting out."""
    band = problem.bandwidth_hz * np.arange(1, cells + 1) / cells
    curve = np.zeros(cells + 1)
    for m in range(problem.utility.shape[1]):
        uplink, cap = problem.uplink_s[k, m], problem.power_max_w[k, m]
        if not problem.feasible[k, m] or uplink <= 0 or cap <= 0:
            continue
        c, least = link_terms(problem.link, problem.payload_bit[k, m], uplink, band, problem.gain[k])
        queue = problem.queue_j[k]
        fixed = queue * (problem.compute_j[k, m] + problem.circuit_power_w[k] * uplink)
        reward = problem.tradeoff_v * problem.utility[k, m]
        value = best_over_power(reward, queue * uplink / problem.pa_efficiency[k], c, least, cap) - fixed
        curve[1:] = np.maximum(curve[1:], value)
    return np.maximum.accumulate(curve)


def fixed_curve(problem, k, module, power_w, cells):
    """Value of device k with module and power given, with at most j cells; 0 for sitting out."""
    band = problem.bandwidth_hz * np.arange(1, cells + 1) / cells
    uplink = problem.uplink_s[k, module - 1]
    c, least = link_terms(problem.link, problem.payload_bit[k, module - 1], uplink, band, problem.gain[k])
    spent = problem.compute_j[k, module - 1]
    spent = spent + (power_w / problem.pa_efficiency[k] + problem.circuit_power_w[k]) * uplink
    arrives = np.where(power_w >= least, np.exp(-np.minimum(c / power_w, 700.0)), 0.0)
    value = problem.tradeoff_v * problem.utility[k, module - 1] * arrives - problem.queue_j[k] * spent
    return np.maximum.accumulate(np.concatenate([[0.0], value]))


def deal(curves):
    """The most that the cells can be worth, dealt out among the devices' curves (each of cells + 1 values)."""
    total = np.zeros_like(curves[0])
    for curve in curves:
        total = np.array([np.max(total[: j + 1] + curve[j::-1]) for j in range(len(curve))])
    return float(total[-1])


def grid_optimum(problem, cells=1000):
    """The best (P1) objective when bandwidth comes in B/cells steps: a feasible value, near the optimum."""
    return deal([device_curve(problem, k, cells) for k in range(len(problem.gain))])
