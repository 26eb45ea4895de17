"""Positions, path gain, shadowing and fading against hand-worked numbers and their distributions."""

import math

import numpy as np
import pytest
from scipy import stats

from airtune.physics import fading
from airtune.types import AirtuneError


def test_path_gain_by_hand():
    """128.1 dB at 1 km; 37.6 dB less a decade nearer."""
    gain = fading.path_gain(np.array([1000.0, 100.0, 500.0]))
    loss_db = -10.0 * np.log10(gain)
    np.testing.assert_allclose(loss_db, [128.1, 90.5, 128.1 - 37.6 * math.log10(2.0)], rtol=1e-12)


def test_positions_are_uniform_over_the_ring():
    """The squared distance is uniform between 35² and 500², the angle uniform; Kolmogorov–Smirnov at 1e-3."""
    position_m = fading.positions_m(1, 4000, 500.0, 35.0)
    squared = (position_m**2).sum(axis=1)
    assert squared.min() >= 35.0**2 * (1 - 1e-12) and squared.max() <= 500.0**2 * (1 + 1e-12)
    assert stats.kstest((squared - 35.0**2) / (500.0**2 - 35.0**2), "uniform").pvalue > 1e-3
    angle = np.arctan2(position_m[:, 1], position_m[:, 0])
    assert stats.kstest((angle + np.pi) / (2 * np.pi), "uniform").pvalue > 1e-3


def test_shadowing_is_stationary_gauss_markov():
    """Every round N(0, 8²), and correlation ρⁿ at lag n, over 20000 independent devices."""
    shadowing = fading.Shadowing(3, 20000, 8.0, 0.9)
    level = {t: shadowing.level_db(t) for t in (0, 1, 5, 20)}
    for values in level.values():
        assert stats.kstest(values / 8.0, "norm").pvalue > 1e-3
    for early, late in ((0, 1), (1, 5), (0, 5), (5, 20)):
        # Standard error of a correlation coefficient of 20000 pairs is below 0.0071; 5 of them.
        assert np.corrcoef(level[early], level[late])[0, 1] == pytest.approx(0.9 ** (late - early), abs=0.036)


def test_shadowing_does_not_depend_on_what_was_asked_before():
    """Bit for bit the same round after a fresh start, forwards, backwards and again."""
    walked = fading.Shadowing(5, 7, 6.0, 0.8)
    order = [0, 3, 9, 2, 2, 9, 0]
    for t in order:
        fresh = fading.Shadowing(5, 7, 6.0, 0.8).level_db(t)
        np.testing.assert_array_equal(walked.level_db(t), fresh)
    changed = walked.level_db(4)
    changed[:] = 0.0
    assert np.all(walked.level_db(4) != 0.0), "a caller must not be able to change the process"


def test_shadowing_against_the_explicit_sum():
    """X(t) = ρᵗ σ ε(0) + σ √(1−ρ²) Σ_i ρ^{t−i} ε(i), with ε read off the uncorrelated process."""
    white = fading.Shadowing(2, 5, 1.0, 0.0)
    rho, std_db, t = 0.7, 4.0, 6
    total = rho**t * std_db * white.level_db(0)
    for i in range(1, t + 1):
        total = total + std_db * math.sqrt(1 - rho**2) * rho ** (t - i) * white.level_db(i)
    np.testing.assert_allclose(fading.Shadowing(2, 5, std_db, rho).level_db(t), total, rtol=1e-12)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 3.0])
def test_arrivals_realise_the_success_probability(ratio):
    """(6): with h ~ Exp(1) the share of uploads with p h ≥ c is exp(−c/p); 20000 draws, 4.5 standard errors."""
    count = 20000
    fades = fading.rayleigh_power(0, 4, count)
    arrived = fading.arrives(np.full(count, 0.2), np.full(count, 0.2 * ratio), fades)
    expected = math.exp(-ratio)
    assert arrived.mean() == pytest.approx(expected, abs=4.5 * math.sqrt(expected * (1 - expected) / count))


def test_fades_are_exponential_and_independent_between_rounds():
    first, second = fading.rayleigh_power(0, 1, 5000), fading.rayleigh_power(0, 2, 5000)
    assert stats.kstest(first, "expon").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(5000)
    np.testing.assert_array_equal(first, fading.rayleigh_power(0, 1, 5000))


def test_nothing_arrives_without_power_or_bandwidth():
    """p = 0 or c = ∞ (no bandwidth) never arrives; c = 0 (nothing to send) with power always does."""
    arrived = fading.arrives(np.array([0.0, 0.2, 0.0, 0.2]), np.array([0.1, np.inf, 0.0, 0.0]), np.full(4, 1e9))
    np.testing.assert_array_equal(arrived, [False, False, False, True])


def test_bad_input_is_refused():
    with pytest.raises(AirtuneError, match="min_distance_m"):
        fading.positions_m(0, 3, 30.0, 35.0)
    with pytest.raises(AirtuneError, match="distance_m"):
        fading.path_gain(np.array([1.0, 0.0]))
    with pytest.raises(AirtuneError, match="correlation"):
        fading.Shadowing(0, 1, 8.0, 1.01)
    with pytest.raises(AirtuneError, match="round"):
        fading.Shadowing(0, 1, 8.0, 0.5).level_db(-1)
