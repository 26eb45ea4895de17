"""Two-sided bounds on (P1)'s optimum over the outage link for tiny K, written from the formulas; no code of src.

With the power at its best a device's value v_k(b), the largest over all modules and sitting out, only rises with its
band. Cut the band into N cells: values at the left ends of the cells, dealt by dynamic programming, are attainable;
values at the right ends, at the price of the left ends, are not exceeded by any decision. Taking the best module at
every band is the enumeration of all module assignments, as only the band couples the devices. Cells that the upper
values rule out are left out of the next, finer level.
"""

import numpy as np


def option_value(problem, k, column, band_hz):
    """max over p in [0, P] of V U e^{−c/p} − Z E for one module, at each bandwidth (array, > 0) [J²]."""
    uplink, cap = problem.uplink_s[k, column], problem.power_max_w[k, column]
    queue, link = problem.queue_j[k], problem.link
    reward = problem.tradeoff_v * problem.utility[k, column]
    fixed = queue * (problem.compute_j[k, column] + problem.circuit_power_w[k] * uplink)
    price = queue * uplink / problem.pa_efficiency[k]
    rate = np.minimum(problem.payload_bit[k, column] / (uplink * band_hz), 900.0)
    c = link.snr_gap * link.noise_w_per_hz * band_hz * np.expm1(rate * np.log(2.0)) / problem.gain[k]
    fits = problem.payload_bit[k, column] <= link.max_efficiency_bit_per_s_hz * uplink * band_hz
    if price == 0:
        return np.where(fits, reward * np.exp(-c / cap), 0.0) - fixed

    def rises(p):
        """Sign of the derivative in p, positive where more power is worth it."""
        return np.log(reward * c) - 2.0 * np.log(p) - c / p - np.log(price)

    # The derivative rises up to c/2 and falls beyond, so the maximum is at 0, at the cap, or at the root beyond c/2.
    low, high = np.minimum(0.5 * c, cap), np.full_like(c, cap)
    for _ in range(90):
        middle = 0.5 * (low + high)
        up = rises(middle) > 0
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    candidates = np.stack([low, high, np.full_like(c, cap)])
    best = (reward * np.exp(-c / candidates) - price * candidates).max(axis=0)
    return np.where(fits, np.maximum(best, 0.0), 0.0) - fixed


def device_value(problem, k, band_hz):
    """The best module's value at each bandwidth, 0 for sitting out [J²]."""
    best = np.zeros_like(band_hz)
    for column in range(problem.utility.shape[1]):
        allowed = problem.feasible[k, column] and problem.uplink_s[k, column] > 0
        if allowed and problem.power_max_w[k, column] > 0 and problem.utility[k, column] > 0:
            best = np.maximum(best, option_value(problem, k, column, band_hz))
    return best


def add(total, cells, value):
    """Dynamic programming: totals for each number of cells after one more device, whose choices are `cells`."""
    after = np.full_like(total, -np.inf)
    for cell, worth in zip(cells, value, strict=True):
        after[cell:] = np.maximum(after[cell:], total[: len(total) - cell] + worth)
    return after


def ends(problem, k, cells, count):
    """Values of a device at the left and right ends of its cells."""
    step = problem.bandwidth_hz / count
    left = np.where(cells > 0, device_value(problem, k, np.maximum(cells, 1) * step), 0.0)
    return left, device_value(problem, k, np.minimum(cells + 1, count) * step)


def surviving(cells, upper, count, least):
    """For each device the cells through which some choice may still be worth `least`."""
    devices = len(cells)
    before, after = [np.zeros(count + 1)], [np.zeros(count + 1)]
    for k in range(devices - 1):
        before.append(add(before[-1], cells[k], upper[k]))
        after.append(add(after[-1], cells[-1 - k], upper[-1 - k]))
    kept = []
    for k in range(devices):
        # Both totals do not fall with the number of cells once the maximum is accumulated.
        others = add_totals(np.maximum.accumulate(before[k]), np.maximum.accumulate(after[devices - 1 - k]))
        through = upper[k] + others[count - cells[k]]
        kept.append(cells[k][through >= least])
    return kept


def add_totals(one, other):
    """The best sum of two totals for each number of cells (coarse levels only)."""
    total = np.full_like(one, -np.inf)
    for cell in range(len(one)):
        total[cell:] = np.maximum(total[cell:], one[cell] + other[: len(other) - cell])
    return total


def bracket(problem, counts=(400, 2400, 24000)):
    """(attainable value, upper bound) of (P1) [J²]; every number of cells divides the next."""
    devices = len(problem.gain)
    cells = [np.arange(counts[0] + 1)] * devices
    best, bound = 0.0, np.inf
    for level, count in enumerate(counts):
        pairs = [ends(problem, k, cells[k], count) for k in range(devices)]
        low, high = np.zeros(count + 1), np.zeros(count + 1)
        for k, (left, right) in enumerate(pairs):
            low, high = add(low, cells[k], left), add(high, cells[k], right)
        best, bound = max(best, float(low.max())), min(bound, float(high.max()))
        if bound <= best:
            break
        if level + 1 < len(counts):
            factor = counts[level + 1] // count
            kept = surviving(cells, [right for _, right in pairs], count, best * (1 - 1e-12))
            cells = [
                np.unique(np.minimum(each[:, None] * factor + np.arange(factor), counts[level + 1])) for each in kept
            ]
    return best, bound
