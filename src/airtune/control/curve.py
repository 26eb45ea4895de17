"""What a module on a device is worth as a function of bandwidth, power at its best: the inner problem of (15), §6.

An *option* is a module on a device. With x = a/b (a = S ln 2/τ_up; x: spectral efficiency in nats), c = q h(x),
q = Γ_g N0 a/g and h(x) = (e^x − 1)/x, its value at the best power is

    v(b) = A e^{−2w} (1 − 2w) − F,  w e^{−w} = ½ √(r h),  p = q h/(2w)      below the power cap, by (14)
    v(b) = A e^{−κh} − β P − F                                              at the cap P

with A = V U, F = Z (E_cmp + P_circ τ_up), β = Z τ_up/ξ, r = β q/A, κ = q/P. Its marginal value v'(b) is explicit in x,

    v' = (A/a) 2w e^{−2w} x Q/(e^x − 1)   and   v' = (A/a) κ Q e^{−κh},   Q(x) = (x − 1) e^x + 1,

continuous where the cap begins to bind (x_join), and rises with x up to x_top: the inflection of the capped branch, or
w = ½, beyond which sending costs more than it brings, or the ceiling on the rate, x = η_max ln 2, beyond which v = −F.
So at a price λ the best b > 0 is one root, found in ln λ, or the least band b_min = a/(η_max ln 2) of (16).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from airtune.control.compiled import compiled
from airtune.physics.link import RATE_SLACK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

X_MAX = 600.0
"""Spectral efficiencies beyond this [nat] leave float64."""
HALF = 0.5 * math.exp(-0.5)
"""y = w e^{−w} at w = ½."""
_CONVERGED = 1e-4
"""Relative Newton step that ends a root: x is then exact to about 1e-8, and φ, flat at its maximiser, to rounding."""


def _growth_polynomial(degree: int = 12) -> Floats:
    """Coefficients of e^w in s = √(1 − e y), w e^{−w} = y in [0, ½e^{−½}], highest first; relative error 1e-13."""
    low, high = math.sqrt(1.0 - math.e * HALF), 1.0
    s = 0.5 * (low + high) + 0.5 * (high - low) * np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    fit = np.polynomial.Chebyshev.fit(s, np.exp(-np.real(lambertw(-(1.0 - s * s) / math.e))), degree, [low, high])
    return np.asarray(fit.convert(kind=np.polynomial.Polynomial).coef[::-1], np.float64)


_G12, _G11, _G10, _G9, _G8, _G7, _G6, _G5, _G4, _G3, _G2, _G1, _G0 = map(float, _growth_polynomial())


class Options(NamedTuple):
    """Modules on devices that may be worth sending, n of them in the order of their devices; arrays of length n."""

    first: Ints
    """Options of device k are first[k] … first[k + 1] − 1; length K + 1."""
    module: Ints
    """1…M."""
    reward: Floats
    """A [J²]."""
    fixed: Floats
    """F [J²]."""
    nats_hz: Floats
    """a [Hz]."""
    scale_w: Floats
    """q [W]."""
    cap_w: Floats
    """P [W]."""
    cost_per_w: Floats
    """β [J²/W]."""
    ratio: Floats
    """r = β q/A."""
    kappa: Floats
    """κ = q/P."""
    log_scale: Floats
    """ln(A/a)."""
    x_join: Floats
    """x at which the cap begins to bind: 0 if it always binds, x_top if it never does."""
    log_join: Floats
    """ln v' there [ln J²/Hz]."""
    x_top: Floats
    """x of the largest marginal value."""
    log_top: Floats
    """ln v' there: at higher prices the option wants no more than its least band."""
    least_hz: Floats
    """b_min [Hz], (16): v = −F below it; 0 without a ceiling on the rate."""
    log_stop: Floats
    """ln of the price from which on the option wants no band: log_top, or more where it is worth its least band."""


@compiled
def growth(y: float) -> float:
    """e^w for w e^{−w} = y, 0 ≤ y ≤ ½e^{−½}; w itself is y e^w."""
    s = math.sqrt(1.0 - math.e * y)
    s2 = s * s
    s4 = s2 * s2
    low = (_G0 + _G1 * s) + (_G2 + _G3 * s) * s2
    middle = (_G4 + _G5 * s) + (_G6 + _G7 * s) * s2
    high = (_G8 + _G9 * s) + (_G10 + _G11 * s) * s2
    return low + s4 * (middle + s4 * (high + s4 * _G12))


@compiled
def slope_factor(x: float, less_one: float) -> float:
    """Q(x) = (x − 1) e^x + 1 = Σ (n−1)/n! x^n, given e^x − 1."""
    if x < 0.03:
        return x * x * (0.5 + x * (1.0 / 3.0 + x * (0.125 + x * (1.0 / 30.0 + x * (1.0 / 144.0 + x / 840.0)))))
    return x * less_one + x - less_one


@compiled
def free_slope(x: float, ratio: float, log_scale: float) -> tuple[float, float]:
    """ln v' below the cap, and its derivative in ln x."""
    less_one = math.expm1(x)
    q = slope_factor(x, less_one)
    y = min(0.5 * math.sqrt(ratio * less_one / x), HALF)
    e_w = growth(y)
    w = y * e_w
    log_slope = log_scale + math.log(2.0 * y / e_w * (x * q / less_one))
    rise = 0.5 * (1.0 - 2.0 * w) / (1.0 - w) * (q / less_one)
    return log_slope, rise + 1.0 + (less_one + 1.0) * x * (x / q - 1.0 / less_one)


@compiled
def capped_slope(x: float, kappa: float, log_scale: float) -> tuple[float, float]:
    """ln v' at the cap, and its derivative in ln x."""
    less_one = math.expm1(x)
    q = slope_factor(x, less_one)
    log_slope = log_scale + math.log(kappa * q) - kappa * (less_one / x)
    return log_slope, x * x * (less_one + 1.0) / q - kappa * (q / x)


@compiled
def root(options: Options, i: int, log_price: float, guess: float) -> float:
    """x with ln v'(x) = ln λ on the rising branch of option i, by safeguarded Newton in ln x; needs ln λ < log_top."""
    free = log_price <= options.log_join[i]
    low, high = (0.0, options.x_join[i]) if free else (options.x_join[i], options.x_top[i])
    ratio, kappa, log_scale = options.ratio[i], options.kappa[i], options.log_scale[i]
    x = guess
    if not low < x < high:
        start = kappa - math.log(kappa)
        if free:
            y = 0.5 * math.sqrt(ratio)
            e_w = growth(min(y, HALF))
            start = math.log(e_w / (2.0 * y))
        x = math.exp(0.5 * (log_price - log_scale + start + math.log(2.0)))
        if not low < x < high:
            x = 0.3 * low + 0.7 * high
    for _ in range(100):
        value, slope = free_slope(x, ratio, log_scale) if free else capped_slope(x, kappa, log_scale)
        missing = log_price - value
        if missing > 0.0:
            low = x
        else:
            high = x
        step = missing / slope if slope > 0.0 else math.inf
        if abs(step) <= _CONVERGED:
            return min(max(x * (1.0 + step), 1e-300), high if missing > 0.0 else x)
        x = x * math.exp(step) if abs(step) > 0.1 else x * (1.0 + step * (1.0 + 0.5 * step))
        if not low < x < high:
            x = 0.5 * (low + high) if low > 0.0 else 0.1 * high
        if high - low <= 1e-15 * high:
            return x
    return x


@compiled
def value_at(options: Options, i: int, x: float) -> float:
    """v [J²] of option i at spectral efficiency x > 0; −F above the ceiling, or where sending pays at no power."""
    if x > X_MAX or x * options.least_hz[i] > options.nats_hz[i] * (1.0 + RATE_SLACK):
        return -options.fixed[i]
    h = math.expm1(x) / x
    if x < options.x_join[i]:
        y = 0.5 * math.sqrt(options.ratio[i] * h)
        if y >= HALF:
            return -options.fixed[i]
        e_w = growth(y)
        return options.reward[i] * (1.0 - 2.0 * y * e_w) / (e_w * e_w) - options.fixed[i]
    sent = options.reward[i] * math.exp(-options.kappa[i] * h) - options.cost_per_w[i] * options.cap_w[i]
    return max(sent, 0.0) - options.fixed[i]


@compiled
def power_at(options: Options, i: int, x: float) -> float:
    """Best power p [W] of option i at spectral efficiency x, (14) clipped to the cap."""
    h = math.expm1(min(x, X_MAX)) / min(x, X_MAX)
    if x < options.x_join[i]:
        y = 0.5 * math.sqrt(options.ratio[i] * h)
        if 0.0 < y < HALF:
            return min(options.scale_w[i] * h / (2.0 * y * growth(y)), options.cap_w[i])
    return options.cap_w[i]


@compiled
def offer(
    options: Options, i: int, price: float, log_price: float, least_hz: float, most_hz: float, guess: float
) -> tuple[float, float, float]:
    """Best of v(b) − λ b over least ≤ b ≤ most for option i: φ(λ) of (15) [J²], its b [Hz], and the root x or 0.

    Where the ceiling on the rate leaves no such b, least for nothing.
    """
    a = options.nats_hz[i]
    phi, band, x = -options.fixed[i], 0.0, 0.0
    first = max(least_hz, options.least_hz[i])
    if first > most_hz:
        return phi - price * least_hz, least_hz, x
    if first > 0.0:
        phi, band = value_at(options, i, a / first) - price * first, first
    if log_price >= options.log_top[i]:
        return phi, band, x
    x_least = a / most_hz
    best = x_least
    if x_least < options.x_top[i]:
        x = root(options, i, log_price, guess)
        best = max(x, x_least)
    inside = a / best
    if inside > first:
        other = value_at(options, i, best) - price * inside
        if other > phi:
            return other, inside, x
    return phi, band, x
