"""CVXPY on the convex pieces of (P1) over the outage link, written from the formulas; no code of src.

With modules fixed, r = ln(c/p) and q = ln p, every device has r + q ≥ ln c(b), and ln c(b) = ln s + ln ∫_0^1
e^{u a/b} du is convex in b: by Gauss–Legendre quadrature a log-sum-exp, to rounding for a/b up to 30. The cost of
power e^q is convex and the reward exp(−e^r) concave where c/p ≤ 1. As CVXPY does not know the latter, e^{−t} is
replaced by its tangent at the last t, which lies below it, again and again: the value never falls, and a fixed point
is the optimum, by concavity.
"""

import cvxpy as cp
import numpy as np

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
NODES, WEIGHTS = 0.5 * (NODES + 1.0), 0.5 * WEIGHTS


def constants(problem, module):
    """(devices, reward, fixed cost, cost per watt, cap, a, s) of the devices that send."""
    rows = np.flatnonzero(module > 0)
    column = module[rows] - 1
    uplink, queue = problem.uplink_s[rows, column], problem.queue_j[rows]
    nats_hz = np.log(2.0) * problem.payload_bit[rows, column] / uplink
    return (
        rows,
        problem.tradeoff_v * problem.utility[rows, column],
        queue * (problem.compute_j[rows, column] + problem.circuit_power_w[rows] * uplink),
        queue * uplink / problem.pa_efficiency[rows],
        problem.power_max_w[rows, column],
        nats_hz,
        problem.link.snr_gap * problem.link.noise_w_per_hz * nats_hz / problem.gain[rows],
    )


def solve(problem, module, power_w=None, steps=60, tolerance=1e-9):
    """Best bandwidth, and power unless it is given, for fixed modules with every c/p ≤ 1.

    Returns (value of (P1) [J²], bandwidth of the senders [Hz], their c/p, price of the band [J²/Hz]).
    """
    rows, reward, fixed, per_w, cap, nats_hz, least_w = constants(problem, module)
    count, scale = len(rows), float(reward.sum())
    share, r, q = cp.Variable(count, pos=True), cp.Variable(count), cp.Variable(count)
    slope = cp.Parameter(count, nonneg=True)
    nats = cp.multiply(nats_hz / problem.bandwidth_hz, cp.inv_pos(share))
    mean = [
        cp.log_sum_exp(cp.hstack([nats[k] * u + np.log(w) for u, w in zip(NODES, WEIGHTS, strict=True)]))
        for k in range(count)
    ]
    band = cp.sum(share) <= 1.0
    least_hz = nats_hz / np.log(2.0) / problem.link.max_efficiency_bit_per_s_hz
    limits = [
        r + q >= np.log(least_w / cap) + cp.hstack(mean),
        r <= 0.0,
        band,
        share >= least_hz / problem.bandwidth_hz,
    ]
    limits.append(q <= 0.0 if power_w is None else q == np.log(power_w[rows] / cap))
    cost = cp.multiply(per_w * cap / scale, cp.exp(q))
    program = cp.Problem(cp.Maximize(-cp.sum(cp.multiply(slope, cp.exp(r))) - cp.sum(cost)), limits)
    exponent, last = np.full(count, 0.3), -np.inf
    for _ in range(steps):
        slope.value = reward / scale * np.exp(-exponent)
        program.solve(solver=cp.CLARABEL)
        exponent = np.exp(r.value)
        value = float((reward * np.exp(-exponent) - fixed - per_w * cap * np.exp(q.value)).sum())
        if abs(value - last) <= tolerance * abs(value):
            break
        last = value
    price = float(band.dual_value) * scale / problem.bandwidth_hz
    return value, share.value * problem.bandwidth_hz, exponent, price
