"""SP3, bandwidth for fixed modules and powers, §5.

Max Σ_k w_k π_k(b_k) − F_k over the devices that send, subject to Σ b ≤ B, with reward w = V U and F = Z E what sending
costs whatever the band. The band has a price λ [J²/Hz]; each device buys where its marginal value meets it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.evaluation import chosen, energy_j
from airtune.control.market import Market
from airtune.physics.link import OutageLink, WaterfallLink, least_bandwidth_hz, success_probability
from airtune.types import AirtuneError, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Allocation:
    """Bandwidth of each device and the price at which the band clears."""

    bandwidth_hz: NDArray[np.float64]
    """b, shape (…, K) [Hz]; 0 for devices that send nothing."""
    price: NDArray[np.float64]
    """λ, shape (…) [J²/Hz]: what the last hertz is worth."""


def allocate_bandwidth(problem: Problem, module: NDArray[np.int64], power_w: NDArray[np.float64]) -> Allocation:
    """Bandwidth b [Hz] that maximises Σ V U π − Z E with module and power fixed, SP3.

    Args:
        problem: the round.
        module: shape (…, K), 0 sits out.
        power_w: p [W], shape (…, K).

    Returns:
        The allocation; devices not worth their share of the band get 0. The outage link uses the whole band, the
        waterfall link only what the rates need.

    Raises:
        AirtuneError: a link whose success is neither known to rise nor to fall with bandwidth.
    """
    rows, row_power = np.atleast_2d(module), np.atleast_2d(power_w)
    sends = (rows > 0) & (row_power > 0) & (chosen(problem.uplink_s, rows) > 0) & (problem.gain > 0)
    band, price = np.zeros(rows.shape), np.zeros(rows.shape[:1])
    columns = np.flatnonzero(sends.any(axis=0))
    if len(columns):
        match problem.link:
            case OutageLink():
                part, price = _shared_band(problem, problem.link, rows, row_power, sends, columns)
            case WaterfallLink():
                part, price = _least_band(problem, problem.link, rows, row_power, sends, columns)
            case _:
                kind = type(problem.link).__name__
                raise AirtuneError(f"bandwidth: link must be an OutageLink or a WaterfallLink, got {kind}")
        band[:, columns] = part
    return Allocation(band.reshape(module.shape), price.reshape(module.shape[:-1]))


def _worth(
    problem: Problem, module: NDArray[np.int64], power_w: NDArray[np.float64], columns: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reward w = V U and fixed cost F = Z E of each sender [J²], shape (S, columns)."""
    reward = problem.tradeoff_v * chosen(problem.utility, module)[:, columns]
    with np.errstate(over="ignore"):
        fixed = np.minimum((problem.queue_j * energy_j(problem, module, power_w))[:, columns], 1e300)
    return reward, fixed


def _shared_band(
    problem: Problem,
    link: OutageLink,
    module: NDArray[np.int64],
    power_w: NDArray[np.float64],
    sends: NDArray[np.bool_],
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Success rises with bandwidth: find the price that clears the whole band."""
    reward, fixed = _worth(problem, module, power_w, columns)
    sends, power = sends[:, columns], power_w[:, columns]
    uplink = np.where(sends, chosen(problem.uplink_s, module)[:, columns], 1.0)
    payload = chosen(problem.payload_bit, module)[:, columns]
    with np.errstate(over="ignore"):
        nats_hz = math.log(2.0) * payload / uplink
    scale = link.snr_gap * link.noise_w_per_hz / np.where(problem.gain > 0, problem.gain, 1.0)[columns]
    with np.errstate(over="ignore"):
        kappa = scale * nats_hz / np.where(sends, power, 1.0)
    least_hz = least_bandwidth_hz(payload, uplink, link.max_efficiency_bit_per_s_hz)
    return Market(problem.bandwidth_hz, reward, fixed, nats_hz, kappa, least_hz, sends).clear()


def _least_band(
    problem: Problem,
    link: WaterfallLink,
    module: NDArray[np.int64],
    power_w: NDArray[np.float64],
    sends: NDArray[np.bool_],
    columns: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Success falls with bandwidth: give each the least its rate needs, drop those worth least per hertz."""
    reward, fixed = _worth(problem, module, power_w, columns)
    payload, uplink = chosen(problem.payload_bit, module)[:, columns], chosen(problem.uplink_s, module)[:, columns]
    gain, power = problem.gain[columns], power_w[:, columns]
    band = link.bandwidth_min_hz(payload, uplink, np.where(sends[:, columns], power, 0.0), gain)
    net = reward * success_probability(link.outage_power_w(payload, uplink, band, gain), power) - fixed
    wanted = sends[:, columns] & (net > 0) & (band > 0) & (band <= problem.bandwidth_hz)
    band = np.where(wanted, band, 0.0)
    per_hz = np.where(wanted, net / np.where(wanted, band, 1.0), -np.inf)
    order = np.argsort(-per_hz, axis=-1, kind="stable")
    ranked = np.take_along_axis(band, order, axis=-1)
    fits = np.cumsum(ranked, axis=-1) <= problem.bandwidth_hz
    kept = np.zeros_like(band)
    np.put_along_axis(kept, order, np.where(fits, ranked, 0.0), axis=-1)
    dropped = wanted & (kept == 0)
    return kept, np.where(dropped, per_hz, 0.0).max(axis=-1)
