"""What a decision is worth and whether it is allowed: (P1) evaluated, §4.

Arrays of a decision have shape (…, K): leading axes are independent candidates for the same round.
"""

import numpy as np
from numpy.typing import NDArray

from airtune.physics.cost import upload_energy_j
from airtune.physics.link import success_probability
from airtune.types import AirtuneError, Decision, Problem

RELATIVE_SLACK = 1e-9
"""Relative excess over a resource that still counts as rounding."""
PROBABILITY_SLACK = 1e-9
"""Deviation of a claimed success probability from (6) that still counts as rounding."""


def chosen(table: NDArray[np.float64], module: NDArray[np.int64], idle: float = 0.0) -> NDArray[np.float64]:
    """Entries of a K×M table for the chosen modules, shape (…, K); `idle` where the module is 0."""
    column = np.maximum(module, 1) - 1
    return np.where(module > 0, table[np.arange(table.shape[0]), column], idle)


def success(
    problem: Problem, module: NDArray[np.int64], power_w: NDArray[np.float64], bandwidth_hz: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Success probability π_k of each device's upload by (6), shape (…, K); 0 for a device that sits out."""
    payload, uplink = chosen(problem.payload_bit, module), chosen(problem.uplink_s, module)
    c = problem.link.outage_power_w(payload, uplink, bandwidth_hz, problem.gain)
    least = problem.link.power_min_w(payload, uplink, bandwidth_hz, problem.gain)
    return np.where(module > 0, success_probability(c, power_w, least), 0.0)


def energy_j(problem: Problem, module: NDArray[np.int64], power_w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Energy E_k = E_cmp + E_up of each device [J], (2) and (7), shape (…, K); 0 for a device that sits out.

    Compute energy is paid by every scheduled device, whether or not its upload arrives.
    """
    uplink = np.maximum(chosen(problem.uplink_s, module), 0.0)
    upload = upload_energy_j(power_w, uplink, problem.pa_efficiency, problem.circuit_power_w)
    return np.where(module > 0, chosen(problem.compute_j, module) + upload, 0.0)


def device_value(
    problem: Problem, module: NDArray[np.int64], power_w: NDArray[np.float64], bandwidth_hz: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Each device's term V U π − Z E of (P1) [J²], shape (…, K); 0 for a device that sits out."""
    learning = problem.tradeoff_v * chosen(problem.utility, module) * success(problem, module, power_w, bandwidth_hz)
    with np.errstate(over="ignore"):
        return learning - problem.queue_j * energy_j(problem, module, power_w)


def make_decision(
    problem: Problem,
    module: NDArray[np.int64],
    power_w: NDArray[np.float64],
    bandwidth_hz: NDArray[np.float64],
    *,
    upper_bound: float | None = None,
    iterations: int = 0,
    status: str = "ok",
) -> Decision:
    """A Decision with its predicted success probabilities and (P1) objective filled in.

    Args:
        problem: the round.
        module: shape (K,), 0 sits out; power and bandwidth of such devices are set to 0.
        power_w: p_k [W], shape (K,).
        bandwidth_hz: b_k [Hz], shape (K,).
        upper_bound: a proven bound on the optimum, if the solver has one.
        iterations: how many the solver took.
        status: "ok", or what went less than well.
    """
    module = np.array(module, np.int64)
    active = module > 0
    power = np.where(active, power_w, 0.0)
    bandwidth = np.where(active, bandwidth_hz, 0.0)
    return Decision(
        module=module,
        power_w=power,
        bandwidth_hz=bandwidth,
        success_probability=success(problem, module, power, bandwidth),
        objective=float(device_value(problem, module, power, bandwidth).sum()),
        upper_bound=upper_bound,
        iterations=iterations,
        status=status,
    )


def validate_decision(problem: Problem, decision: Decision, *, unlimited: bool = False) -> None:
    """Check a decision against the round's constraints.

    Args:
        problem: the round.
        decision: what was decided.
        unlimited: whether the decision may be error-free, as only that of the unlimited upper bound may.

    Raises:
        AirtuneError: wrong shape or type, a value that is not finite or negative, a module out of range or not
            feasible, power over its cap, more bandwidth than the band, a success probability other than (6), or
            error-free where that is not allowed; the line names the first such device.
    """
    devices, modules = problem.utility.shape
    fields = ("module", "power_w", "bandwidth_hz", "success_probability")
    for name in fields:
        _check_array(name, getattr(decision, name), devices, integer=name == "module")
    _refuse(
        (decision.module < 0) | (decision.module > modules),
        decision.module,
        f"module {{value}} of device {{k}} does not exist; use 0 (sits out) to {modules}",
    )
    if decision.error_free and not unlimited:
        raise AirtuneError("decision: error_free is only for the unlimited policy; leave it out")
    if decision.error_free:
        expected = np.where(decision.module > 0, 1.0, 0.0)
    else:
        _check_resources(problem, decision)
        expected = success(problem, decision.module, decision.power_w, decision.bandwidth_hz)
    _refuse(
        np.abs(decision.success_probability - expected) > PROBABILITY_SLACK,
        decision.success_probability,
        "success_probability of device {k} is {value}; by (6) it is {limit}, as make_decision works it out",
        expected,
    )


def _check_resources(problem: Problem, decision: Decision) -> None:
    module = decision.module
    allowed = np.where(module > 0, problem.feasible[np.arange(len(module)), np.maximum(module, 1) - 1], True)
    _refuse(~allowed, module, "module {value} of device {k} is not feasible this round; see problem.feasible[{k}]")
    cap = np.maximum(chosen(problem.power_max_w, module), 0.0)
    _refuse(
        (module > 0) & (decision.power_w > cap * (1.0 + RELATIVE_SLACK)),
        decision.power_w,
        "power_w of device {k} is {value} W; its cap problem.power_max_w is {limit} W",
        cap,
    )
    total_hz = float(np.where(module > 0, decision.bandwidth_hz, 0.0).sum())
    if total_hz > problem.bandwidth_hz * (1.0 + RELATIVE_SLACK):
        worst = int(np.argmax(decision.bandwidth_hz))
        raise AirtuneError(
            f"decision: bandwidth_hz adds up to {total_hz:.6g} Hz but the band has {problem.bandwidth_hz:.6g} Hz "
            f"(device {worst} has the largest share)"
        )


def _check_array(name: str, value: object, devices: int, *, integer: bool) -> None:
    if not isinstance(value, np.ndarray) or value.shape != (devices,):
        found = value.shape if isinstance(value, np.ndarray) else type(value).__name__
        raise AirtuneError(f"decision: {name} must be an array of shape ({devices},), one per device, got {found}")
    kind = np.integer if integer else np.floating
    if not np.issubdtype(value.dtype, kind):
        raise AirtuneError(f"decision: {name} must hold {'integers' if integer else 'floats'}, got {value.dtype}")
    _refuse(~np.isfinite(value), value, f"{name} of device {{k}} is {{value}}; it must be finite")
    if not integer:
        _refuse(value < 0, value, f"{name} of device {{k}} is {{value}}; it must not be negative")


def _refuse(
    wrong: NDArray[np.bool_], value: NDArray[np.generic], message: str, limit: NDArray[np.float64] | None = None
) -> None:
    """Raise on the first wrong device; the message may use {k}, {value} and {limit}."""
    if wrong.any():
        k = int(np.argmax(wrong))
        bound = "" if limit is None else f"{limit[k]:.6g}"
        raise AirtuneError("decision: " + message.format(k=k, value=f"{value[k]:.6g}", limit=bound))
