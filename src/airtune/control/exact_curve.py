"""What one module of one device earns as a function of its band alone, for the exact solver, §6.

With the power at its best, v(b) = max_p V U e^{−c(b)/p} − Z E rises with the band, is convex up to a point and concave
beyond: at the power cap it is V U exp(−κ h(a/b)) less a constant, S-shaped, and below the cap it is concave, as there
c/p ≤ 1 and exp(−c(b)/p) − p is jointly concave in (ln p, b) for c/p ≤ 1.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.control.power import best_power_w
from airtune.physics.link import OutageLink, least_bandwidth_hz
from airtune.types import AirtuneError, Problem

Floats = NDArray[np.float64]

_GRID = 400
"""Shares at which it is tried where tangents to the envelope begin."""


@dataclass(frozen=True, slots=True)
class Option:
    """One module of one device, with power eliminated; u is a part of the band."""

    device: int
    module: int
    """1…M."""
    reward: float
    """V U [J²]."""
    fixed: float
    """F = Z (E_cmp + P_circ τ_up) [J²]."""
    per_w: float
    """Z τ_up/ξ [J²/W]."""
    cap_w: float
    nats: float
    """a/B: nats per symbol if it had the whole band."""
    least_w: float
    """s [W]: c in an infinite band."""
    floor: float
    """Least share, b_min/B by (16): nothing arrives with less; 0 without a ceiling on the rate."""

    def outage_w(self, share: Floats) -> Floats:
        """c at a share of the band [W]."""
        x = self.nats / share
        with np.errstate(over="ignore"):
            return self.least_w * np.expm1(np.minimum(x, 700.0)) / x

    def power_w(self, share: Floats) -> Floats:
        """Best power at a share of the band [W]."""
        return best_power_w(self.reward, self.outage_w(share), self.per_w, 1.0, 1.0, self.cap_w)

    def value(self, share: Floats) -> Floats:
        """v(u) = max_p V U e^{−c/p} − Z E [J²]."""
        power = self.power_w(share)
        sends = power > 0
        ratio = np.where(sends, self.outage_w(share), 0.0) / np.where(sends, power, 1.0)
        return np.where(sends, self.reward * np.exp(-ratio), 0.0) - self.per_w * power - self.fixed

    def slope(self, share: Floats) -> Floats:
        """dv/du [J²], by the envelope theorem."""
        power, x = self.power_w(share), self.nats / share
        sends = power > 0
        safe = np.where(sends, power, 1.0)
        ratio = np.where(sends, self.outage_w(share) / safe, 0.0)
        rise = np.expm1(-x) + x
        # −dc/du = (s/nats) (x e^x − e^x + 1)
        with np.errstate(over="ignore"):
            fall = self.least_w / self.nats * rise * np.exp(np.minimum(x, 700.0))
        return np.where(sends, self.reward * np.exp(-ratio) * fall / safe, 0.0)

    def least_share(self, worth: float) -> float:
        """The share at which v reaches `worth`, from below and from the floor on; v rises with the band."""
        low, high = self.floor, 1.0
        if low > 0.0 and float(self.value(np.array([low]))[0]) >= worth:
            return low
        for _ in range(60):
            middle = 0.5 * (low + high)
            if float(self.value(np.array([middle]))[0]) < worth:
                low = middle
            else:
                high = middle
        return low if low > 0.0 else high

    def touching(self, least: float) -> float | None:
        """The share from which on tangents to v lie above it all over [least, 1]; None if the chord is all there is.

        A tangent that lies above v at the left end lies above it everywhere, v being convex and then concave.
        """
        share = np.geomspace(least, 1.0, _GRID)
        value, slope = self.value(share), self.slope(share)
        left = max(float(value[0]), 0.0)
        bad = np.flatnonzero(value[1:] - slope[1:] * (share[1:] - least) < left) + 1
        first = int(bad[-1]) + 1 if len(bad) else 1
        return float(share[first]) if first < len(share) else None

    def tangents(self, share: Floats) -> list[tuple[float, float]]:
        """(value at u = 0, slope) of the tangents to v at some shares."""
        value, slope = self.value(share), self.slope(share)
        return [(float(v - g * u), float(g)) for v, g, u in zip(value, slope, share, strict=True)]


def options_of(problem: Problem) -> list[Option]:
    """The modules that some device could gain from if it had the whole band."""
    link = problem.link
    if not isinstance(link, OutageLink):
        raise AirtuneError(f"exact: link must be an OutageLink, got {type(link).__name__}")
    least_hz = least_bandwidth_hz(problem.payload_bit, problem.uplink_s, link.max_efficiency_bit_per_s_hz)
    found: list[Option] = []
    for k, column in np.argwhere(problem.feasible & (problem.uplink_s > 0) & (problem.power_max_w > 0)).tolist():
        uplink, queue = float(problem.uplink_s[k, column]), float(problem.queue_j[k])
        reward, gain = problem.tradeoff_v * float(problem.utility[k, column]), float(problem.gain[k])
        if reward <= 0 or gain <= 0:
            continue
        nats_hz = math.log(2.0) * float(problem.payload_bit[k, column]) / uplink
        option = Option(
            device=k,
            module=column + 1,
            reward=reward,
            fixed=queue * float(problem.compute_j[k, column] + problem.circuit_power_w[k] * uplink),
            per_w=queue * uplink / float(problem.pa_efficiency[k]),
            cap_w=float(problem.power_max_w[k, column]),
            nats=nats_hz / problem.bandwidth_hz,
            least_w=link.snr_gap * link.noise_w_per_hz * nats_hz / gain,
            floor=float(least_hz[k, column]) / problem.bandwidth_hz,
        )
        if option.floor < 1.0 and float(option.value(np.ones(1))[0]) > 0:
            found.append(option)
    return found
