"""The market for the band: SP3 on the outage link by a price search, §5.

With x = a/b (a = S ln 2/τ_up, x: spectral efficiency in nats) and κ = Γ_g N0 a/(g p), the success probability is
π = e^{−κ h(x)}, h(x) = (e^x − 1)/x, and the marginal value of bandwidth is

    w dπ/db = (w κ/a) q(x) e^{−κ h(x)},   q(x) = (x − 1) e^x + 1.

It rises with b up to one inflection x_in(κ), where κ = x³ e^x/q², and falls after it: at any price a device buys either
nothing or a b on the falling branch x ≤ x_in, where ln(marginal value) is concave and increasing in x. A ceiling on the
rate, (16), ends that branch at x = η_max ln 2, where it lies below x_in.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.physics.link import RATE_SLACK

Array = NDArray[np.float64]

_KAPPA_MAX = 600.0
"""Above this π < e^−600 at any bandwidth: such an upload is hopeless."""
_X_MIN = 1e-6
"""Below this spectral efficiency [nat] the uplink is as good as infinitely wide."""
_PRICE_STEPS = 10
"""Halvings of the bracket of ln λ that settle who sends."""
_CLEARING_STEPS = 10
"""Newton steps at most on ln λ once it is settled who sends."""
_AT_LEAST = 1.001
"""Band over the least, (16), up to which rounding takes nothing from it."""
_CLEARED = 1e-11
"""Relative mismatch of demand and band at which the price is found."""


def _slope_factor(x: Array) -> Array:
    """q(x) = (x − 1) e^x + 1, to a relative error of about 1e-16/x."""
    return x * np.exp(x) - np.expm1(x)


_X_GRID = np.geomspace(1e-3, 600.0, 2048)
_LOG_KAPPA_GRID = 3.0 * np.log(_X_GRID) + _X_GRID - 2.0 * np.log(_slope_factor(_X_GRID))


def inflection(kappa: Array) -> Array:
    """Spectral efficiency x_in(κ) [nat] at which π(b) turns from convex to concave.

    Interpolated from κ = x³ e^x/q(x)², which falls in x; relative error below 1e-5 for κ in [1e-250, 600].
    """
    log_x = np.interp(-np.log(np.maximum(kappa, 1e-250)), -_LOG_KAPPA_GRID, np.log(_X_GRID))
    return np.exp(log_x)


@dataclass(frozen=True, slots=True, eq=False)
class Market:
    """Devices that want bandwidth, S independent rows of K."""

    band_hz: float
    """B [Hz]."""
    reward: Array
    """w = V U [J²], shape (S, K)."""
    fixed: Array
    """F, what sending costs whatever the band [J²], shape (S, K)."""
    nats_hz: Array
    """a = S ln 2/τ_up [Hz], shape (S, K)."""
    kappa: Array
    """κ = Γ_g N0 a/(g p), shape (S, K)."""
    least_hz: Array
    """b_min of (16), below which π = 0 [Hz], shape (S, K); 0 without a ceiling on the rate."""
    sends: NDArray[np.bool_]
    """Devices that may buy."""

    def clear(self) -> tuple[Array, Array]:
        """Bandwidth b (S, K) [Hz] and clearing price λ (S,) [J²/Hz].

        A price search settles who sends. At the clearing price demand may jump over B; then the marginal device is
        tried both ways, and the better row is kept. Rows in which nobody gains by sending get 0.
        """
        traders = _Traders.of(self)
        fits, next_in = traders.who_sends()
        band, price = traders.share(np.concatenate([fits, next_in]))
        value = np.where(band > 0, traders.stack(2).worth(band), 0.0).sum(axis=-1)
        rows = np.arange(len(fits))
        rows = np.where(value[len(fits) :] > value[: len(fits)], rows + len(fits), rows)
        gains = value[rows] > 0
        band, price = np.where(gains[:, None], band[rows], 0.0), np.where(gains, price[rows], 0.0)
        return self._or_alone(band, price)

    def _or_alone(self, band: Array, price: Array) -> tuple[Array, Array]:
        """Where nobody buys, all of the band to the one that gains by it: below its inflection it is all or none."""
        able = self.sends & (self.reward > 0) & (self.nats_hz > 0)
        x = np.clip(np.where(able, self.nats_hz, 1.0) / self.band_hz, 1e-12, _KAPPA_MAX)
        loss = np.minimum(np.where(able, self.kappa, 0.0) * np.expm1(x) / x, 700.0)
        able &= (self.nats_hz < _KAPPA_MAX * self.band_hz) & (self.least_hz <= self.band_hz)
        worth = np.where(able, self.reward * np.exp(-loss) - self.fixed, -np.inf)
        best = worth.argmax(axis=-1)
        rows = np.arange(len(band))
        takes = (worth[rows, best] > 0) & ~(band > 0).any(axis=-1)
        alone = np.zeros_like(band)
        alone[rows, best] = self.band_hz
        return np.where(takes[:, None], alone, band), np.where(takes, 0.0, price)


@dataclass(frozen=True, slots=True, eq=False)
class _Traders:
    """The market with what its search needs: each row's (x_low, x_high) and the logarithm of w κ/a."""

    band_hz: float
    reward: Array
    fixed: Array
    nats_hz: Array
    kappa: Array
    least_hz: Array
    x_low: Array
    """x at b = B."""
    x_high: Array
    """x at the inflection or at the ceiling, whichever is less, or x_low for those who cannot buy."""
    log_scale: Array
    eligible: NDArray[np.bool_]

    @classmethod
    def of(cls, market: Market) -> "_Traders":
        sane = market.sends & (market.reward > 0) & (market.nats_hz > 0) & (market.kappa > 0)
        sane &= market.kappa < _KAPPA_MAX
        kappa, nats = np.where(sane, market.kappa, 1.0), np.where(sane, market.nats_hz, market.band_hz)
        reward = np.where(sane, market.reward, 1.0)
        ceiling = np.divide(nats, market.least_hz, out=np.full_like(nats, np.inf), where=market.least_hz > 0)
        x_low, x_high = np.maximum(nats / market.band_hz, _X_MIN), np.minimum(inflection(kappa), ceiling)
        sane &= x_low < x_high
        x_low, x_high = np.where(sane, x_low, 1.0), np.where(sane, x_high, 1.0)
        sane &= reward * np.exp(-kappa * np.expm1(x_low) / x_low) > market.fixed
        log_scale = np.log(reward) + np.log(kappa) - np.log(nats)
        least = np.where(sane, market.least_hz, 0.0)
        return cls(market.band_hz, reward, market.fixed, nats, kappa, least, x_low, x_high, log_scale, sane)

    def worth(self, band: Array) -> Array:
        """V U π − F at bandwidth b > 0 [J²]."""
        x = np.clip(self.nats_hz / np.where(band > 0, band, np.inf), 1e-12, _KAPPA_MAX)
        loss = np.minimum(self.kappa * np.expm1(x) / x, 700.0)
        arrives = np.where(band >= self.least_hz * (1.0 - RATE_SLACK), np.exp(-loss), 0.0)
        return self.reward * arrives - self.fixed

    def log_slope(self, x: Array) -> tuple[Array, Array]:
        """ln(w dπ/db) [ln J²/Hz] and its derivative in x."""
        less_one = np.expm1(x)
        rising = x * (less_one + 1.0)
        q = rising - less_one
        value = self.log_scale + np.log(q) - self.kappa * (less_one / x)
        return value, rising / q - self.kappa * (q / (x * x))

    def respond(self, log_price: Array, x: Array, steps: int) -> tuple[Array, Array]:
        """Newton steps from x towards marginal value = λ on the falling branch; and the derivative there.

        ln(marginal value) is concave in x, so steps from the left never overshoot and one from the right at most once.
        """
        slope = np.ones_like(x)
        for _ in range(steps):
            value, slope = self.log_slope(x)
            slope = np.maximum(slope, 1e-9)
            x = np.clip(x + (log_price - value) / slope, np.maximum(self.x_low, 0.1 * x), self.x_high)
        return x, slope

    def stack(self, times: int) -> "_Traders":
        """The same rows repeated."""

        def tiled(table: Array) -> Array:
            return np.tile(table, (times, 1))

        return _Traders(
            self.band_hz,
            tiled(self.reward),
            tiled(self.fixed),
            tiled(self.nats_hz),
            tiled(self.kappa),
            tiled(self.least_hz),
            tiled(self.x_low),
            tiled(self.x_high),
            tiled(self.log_scale),
            np.tile(self.eligible, (times, 1)),
        )

    def guess(self, log_price: Array) -> Array:
        """Spectral efficiency x from q ≈ x²/2 and h ≈ 1, kept on the branch."""
        log_x = 0.5 * (log_price - self.log_scale + self.kappa + np.log(2.0))
        return np.clip(np.exp(np.minimum(log_x, 6.0)), self.x_low, np.maximum(self.x_low, 0.9 * self.x_high))

    def bracket(self, member: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Logarithms of prices (S, 1): at which one member alone wants all of B, and none wants any.

        At the ceiling a member buys its least band up to the price that takes all of its worth.
        """
        low = np.where(member, self.log_slope(self.x_low)[0], -np.inf).max(axis=-1, keepdims=True)
        least = self.nats_hz / self.x_high
        stop = np.maximum(self.log_slope(self.x_high)[0], np.log(np.maximum(self.worth(least), 1e-300) / least))
        high = np.where(member, stop, -np.inf).max(axis=-1, keepdims=True)
        some = member.any(axis=-1, keepdims=True)
        return np.where(some, low, 0.0), np.where(some, high, 0.0)

    def buys(self, log_price: Array, x: Array) -> tuple[Array, Array]:
        """Demand b and surplus w π − F − λ b at price λ; surplus −∞ for those who cannot buy."""
        band = self.nats_hz / x
        surplus = self.reward * np.exp(-self.kappa * np.expm1(x) / x) - self.fixed - np.exp(log_price) * band
        return band, np.where(self.eligible, surplus, -np.inf)

    def who_sends(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Two sets of senders (S, K): those who fit in B at the clearing price, and those with the marginal one."""
        low, high = self.bracket(self.eligible)
        x = self.guess(0.5 * (low + high))
        in_high = np.zeros_like(self.eligible)
        for step in range(_PRICE_STEPS):
            middle = 0.5 * (low + high)
            x, _ = self.respond(middle, x, 4 if step == 0 else 2)
            band, surplus = self.buys(middle, x)
            buyer = surplus > 0
            over = np.where(buyer, band, 0.0).sum(axis=-1, keepdims=True) > self.band_hz
            low, high = np.where(over, middle, low), np.where(over, high, middle)
            in_high = np.where(over, in_high, buyer)
        x, _ = self.respond(low, x, 3)
        band, surplus = self.buys(low, x)
        keen = np.where(in_high, np.inf, np.where(surplus > 0, surplus / band, -np.inf))
        order = np.argsort(-keen, axis=-1, kind="stable")
        buyer = np.take_along_axis(keen, order, axis=-1) > -np.inf
        used = np.cumsum(np.take_along_axis(np.where(keen > -np.inf, band, 0.0), order, axis=-1), axis=-1)
        inside = np.take_along_axis(in_high, order, axis=-1) | (buyer & (used <= self.band_hz))
        count = inside.sum(axis=-1, keepdims=True)
        rank = np.argsort(order, axis=-1)
        reachable = keen > -np.inf
        return (rank < count) & reachable, (rank < count + 1) & reachable

    def share(self, member: NDArray[np.bool_]) -> tuple[Array, Array]:
        """Split all of B among fixed senders (S', K) by Newton on ln λ, bracketed; b and λ."""
        traders, some = self.stack(member.shape[0] // self.kappa.shape[0]), member.any(axis=-1, keepdims=True)
        low, high = traders.bracket(member)
        log_price = 0.5 * (low + high)
        x = traders.guess(log_price)
        for step in range(_CLEARING_STEPS):
            x, slope = traders.respond(log_price, x, 4 if step == 0 else 2)
            band = np.where(member, traders.nats_hz / x, 0.0)
            total = np.where(some, band.sum(axis=-1, keepdims=True), self.band_hz)
            falls = np.where(x < traders.x_high, band / (x * slope), 0.0).sum(axis=-1, keepdims=True)
            over = total > self.band_hz
            if step > 0 and np.all(np.abs(total - self.band_hz) <= _CLEARED * self.band_hz):
                break
            low, high = np.where(over, log_price, low), np.where(over, high, log_price)
            step_to = log_price + np.log(total / self.band_hz) * total / np.maximum(falls, 1e-30 * total)
            log_price = np.where((step_to > low) & (step_to < high), step_to, 0.5 * (low + high))
        x, _ = traders.respond(log_price, x, 2)
        band = np.where(member, traders.nats_hz / x, 0.0)
        total = np.where(some, band.sum(axis=-1, keepdims=True), self.band_hz)
        held = band <= _AT_LEAST * traders.least_hz
        taken = np.where(held, band, 0.0).sum(axis=-1, keepdims=True)
        fits = taken < self.band_hz  # where not even these do, nobody's least band is kept to
        rest = (self.band_hz - np.where(fits, taken, 0.0)) / np.maximum(total - np.where(fits, taken, 0.0), 1e-300)
        return np.where(held & fits, band, band * rest), np.exp(log_price[:, 0])
