"""What a module is worth as a function of bandwidth: against a scan over power and bandwidth, and its derivatives."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import lambertw

from airtune.control.curve import HALF, capped_slope, free_slope, growth, offer, power_at, root, slope_factor, value_at
from airtune.control.options import Options, cut_off, shape, twice_w, x_of_gain, x_of_inflection
from airtune.control.power import best_power_w

BAND_HZ = 1e6


def option(reward, fixed, nats_hz, scale_w, cap_w, cost_per_w, least_hz=0.0):
    """One option by itself, with a least band if there is a ceiling on the rate."""

    def one(value):
        return np.array([value], float)

    options = Options(
        np.array([0, 1]),
        np.array([1]),
        *map(one, (reward, fixed, nats_hz, scale_w, cap_w, cost_per_w)),
        one(cost_per_w * scale_w / reward),
        one(scale_w / cap_w),
        one(math.log(reward / nats_hz)),
        *(one(0.0) for _ in range(4)),
        one(least_hz),
        one(0.0),
    )
    shape(options, 0)
    cut_off(options, 0)
    return options


@st.composite
def random_option(draw, ceiling=None):
    """Rates far below and above the band, links from easy to hopeless, energy from free to dear; a least band."""
    reward = 10.0 ** draw(st.floats(-3, 3))
    nats_hz = BAND_HZ * 10.0 ** draw(st.floats(-4, 0.8))
    cap_w = 10.0 ** draw(st.floats(-3, 1))
    scale_w = cap_w * 10.0 ** draw(st.floats(-5, 0.5))
    cost = draw(st.sampled_from([0.0, 1.0])) * reward / cap_w * 10.0 ** draw(st.floats(-4, 1.5))
    fixed = reward * draw(st.floats(0, 0.7))
    least_hz = nats_hz / draw(ceiling) if ceiling is not None else 0.0
    return option(reward, fixed, nats_hz, scale_w, cap_w, cost, least_hz)


def scanned(o, band_hz):
    """Best value over power at each bandwidth, by a dense scan."""
    x = o.nats_hz[0] / band_hz
    with np.errstate(over="ignore"):
        c = o.scale_w[0] * np.expm1(np.minimum(x, 700.0)) / x
    power = o.cap_w[0] * np.geomspace(1e-7, 1.0, 3000)
    with np.errstate(over="ignore", under="ignore"):
        value = o.reward[0] * np.exp(-c[:, None] / power) - o.cost_per_w[0] * power
    return np.maximum(value.max(axis=1), 0.0) - o.fixed[0]


@settings(max_examples=60, deadline=None)
@given(random_option(), st.floats(-6, 0.5), st.sampled_from([(0.0, 1.0), (0.0, 0.3), (0.2, 1.0), (0.05, 0.4)]))
def test_an_offer_is_the_best_over_power_and_bandwidth(o, depth, share):
    """(15): no scanned pair of power and bandwidth is worth more, and one is worth as much."""
    least, most = (BAND_HZ * part for part in share)
    log_price = o.log_top[0] + depth if np.isfinite(o.log_top[0]) else depth
    price = math.exp(log_price)
    phi, band, _ = offer(o, 0, price, log_price, least, most, 0.0)
    grid = np.concatenate([np.geomspace(max(least, 1e-6 * BAND_HZ), most, 1500), [most]])
    best = float((scanned(o, grid) - price * grid).max())
    if least == 0.0:
        best = max(best, -o.fixed[0])
    assert phi >= best - 1e-9 * o.reward[0]
    assert phi <= best + 3e-3 * o.reward[0]
    assert least * (1 - 1e-12) <= band <= most * (1 + 1e-12)


@settings(max_examples=120, deadline=None)
@given(
    random_option(st.floats(0.05, 20.0)),
    st.floats(-6, 3),
    st.sampled_from([(0.0, 1.0), (0.0, 0.3), (0.2, 1.0), (0.05, 0.4)]),
)
def test_an_offer_under_a_ceiling_is_the_best_from_the_least_band_on(o, depth, share):
    """(16): nothing is worth more than the offer, or than sitting out on the band that is taken in any case."""
    least, most = (BAND_HZ * part for part in share)
    log_price = o.log_top[0] + depth if np.isfinite(o.log_top[0]) else depth
    price = math.exp(log_price)
    phi, band, _ = offer(o, 0, price, log_price, least, most, 0.0)
    idle = -o.fixed[0] - price * least
    first = max(least, float(o.least_hz[0]))
    best = idle
    if first <= most:
        grid = np.concatenate([np.geomspace(first, most, 1500), [most]])
        best = max(idle, float((scanned(o, grid) - price * grid).max()))
        assert first * (1 - 1e-12) <= band <= most * (1 + 1e-12) or band == 0.0
    assert max(phi, idle) >= best - 1e-9 * o.reward[0]
    assert phi <= best + 3e-3 * o.reward[0]
    if least == 0.0 and log_price >= o.log_stop[0]:
        assert best <= idle + 1e-9 * o.reward[0]


@settings(max_examples=60, deadline=None)
@given(random_option(), st.floats(0.001, 0.999))
def test_value_and_power_are_those_of_the_best_power(o, share):
    """(14): the curve's power is SP2's, and its value is what (P1) gives at that power."""
    x = max(o.x_top[0] * share, 1e-6)
    c = o.scale_w[0] * math.expm1(x) / x
    expected = best_power_w(o.reward[0], c, o.cost_per_w[0], 1.0, 1.0, o.cap_w[0])
    power = power_at(o, 0, x)
    worth = o.reward[0] * math.exp(-c / power) - o.cost_per_w[0] * power
    if expected > 0:
        assert power == pytest.approx(float(expected), rel=1e-9)
        assert value_at(o, 0, x) == pytest.approx(worth - o.fixed[0], rel=1e-9, abs=1e-12 * o.reward[0])
    else:
        assert value_at(o, 0, x) <= 1e-12 * o.reward[0]


@settings(max_examples=60, deadline=None)
@given(random_option(), st.floats(0.01, 0.99))
def test_marginal_values_are_the_derivative_and_rise(o, share):
    assume(o.x_top[0] > 0)  # else it pays at no bandwidth
    x = o.x_top[0] * share
    free = x < o.x_join[0]
    slope = free_slope if free else capped_slope
    parameter = o.ratio[0] if free else o.kappa[0]
    log_value, rise = slope(x, parameter, o.log_scale[0])
    near = [slope(x * each, parameter, o.log_scale[0])[0] for each in (1 - 1e-5, 1 + 1e-5)]
    assert rise == pytest.approx((near[1] - near[0]) / 2e-5, rel=1e-4, abs=1e-4)
    assert rise > -1e-6
    step = 1e-4 * min(1.0, abs(o.x_join[0] - x) / x + 1e-9)
    band = o.nats_hz[0] / x
    low, high = (value_at(o, 0, o.nats_hz[0] / (band * each)) for each in (1 - step, 1 + step))
    if step > 1e-6 and low > -o.fixed[0]:
        scale = 1e-9 * o.reward[0] / (band * step)
        assert (high - low) / (2 * band * step) == pytest.approx(math.exp(log_value), rel=1e-4, abs=scale)


@settings(max_examples=60, deadline=None)
@given(random_option(), st.floats(1e-3, 12.0), st.floats(0.0, 50.0))
def test_roots_meet_the_price_from_any_guess(o, depth, guess):
    assume(o.x_top[0] > 0)  # else it pays at no bandwidth
    log_price = o.log_top[0] - depth
    x = root(o, 0, log_price, guess)
    free = log_price <= o.log_join[0]
    value, rise = free_slope(x, o.ratio[0], o.log_scale[0]) if free else capped_slope(x, o.kappa[0], o.log_scale[0])
    assert 0 < x <= o.x_top[0] * (1 + 1e-9)
    assert abs(value - log_price) <= 1e-6 * (1.0 + rise)


def test_the_helpers_invert_what_they_should():
    for y in np.concatenate([[0.0], np.geomspace(1e-14, HALF, 200)]):
        assert growth(y) == pytest.approx(math.exp(-np.real(lambertw(-y))), rel=2e-13)
    for x in np.geomspace(1e-3, 300.0, 60):
        assert x_of_gain(math.expm1(x) / x) == pytest.approx(x, rel=1e-8)
        q = slope_factor(x, math.expm1(x))
        kappa = x**3 * math.exp(x) / q / q
        assert x_of_inflection(kappa) == pytest.approx(x, rel=1e-6)
    for u in np.linspace(1e-6, 0.999, 50):
        assert twice_w(u * math.exp(-u)) == pytest.approx(u, rel=1e-6)
    terms = [sum((n - 1) / math.factorial(n) * x**n for n in range(2, 25)) for x in (1e-4, 0.02, 0.04, 0.5)]
    assert [slope_factor(x, math.expm1(x)) for x in (1e-4, 0.02, 0.04, 0.5)] == pytest.approx(terms, rel=1e-11)
