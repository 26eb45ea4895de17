"""SP1, module switching for a fixed bandwidth, §5."""

import numpy as np
from numpy.typing import NDArray

from airtune.control.power import best_power_w
from airtune.physics.cost import upload_energy_j
from airtune.physics.link import success_probability
from airtune.types import Problem


def module_value(
    problem: Problem, power_w: NDArray[np.float64], bandwidth_hz: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Value V U π − Z E of every module on every device [J²], shape (…, K, M); −∞ where infeasible.

    Args:
        problem: the round.
        power_w: p [W], broadcast to (…, K, M); held below each module's own cap.
        bandwidth_hz: b [Hz], broadcast to (…, K, M).
    """
    gain = problem.gain[:, None]
    power = np.clip(power_w, 0.0, np.maximum(problem.power_max_w, 0.0))
    c = problem.link.outage_power_w(problem.payload_bit, problem.uplink_s, bandwidth_hz, gain)
    least = problem.link.power_min_w(problem.payload_bit, problem.uplink_s, bandwidth_hz, gain)
    uplink = np.maximum(problem.uplink_s, 0.0)
    upload = upload_energy_j(power, uplink, problem.pa_efficiency[:, None], problem.circuit_power_w[:, None])
    with np.errstate(over="ignore"):
        energy = problem.compute_j + upload
        value = problem.tradeoff_v * problem.utility * success_probability(c, power, least)
        value = value - problem.queue_j[:, None] * energy
    return np.where(problem.feasible, value, -np.inf)


def module_power_w(problem: Problem, bandwidth_hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Best power of every module on every device by SP2 [W], shape (…, K, M), for bandwidth broadcast to it."""
    gain = problem.gain[:, None]
    return best_power_w(
        problem.tradeoff_v * problem.utility,
        problem.link.outage_power_w(problem.payload_bit, problem.uplink_s, bandwidth_hz, gain),
        problem.queue_j[:, None],
        problem.uplink_s,
        problem.pa_efficiency[:, None],
        problem.power_max_w,
        problem.link.power_min_w(problem.payload_bit, problem.uplink_s, bandwidth_hz, gain),
    )


def best_module(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Module of largest value, m = argmax_m V U π − Z E, or 0 where none is positive, SP1.

    Args:
        value: shape (…, K, M), from `module_value`.

    Returns:
        Module 0…M, shape (…, K); the smaller of equals.
    """
    best = np.argmax(value, axis=-1)
    worth = np.take_along_axis(value, best[..., None], axis=-1)[..., 0] > 0
    return np.where(worth, best + 1, 0).astype(np.int64)
