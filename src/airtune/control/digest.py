"""The paper's subproblems taken at their word, as a baseline: least power for a target, most rate for the band, §5."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.evaluation import chosen, device_value, make_decision
from airtune.control.switching import best_module, module_value
from airtune.physics.link import OutageLink, WaterfallLink
from airtune.types import AirtuneError, AnyFloat, Decision, Link, Problem

Floats = NDArray[np.float64]


def least_power_w(
    outage_power_w: AnyFloat, target: float, power_max_w: AnyFloat, power_min_w: AnyFloat = 0.0
) -> Floats:
    """Least power p = max(c / ln(1/π̂), p_min) with π ≥ π̂ [W], SP2′; 0 where the cap does not reach it."""
    if not 0.0 < target < 1.0:
        raise AirtuneError(f"digest: the target success probability must lie strictly between 0 and 1, got {target}")
    power = np.maximum(np.asarray(outage_power_w, np.float64) / math.log(1.0 / target), power_min_w)
    return np.where(power <= power_max_w, power, 0.0)


def rate_bandwidth_hz(weight: Floats, snr_hz: Floats, band_hz: float, steps: int = 60) -> Floats:
    """Bandwidth that maximises Σ_k w_k b_k log2(1 + s_k/b_k) over Σ b = B [Hz], SP3′.

    Concave: at the price ν every device sits at an SNR u = s/b with w (ln(1+u) − u/(1+u)) = ν ln 2, so ν is found by
    bisection and each u by Newton's method.

    Args:
        weight: w_k ≥ 0, shape (K,).
        snr_hz: s_k = p g/(Γ_g N0) ≥ 0 [Hz], shape (K,).
        band_hz: B [Hz].
        steps: halvings of ln ν.

    Returns:
        b_k [Hz], shape (K,); 0 where w or s is 0.
    """
    takes = (weight > 0) & (snr_hz > 0)
    band = np.zeros_like(snr_hz)
    if not takes.any():
        return band
    w, s = weight[takes], snr_hz[takes]
    top = s / band_hz
    low, high = (math.log(float(np.max(w * f))) for f in (_marginal(top), _marginal(top * len(w) * 2.0) + 1e-300))
    high = max(low, high) + 1.0
    share = s / top
    for _ in range(steps):
        price = 0.5 * (low + high)
        share = np.minimum(s / _snr_at(math.exp(price) / w), band_hz)
        low, high = (price, high) if share.sum() > band_hz else (low, price)
    band[takes] = share * (band_hz / share.sum())
    return band


def _marginal(snr: Floats) -> Floats:
    """ln(1+u) − u/(1+u), by its series u²/2 − 2u³/3 where that would cancel."""
    small = np.minimum(snr, 1e-4)
    return np.where(snr < 1e-4, small * small * (0.5 - small * (2.0 / 3.0)), np.log1p(snr) - snr / (1.0 + snr))


def _snr_at(marginal: Floats) -> Floats:
    """The u with ln(1+u) − u/(1+u) = y: Newton on ln u, from above u = √(2y) and e^{1+y}."""
    log_u = np.where(marginal < 0.5, 0.5 * np.log(2.0 * marginal), np.minimum(marginal, 600.0) + 1.0)
    for _ in range(8):
        u = np.exp(log_u)
        f = _marginal(u)
        log_u = log_u - np.clip((f - marginal) * ((1.0 + u) / u) ** 2, -2.0, 2.0)
    return np.exp(log_u)


@dataclass(frozen=True, slots=True)
class DigestPolicy:
    """Switching as SP1, least power that reaches a target, band shared for the largest payload-weighted rate.

    Source: the wording of the subproblems in the digest of arXiv 2509.19306, taken literally, §5.
    """

    target: float = 0.9
    """Success probability π̂ that power control aims at."""
    sweeps: int = 6

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round: the best of a fixed number of sweeps from an equal share for all."""
        able = problem.feasible.sum(axis=-1) > 0
        nothing = np.zeros(len(problem.gain))
        band = np.where(able, problem.bandwidth_hz / max(int(able.sum()), 1), 0.0)
        best = make_decision(problem, nothing.astype(np.int64), nothing, nothing)
        for sweep in range(self.sweeps):
            power_km = self._power_w(problem, band)
            module = best_module(np.where(power_km > 0, module_value(problem, power_km, band[:, None]), -np.inf))
            power = chosen(power_km, module)
            if device_value(problem, module, power, band).sum() > best.objective:
                best = make_decision(problem, module, power, band, iterations=sweep + 1)
            weight = chosen(problem.payload_bit, module)
            shared = rate_bandwidth_hz(weight, power * problem.gain / _noise(problem.link), problem.bandwidth_hz)
            if not shared.any():
                break
            band = shared
        return best

    def _power_w(self, problem: Problem, band: Floats) -> Floats:
        """SP2′ for every module, shape (K, M)."""
        arguments = (problem.payload_bit, problem.uplink_s, band[:, None], problem.gain[:, None])
        return least_power_w(
            problem.link.outage_power_w(*arguments),
            self.target,
            problem.power_max_w,
            problem.link.power_min_w(*arguments),
        )


def _noise(link: Link) -> float:
    """Γ_g N0 [W/Hz] of a link that states it."""
    match link:
        case OutageLink() | WaterfallLink():
            return link.snr_gap * link.noise_w_per_hz
        case _:
            raise AirtuneError(f"digest: link must be an OutageLink or a WaterfallLink, got {type(link).__name__}")
