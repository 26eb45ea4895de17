"""The radio channel: where devices are, what the path and the buildings cost, and the fading that loses uploads.

The mean gain g_k(t) of (5) is path gain × shadowing and is known before deciding. Block Rayleigh fading multiplies it
by h_k(t), exponential of mean 1 and unknown before the transmission: an upload at power p arrives iff h ≥ c/p, which
has probability exp(−c/p), so drawing h realises (6) exactly.
"""

import numpy as np

from airtune.rng import Stream, generator
from airtune.types import AirtuneError, AnyFloat, BoolK, FloatK

PATH_LOSS_AT_1_KM_DB = 128.1
"""Macro cell, 2 GHz carrier: 3GPP TR 36.814 table A.2.1.1-3 and TR 36.942 §4.5.2 (base station 15 m above roofs)."""
PATH_LOSS_PER_DECADE_DB = 37.6
"""Same source; exponent 3.76."""


def positions_m(seed: int, devices: int, radius_m: float, min_distance_m: float) -> np.ndarray:
    """Positions (x, y) of K devices, uniform over the ring around the base station at the origin [m].

    Returns:
        K×2 [m]. A device's position does not change with the run's length, only with the seed and K.

    Raises:
        AirtuneError: a closest distance that is not below the cell's radius.

    """
    if not 0.0 <= min_distance_m < radius_m:
        raise AirtuneError(
            f"world.min_distance_m must be below world.cell_radius_m, got {min_distance_m} and {radius_m}"
        )
    draw = generator(seed, Stream.POSITION).random((2, devices))
    distance_m = np.sqrt(min_distance_m**2 + draw[0] * (radius_m**2 - min_distance_m**2))
    angle = 2.0 * np.pi * draw[1]
    return np.stack((distance_m * np.cos(angle), distance_m * np.sin(angle)), axis=1)


def path_gain(
    distance_m: FloatK,
    at_1_km_db: float = PATH_LOSS_AT_1_KM_DB,
    per_decade_db: float = PATH_LOSS_PER_DECADE_DB,
) -> FloatK:
    """Path gain, linear, shape K; loss A + B log10(d/km) dB, by default of a macro cell (3GPP TR 36.814, A.2.1.1-3).

    Args:
        distance_m: d_k > 0 [m], shape K.
        at_1_km_db: A [dB].
        per_decade_db: B [dB].

    Raises:
        AirtuneError: a distance that is not positive.

    """
    if not np.all(distance_m > 0.0):
        raise AirtuneError(f"distance_m must be > 0 everywhere, got a least value of {np.min(distance_m)}")
    loss_db = at_1_km_db + per_decade_db * np.log10(distance_m / 1000.0)
    return 10.0 ** (-loss_db / 10.0)


class Shadowing:
    """Log-normal shadowing of K devices, a stationary first-order Gauss–Markov process over rounds [dB].

    X(0) = σ ε(0), X(t) = ρ X(t−1) + σ √(1−ρ²) ε(t), so every X(t) ~ N(0, σ²) and corr(X(t), X(t+n)) = ρⁿ (Gudmundson,
    Electronics Letters 1991, with the distance moved between two rounds folded into ρ, one for all devices or one for
    each; where ρ is 1 it never changes). ε(t) comes from the generator of round t, so X(t) depends on (seed, t) alone,
    bit for bit. The last value is kept: rounds in order cost O(K).
    """

    __slots__ = ("_correlation", "_devices", "_last", "_seed", "_std_db", "_stream", "_t")

    def __init__(
        self, seed: int, devices: int, std_db: float, correlation: AnyFloat, stream: Stream = Stream.SHADOWING
    ) -> None:
        if std_db < 0.0 or not np.all((correlation >= 0.0) & (correlation <= 1.0)):
            raise AirtuneError(f"shadowing needs std_db ≥ 0 and correlation in [0, 1], got {std_db} and {correlation}")
        self._seed = seed
        self._stream = stream
        self._devices = devices
        self._std_db = std_db
        self._correlation = correlation
        self._t = 0
        self._last = std_db * self._innovation(0)

    def level_db(self, t: int) -> FloatK:
        """Shadowing X_k(t) [dB], shape K, for round t ≥ 0, in any order of calls.

        Raises:
            AirtuneError: a negative round.

        """
        if t < 0:
            raise AirtuneError(f"round t must be ≥ 0, got {t}")
        if t < self._t:
            self._t, self._last = 0, self._std_db * self._innovation(0)
        fresh = self._std_db * np.sqrt(1.0 - self._correlation**2)
        while self._t < t:
            self._t += 1
            self._last = self._correlation * self._last + fresh * self._innovation(self._t)
        return self._last.copy()

    def _innovation(self, t: int) -> FloatK:
        """White noise ε(t) of round t, N(0, 1), shape K."""
        return generator(self._seed, self._stream, t).standard_normal(self._devices)


def rayleigh_power(seed: int, t: int, devices: int) -> FloatK:
    """Block Rayleigh fading power h_k(t) ~ Exp(1), shape K, one draw per device and round.

    The same for every policy, so that two policies are compared on the same fades.
    """
    return generator(seed, Stream.FADING, t).standard_exponential(devices)


def arrives(power_w: FloatK, outage_power_w: FloatK, fading_power: FloatK) -> BoolK:
    """Whether each upload arrives, p h ≥ c, shape K; for h ~ Exp(1) the probability is exp(−c/p), as (6) has it.

    Args:
        power_w: p_k ≥ 0 [W]; a device that does not transmit (p = 0) delivers nothing.
        outage_power_w: c_k [W], (5); ∞ without bandwidth.
        fading_power: h_k, from `rayleigh_power`.

    """
    return (power_w > 0.0) & (power_w * fading_power >= outage_power_w)
