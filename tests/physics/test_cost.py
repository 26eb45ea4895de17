"""Costs (1)–(4), (7) against numbers worked by hand and against limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.physics import cost
from airtune.types import AirtuneError, Radio

RADIO = Radio(bandwidth_hz=1e6, noise_w_per_hz=1e-20, snr_gap=2.0, deadline_s=10.0, bs_power_w=10.0)


def test_computing_by_hand():
    """(1), (2): 1000 tokens × 2 MFLOP on a chip of 10 FLOP/cycle at 1 GHz take 0.2 s, at 1e-27 F and so 1 W 0.2 J."""
    tokens, flop = np.array([1000.0, 500.0]), np.array([2e6, 4e6, 8e6])
    clock, phi, kappa = np.array([1e9, 2e9]), np.array([10.0, 10.0]), np.array([1e-27, 1e-28])
    time_s = cost.compute_time_s(tokens, flop, clock, phi)
    energy_j = cost.compute_energy_j(tokens, flop, clock, phi, kappa)
    np.testing.assert_allclose(time_s, [[0.2, 0.4, 0.8], [0.05, 0.1, 0.2]], rtol=1e-12)
    # The second chip draws 1e-28 · (2e9)³ = 0.8 W.
    np.testing.assert_allclose(energy_j, [[0.2, 0.4, 0.8], [0.04, 0.08, 0.16]], rtol=1e-12)


def test_downlink_by_hand():
    """(3): SNR = 10 · g / (1e-20 · 1e6); g chosen for SNR 1 and 3, so 1 and 2 bit/s/Hz over 1 MHz."""
    time_s = cost.downlink_time_s(np.array([1e6, 4e6]), np.array([1e-15, 3e-15]), RADIO)
    np.testing.assert_allclose(time_s, [[1.0, 4.0], [0.5, 2.0]], rtol=1e-12)


def test_downlink_at_low_snr_has_the_linear_limit():
    """(3) for SNR → 0: time → S ln 2 · N0 / (P g), without loss of precision."""
    time_s = cost.downlink_time_s(np.array([1.0]), np.array([1e-30]), RADIO)
    np.testing.assert_allclose(time_s, [[np.log(2.0) * 1e-20 / (10.0 * 1e-30)]], rtol=1e-9)


def test_uplink_time_may_be_negative():
    """(4): what the deadline leaves; −1 s says the module cannot be done."""
    left = cost.uplink_time_s(10.0, np.array([[1.0, 2.0]]), np.array([[3.0, 9.0]]))
    np.testing.assert_array_equal(left, [[6.0, -1.0]])


def test_upload_energy_by_hand_and_broadcast():
    """(7): 0.2 W at ξ = 0.5 draws 0.4 W, plus 0.1 W of circuits, for 2 s: 1 J; at 0 W the circuits remain."""
    assert cost.upload_energy_j(0.2, 2.0, 0.5, 0.1) == pytest.approx(1.0, rel=1e-12)
    energy_j = cost.upload_energy_j(np.array([[0.2], [0.0]]), np.array([2.0, 4.0]), 0.5, 0.1)
    np.testing.assert_allclose(energy_j, [[1.0, 2.0], [0.2, 0.4]], rtol=1e-12)


@given(st.floats(0.1, 4.0), st.floats(1e8, 4e9), st.floats(1.0, 64.0), st.floats(1e-29, 1e-26))
def test_energy_is_power_times_time(scale, clock_hz, phi, kappa):
    """(2) = κ f³ · (1), and at another clock time goes as 1/f, energy as f²."""
    one = np.array([1.0])
    tokens, flop = 1000.0 * one, 1e6 * one
    time_s = cost.compute_time_s(tokens, flop, clock_hz * one, phi * one)
    energy_j = cost.compute_energy_j(tokens, flop, clock_hz * one, phi * one, kappa * one)
    np.testing.assert_allclose(energy_j, kappa * clock_hz**3 * time_s, rtol=1e-12)
    faster = scale * clock_hz * one
    np.testing.assert_allclose(cost.compute_time_s(tokens, flop, faster, phi * one), time_s / scale, rtol=1e-12)
    again = cost.compute_energy_j(tokens, flop, faster, phi * one, kappa * one)
    np.testing.assert_allclose(again, scale**2 * energy_j, rtol=1e-12)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: cost.compute_time_s(np.ones(1), np.ones(1), bad, np.ones(1)),
        lambda bad: cost.compute_energy_j(np.ones(1), np.ones(1), np.ones(1), bad, np.ones(1)),
        lambda bad: cost.downlink_time_s(np.ones(1), bad, RADIO),
        lambda bad: cost.upload_energy_j(1.0, 1.0, bad, 0.0),
    ],
)
@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_divisors_must_be_positive(call, bad):
    with pytest.raises(AirtuneError, match="must be > 0"):
        call(np.array([bad]))
