"""SP2, transmit power for a fixed module and bandwidth, §5."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from airtune.physics.link import success_probability
from airtune.types import AnyFloat

_OUTAGE_FLOOR_W = 1e-300
"""An outage power of 0 counts as this, so that the least power that suffices is positive."""


def stationary_power_w(
    reward: AnyFloat, outage_power_w: AnyFloat, queue_j: AnyFloat, uplink_s: AnyFloat, pa_efficiency: AnyFloat
) -> NDArray[np.float64]:
    """Stationary power p* = c/(2x), x = −W_0(−½√(Z τ_up c/(ξ V U))) [W], (14).

    The local maximum over p > 0 of V U e^{−c/p} − Z τ_up p/ξ. Arguments broadcast.

    Args:
        reward: V U [J²]; not positive gives 0.
        outage_power_w: c [W]; ∞ gives 0.
        queue_j: Z [J]; 0 gives ∞, energy being free.
        uplink_s: τ_up [s].
        pa_efficiency: ξ in (0, 1].

    Returns:
        p* [W]; 0 where no stationary point exists: the objective falls everywhere.
    """
    gain, c, queue, uplink, xi = np.broadcast_arrays(
        *(np.asarray(value, np.float64) for value in (reward, outage_power_w, queue_j, uplink_s, pa_efficiency))
    )
    sensible = (gain > 0) & np.isfinite(c) & (uplink > 0)
    c = np.maximum(np.where(sensible, c, 1.0), _OUTAGE_FLOOR_W)
    with np.errstate(over="ignore"):
        # Square roots factor by factor: the product itself may leave float64.
        root = np.sqrt(np.maximum(queue, 0.0)) * np.sqrt(np.where(sensible, uplink / xi, 0.0))
        height = 0.5 * root * (np.sqrt(c) / np.sqrt(np.where(sensible, gain, 1.0)))
    exists = sensible & (height <= math.exp(-1.0))
    x = -np.real(np.asarray(lambertw(-np.where(exists, height, 0.0))))
    with np.errstate(over="ignore", divide="ignore"):
        power = c / (2.0 * np.clip(x, 0.0, 1.0))
    return np.where(exists, power, 0.0)


def best_power_w(
    reward: AnyFloat,
    outage_power_w: AnyFloat,
    queue_j: AnyFloat,
    uplink_s: AnyFloat,
    pa_efficiency: AnyFloat,
    power_max_w: AnyFloat,
    power_min_w: AnyFloat = 0.0,
) -> NDArray[np.float64]:
    """Best power p, the exact maximiser of V U π(p) − Z τ_up p/ξ over {0} ∪ [p_min, p_max] [W], SP2.

    The objective falls, rises and falls again, so the maximiser is 0, p_min or the clipped (14). Arguments broadcast.
    Circuit and compute energy do not depend on p and are not weighed here.

    Args:
        reward: V U [J²].
        outage_power_w: c [W].
        queue_j: Z [J].
        uplink_s: τ_up [s].
        pa_efficiency: ξ in (0, 1].
        power_max_w: cap P [W]; not positive gives 0.
        power_min_w: least power the rate allows [W]; 0 if none.
    """
    peak = stationary_power_w(reward, outage_power_w, queue_j, uplink_s, pa_efficiency)
    cap, least = np.asarray(power_max_w, np.float64), np.asarray(power_min_w, np.float64)
    allowed = (cap > 0) & (least <= cap)

    def net(power: NDArray[np.float64]) -> NDArray[np.float64]:
        # A huge queue times a huge power may pass float64's end: −∞ is then the right answer.
        with np.errstate(over="ignore"):
            price = np.minimum(np.asarray(queue_j, np.float64) * uplink_s / pa_efficiency, 1e300)
            return np.asarray(reward) * success_probability(outage_power_w, power, least) - price * power

    low = np.where(allowed, least, 0.0) + np.zeros_like(peak)
    high = np.where(allowed, np.clip(peak, least, np.maximum(cap, least)), 0.0)
    value_low, value_high = net(low), net(high)
    best = np.where(value_high >= value_low, high, low)
    return np.where(np.maximum(value_low, value_high) > 0, best, 0.0)
