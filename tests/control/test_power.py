import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.control.power import best_power_w, stationary_power_w


def dense_best(reward, c, price, cap, least):
    """The best of a million powers and of sending nothing."""
    p = np.geomspace(max(least, cap * 1e-9), cap, 200_001)
    return max(0.0, float((reward * np.exp(-c / p) - price * p).max()))


@given(
    reward=st.floats(1e-3, 1e3),
    log_c=st.floats(-8.0, 1.0),
    queue=st.floats(1e-3, 1e3),
    uplink=st.floats(0.1, 10.0),
    cap=st.floats(0.01, 2.0),
    least_part=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_against_a_dense_search(reward, log_c, queue, uplink, cap, least_part):
    c, xi, least = 10.0**log_c, 0.35, least_part * cap
    p = float(best_power_w(reward, c, queue, uplink, xi, cap, least))
    assert p == 0.0 or least * (1 - 1e-12) <= p <= cap
    value = 0.0 if p == 0.0 else reward * math.exp(-c / p) - queue * uplink / xi * p
    best = dense_best(reward, c, queue * uplink / xi, cap, least)
    assert value == pytest.approx(best, rel=1e-6, abs=1e-6 * reward)


@given(st.floats(1e-2, 1e3), st.floats(-8.0, 0.0), st.floats(1e-3, 1e3), st.floats(0.1, 10.0))
def test_stationarity_residual(reward, log_c, queue, uplink):
    """V U c/p² e^(−c/p) = Z τ_up/ξ at the Lambert-W power, (14)."""
    c, xi = 10.0**log_c, 0.35
    p = float(stationary_power_w(reward, c, queue, uplink, xi))
    price = queue * uplink / xi
    if p == 0.0:
        # max over p of the marginal reward is at p = c/2: 4 e^-2 reward / c
        assert price >= reward * 4.0 * math.exp(-2.0) / c * (1 - 1e-9)
    else:
        x = c / (2.0 * p)
        assert x <= 1.0 + 1e-6
        assert reward * c / p**2 * math.exp(-c / p) == pytest.approx(price, rel=1e-6)


def test_free_energy_means_full_power_and_no_value_means_none():
    assert best_power_w(1.0, 0.01, 0.0, 5.0, 0.35, 0.2) == 0.2
    assert best_power_w(0.0, 0.01, 1.0, 5.0, 0.35, 0.2) == 0.0
    assert best_power_w(-1.0, 0.01, 0.0, 5.0, 0.35, 0.2) == 0.0
    assert best_power_w(1.0, np.inf, 0.0, 5.0, 0.35, 0.2) == 0.0
    assert best_power_w(1.0, 0.01, 0.0, 5.0, 0.35, -1.0) == 0.0
    assert best_power_w(1.0, 0.01, 0.0, 5.0, 0.35, 0.2, 0.3) == 0.0


def test_broadcasts():
    assert best_power_w(np.ones((3, 1)), np.full(4, 0.01), 1.0, 1.0, 0.35, 0.2).shape == (3, 4)


@given(st.floats(0.1, 10.0), st.floats(-6.0, 0.0), st.floats(1e-3, 10.0), st.floats(1.0, 5.0))
def test_dearer_energy_never_raises_power(reward, log_c, queue, factor):
    lower = best_power_w(reward, 10.0**log_c, queue * factor, 5.0, 0.35, 0.2)
    assert lower <= best_power_w(reward, 10.0**log_c, queue, 5.0, 0.35, 0.2) * (1 + 1e-9)


@given(
    st.floats(-1e12, 1e12),
    st.sampled_from([0.0, 1e-300, 1e-20, 1.0, 1e20, 1e300, np.inf]),
    st.sampled_from([0.0, 1e-300, 1e-9, 1.0, 1e9, 1e300]),
    st.sampled_from([-1.0, 0.0, 1e-9, 1.0, 1e9]),
    st.sampled_from([-np.inf, -1.0, 0.0, 1e-12, 0.2, 1e6]),
    st.sampled_from([0.0, 1e-12, 0.1, 1e9, np.inf]),
)
def test_extremes_never_warn_nor_give_nan(reward, c, queue, uplink, cap, least):
    p = float(best_power_w(reward, c, queue, uplink, 0.35, cap, least))
    assert 0.0 <= p <= max(cap, 0.0)
