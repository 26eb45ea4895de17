"""How uploads fail: links whose success probability is exp(−c/p), §1.

Both links answer to `airtune.types.Link`. They differ in what bandwidth does: with `OutageLink` the rate follows from
payload and time, and more band means more success; with `WaterfallLink` the rate must fit in the band, and every hertz
beyond that only lets in noise. On both, no upload arrives above the highest spectral efficiency η_max, if there is one.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import root_scalar
from scipy.special import lambertw

from airtune.config import WorldConfig
from airtune.types import AirtuneError, AnyFloat, Link, Radio

EXPONENT_MAX = 700.0
"""Beyond this, e^x leaves float64: the power needed is called infinite."""
RATE_SLACK = 1e-9
"""Relative shortfall of power or band that still counts as meeting the rate (rounding)."""


@dataclass(frozen=True, slots=True)
class OutageLink:
    """Constant-rate upload over block Rayleigh fading of known mean gain: fails when capacity falls below the rate."""

    noise_w_per_hz: float
    """N0 [W/Hz], noise figure and interference margin included."""
    snr_gap: float
    """Γ_g ≥ 1, linear."""
    max_efficiency_bit_per_s_hz: float = math.inf
    """η_max > 0 of (16) [bit/s/Hz]; ∞ for no ceiling."""

    def __post_init__(self) -> None:
        _check_positive("noise_w_per_hz", self.noise_w_per_hz)
        _check_snr_gap(self.snr_gap)
        _check_ceiling(self.max_efficiency_bit_per_s_hz)

    def outage_power_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Outage power c = Γ_g N0 b (2^{S/(b τ_up)} − 1) / g [W], (5).

        Arguments broadcast. ∞ where bandwidth, time or gain is not positive, where the band is below that of (16), or
        where the power leaves float64.
        """
        noise_w_per_hz, ceiling = self.snr_gap * self.noise_w_per_hz, self.max_efficiency_bit_per_s_hz
        return _power_for_rate_w(noise_w_per_hz, payload_bit, uplink_s, bandwidth_hz, gain, ceiling)

    def power_min_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Least power p_min = 0 [W]: any power has some chance of success. Broadcast shape of the arguments."""
        return np.zeros(np.broadcast(payload_bit, uplink_s, bandwidth_hz, gain).shape)


@dataclass(frozen=True, slots=True)
class WaterfallLink:
    """Packet error rate PER = 1 − exp(−m N0 b / (p g)) at a rate that must fit the band (Chen et al., 2021)."""

    noise_w_per_hz: float
    """N0 [W/Hz], noise figure and interference margin included."""
    m_linear: float
    """Waterfall threshold m, linear (not dB)."""
    snr_gap: float
    """Γ_g ≥ 1, linear; enters the rate only."""
    max_efficiency_bit_per_s_hz: float = math.inf
    """η_max > 0 of (16) [bit/s/Hz]; ∞ for no ceiling."""

    def __post_init__(self) -> None:
        _check_positive("noise_w_per_hz", self.noise_w_per_hz)
        _check_positive("m_linear", self.m_linear)
        _check_snr_gap(self.snr_gap)
        _check_ceiling(self.max_efficiency_bit_per_s_hz)

    def outage_power_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Waterfall power c = m N0 b / g [W], the c of π = exp(−c/p).

        Arguments broadcast. ∞ where bandwidth, time or gain is not positive: nothing can be sent.
        """
        payload, uplink, band, g = _broadcast(payload_bit, uplink_s, bandwidth_hz, gain)
        usable = (uplink > 0) & (band > 0) & (g > 0) & (payload >= 0)
        with np.errstate(over="ignore"):
            power = self.m_linear * self.noise_w_per_hz * band / np.where(usable, g, 1.0)
        return np.where(usable, power, np.inf)

    def power_min_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Least power p_min [W] with b log2(1 + p g / (Γ_g N0 b)) ≥ S/τ_up; ∞ below (16), or where there is none."""
        noise_w_per_hz, ceiling = self.snr_gap * self.noise_w_per_hz, self.max_efficiency_bit_per_s_hz
        return _power_for_rate_w(noise_w_per_hz, payload_bit, uplink_s, bandwidth_hz, gain, ceiling)

    def bandwidth_min_hz(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, power_w: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Least bandwidth b_min [Hz] that carries S bits in τ_up at power p; ∞ where no bandwidth does.

        With v = 1 + p g / (Γ_g N0 b) and ρ = S ln 2 Γ_g N0 / (τ_up p g), the rate b log2 v = S/τ_up reads
        ln v = ρ (v − 1), so v = −W_{−1}(−ρ e^{−ρ}) / ρ; it exists iff ρ < 1. At least (16). Arguments broadcast.
        """
        payload, uplink, power, g = _broadcast(payload_bit, uplink_s, power_w, gain)
        usable = (uplink > 0) & (power > 0) & (g > 0) & np.isfinite(power)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            rate_limit = power * g / (self.snr_gap * self.noise_w_per_hz * math.log(2.0))
            rho = np.where(usable, payload / np.where(usable, uplink, 1.0), np.inf) / rate_limit
            carried = usable & (rho < 1.0) & (rho > 1e-300)
            rho = np.where(carried, rho, 0.5)
            snr = -np.real(np.asarray(lambertw(-rho * np.exp(-rho), -1))) / rho - 1.0
            band = rate_limit * math.log(2.0) / snr
            empty = usable & (payload <= 0)
        band = np.maximum(band, least_bandwidth_hz(payload, uplink, self.max_efficiency_bit_per_s_hz))
        return np.where(carried & (snr > 0), band, np.where(empty, 0.0, np.inf))


def least_bandwidth_hz(
    payload_bit: AnyFloat, uplink_s: AnyFloat, max_efficiency_bit_per_s_hz: float
) -> NDArray[np.float64]:
    """Least bandwidth under a ceiling on the rate, b_min = S/(η_max τ_up) [Hz], (16).

    Arguments broadcast; 0 without a ceiling, ∞ where no time is left.

    Args:
        payload_bit: S [bit].
        uplink_s: τ_up [s].
        max_efficiency_bit_per_s_hz: η_max > 0 [bit/s/Hz]; ∞ for no ceiling.
    """
    payload, uplink = _broadcast(payload_bit, uplink_s)
    if math.isinf(max_efficiency_bit_per_s_hz):
        return np.where(uplink > 0, 0.0, np.inf)
    with np.errstate(over="ignore"):
        band = payload / np.where(uplink > 0, uplink, 1.0) / max_efficiency_bit_per_s_hz
    return np.where(uplink > 0, band, np.inf)


def max_efficiency_of(link: Link) -> float:
    """η_max of a link [bit/s/Hz]; ∞ where it has none."""
    match link:
        case OutageLink() | WaterfallLink():
            return link.max_efficiency_bit_per_s_hz
        case _:
            return math.inf


@dataclass(frozen=True, slots=True)
class GivenLink:
    """Uploads arrive with π = exp(−θ/(p g)), whatever their size, time and band; the far lose more.

    For comparisons in which every method is to meet the same deliveries; θ by `threshold_for`.
    """

    threshold_w: float
    """θ ≥ 0 [W], received power at which an upload arrives with probability 1/e; 0 where none is lost."""

    def outage_power_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Power c = θ / g [W], the c of π = exp(−c/p). Arguments broadcast; ∞ where time, band or gain is not > 0."""
        payload, uplink, band, g = _broadcast(payload_bit, uplink_s, bandwidth_hz, gain)
        usable = (uplink > 0) & (band > 0) & (g > 0) & (payload >= 0)
        return np.where(usable, self.threshold_w / np.where(usable, g, 1.0), np.inf)

    def power_min_w(
        self, payload_bit: AnyFloat, uplink_s: AnyFloat, bandwidth_hz: AnyFloat, gain: AnyFloat
    ) -> NDArray[np.float64]:
        """Least power p_min = 0 [W]. Broadcast shape of the arguments."""
        return np.zeros(np.broadcast(payload_bit, uplink_s, bandwidth_hz, gain).shape)


def threshold_for(delivery: float, received_w: NDArray[np.float64]) -> float:
    """θ [W] at which the mean of exp(−θ/(P g)) is `delivery`.

    Args:
        delivery: mean delivery in (0, 1]; 1 gives θ = 0.
        received_w: P_k g_k(t) [W] at full power, any shape, positive.
    """
    if delivery >= 1.0:
        return 0.0

    def excess(log_theta: float) -> float:
        return float(np.exp(-math.exp(log_theta) / received_w).mean()) - delivery

    low, high = math.log(float(received_w.min())) - 40.0, math.log(float(received_w.max())) + 40.0
    return math.exp(root_scalar(excess, bracket=(low, high), method="brentq", xtol=1e-12).root)


def success_probability(
    outage_power_w: AnyFloat, power_w: AnyFloat, power_min_w: AnyFloat = 0.0
) -> NDArray[np.float64]:
    """Uplink success probability π = exp(−c/p), (6).

    Args:
        outage_power_w: c [W], (5), or the waterfall's.
        power_w: transmit power p [W].
        power_min_w: least power the rate allows [W]; below it (by more than rounding) π = 0.

    Returns:
        π in [0, 1], broadcast shape; 0 for p ≤ 0 or infinite c.
    """
    c, power, least = np.broadcast_arrays(
        np.asarray(outage_power_w, np.float64), np.asarray(power_w, np.float64), np.asarray(power_min_w, np.float64)
    )
    sends = (power > 0) & np.isfinite(c) & (power >= least * (1.0 - RATE_SLACK))
    with np.errstate(over="ignore"):
        ratio = np.where(sends, c, 0.0) / np.where(sends, power, 1.0)
    return np.where(sends, np.exp(-ratio), 0.0)


def fading_of_rate(rate_bit_per_s: AnyFloat, power_w: AnyFloat, gain: AnyFloat, radio: Radio) -> NDArray[np.float64]:
    """Fading power h at which power p over the whole band B carries a rate R: Γ_g N0 B (2^{R/B} − 1) / (p g).

    An upload over the outage link at that power and band arrives under this fading iff R is at least its rate.

    Args:
        rate_bit_per_s: R ≥ 0 [bit/s].
        power_w: p > 0 [W].
        gain: g > 0.
        radio: B, N0, Γ_g.
    """
    noise_w_per_hz = radio.snr_gap * radio.noise_w_per_hz
    return _power_for_rate_w(noise_w_per_hz, rate_bit_per_s, 1.0, radio.bandwidth_hz, np.multiply(power_w, gain))


def link_of(
    config: WorldConfig,
    radio: Radio,
    received_w: NDArray[np.float64] | None = None,
    ceiling: float | None = None,
) -> Link:
    """The link a configuration asks for.

    Args:
        config: which, and its dials.
        radio: noise density N0 and SNR gap Γ_g of the cell.
        received_w: P_k g_k(t) at full power over fleet and run [W], needed for `delivery` alone.
        ceiling: η_max where the configuration leaves it open [bit/s/Hz]; None for none.
    """
    if config.delivery is not None and received_w is not None:
        return GivenLink(threshold_for(config.delivery, received_w))
    most = config.max_efficiency_bit_per_s_hz or ceiling or math.inf
    match config.link:
        case "outage":
            return OutageLink(radio.noise_w_per_hz, radio.snr_gap, most)
        case "waterfall":
            return WaterfallLink(radio.noise_w_per_hz, config.waterfall_m_linear, radio.snr_gap, most)


def _power_for_rate_w(
    noise_w_per_hz: float,
    payload_bit: AnyFloat,
    uplink_s: AnyFloat,
    bandwidth_hz: AnyFloat,
    gain: AnyFloat,
    max_efficiency_bit_per_s_hz: float = math.inf,
) -> NDArray[np.float64]:
    """Power at which the mean channel carries S bits in τ_up over b ≥ b_min: N b (2^{S/(b τ_up)} − 1) / g [W]."""
    payload, uplink, band, g = _broadcast(payload_bit, uplink_s, bandwidth_hz, gain)
    usable = (uplink > 0) & (band > 0) & (g > 0)
    if math.isfinite(max_efficiency_bit_per_s_hz):
        least_hz = least_bandwidth_hz(payload, uplink, max_efficiency_bit_per_s_hz)
        usable &= band >= least_hz * (1.0 - RATE_SLACK)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        exponent = math.log(2.0) * payload / np.where(usable, uplink, 1.0) / np.where(usable, band, 1.0)
        usable = usable & (exponent <= EXPONENT_MAX)
        power = noise_w_per_hz * band * np.expm1(np.where(usable, exponent, 0.0)) / np.where(usable, g, 1.0)
    return np.where(usable, power, np.inf)


def _broadcast(*values: AnyFloat) -> tuple[NDArray[np.float64], ...]:
    """Arguments as float64 arrays of their common shape."""
    return tuple(np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values)))


def _check_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise AirtuneError(f"link: {name} must be a finite number > 0, got {value}")


def _check_snr_gap(value: float) -> None:
    if not (math.isfinite(value) and value >= 1.0):
        raise AirtuneError(f"link: snr_gap must be a linear ratio ≥ 1 (0 dB), got {value}; is it in dB?")


def _check_ceiling(value: float) -> None:
    if not value > 0:
        raise AirtuneError(f"link: max_efficiency_bit_per_s_hz must be a number > 0, or ∞ for no ceiling, got {value}")
