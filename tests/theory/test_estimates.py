"""Estimates of Γ_k², δ_m and σ² against drawn gradients whose constants are known, and on degenerate input."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.theory.constants import Constants
from airtune.theory.estimates import (
    Online,
    constants_of,
    delta_of,
    first_estimates,
    fleet_level,
    gamma_sq_of,
    noise_of,
    prior_of,
    relative,
    update_estimates,
)
from airtune.types import AirtuneError, Modules, Report

K, M = 3, 3
SIZES = np.array([4, 6, 10])  # coordinates of each nested increment
MODULES = Modules(*(np.array(v) for v in ((1, 2, 4), (1, 1, 2), np.cumsum(SIZES))), *(np.ones(M) for _ in range(4)))
SAMPLES = np.full(K, 100)


def prior(forgetting=0.9, optimism=0.5, gamma_sq=1.0, noise_sq=0.2, generalisation=0.0, devices=K):
    density = np.cumsum(SIZES) / SIZES.sum()
    noise = np.tile(noise_sq * density + generalisation * np.cumsum(SIZES) / 100, (devices, 1))
    constants = Constants(np.full(devices, gamma_sq), np.array([0.6, 0.3, 0.0]), noise, 0.9, 0.1, 0.7)
    online = Online(True, forgetting, optimism, generalisation)
    return prior_of(constants, MODULES, np.full(devices, 100), online)


def report(device, module, energy, noise=None):
    kept = np.arange(M) < module
    return Report(device, module, np.where(kept, energy, 0.0), None if noise is None else np.where(kept, noise, 0.0))


def learn(rounds, given=None, devices=K):
    given = given or prior()
    estimates = first_estimates(devices, M)
    for reports in rounds:
        estimates = update_estimates(estimates, reports, given)
    return estimates


def test_nothing_heard_is_the_prior():
    given = prior(generalisation=0.5)
    constants = constants_of(first_estimates(K, M), given, optimism=0.5)
    assert constants.gamma_sq.tolist() == [1.0] * K
    assert constants.delta == pytest.approx([0.6, 0.3, 0.0]) and constants.noise == pytest.approx(given.constants.noise)
    assert (constants.contraction, constants.step, constants.initial_gap) == (0.9, 0.1, 0.7)


def test_one_round_by_hand():
    """Device 0 sends the whole module, device 2 the middle one without a word on noise."""
    given = prior(gamma_sq=2.0)
    estimates = learn([[report(0, 3, [5.0, 3.0, 2.0], [1.0, 1.0, 0.0]), report(2, 2, [4.0, 2.0, 0.0])]], given)
    # the prior's noise, 0.2 · (4, 6, 10) / 20, stands in for device 2's
    inner_1, outer_1 = 4.0 + 3.96, 6.0 + 5.9
    rho_1 = (0.4 / 0.7 + 2 * inner_1 / outer_1) / 3  # prior ratio once, two updates larger than module 1
    rho_2 = (0.7 + 6.0 / 8.0) / 2
    assert delta_of(estimates, given) == pytest.approx([1 - rho_1 * rho_2, 1 - rho_2, 0.0], rel=1e-12)
    assert noise_of(estimates, given) == pytest.approx([1.0, 1.0, 0.0])
    level_2 = (6.0 - 2.0) / rho_2  # by then device 0's noise is known and stands in
    assert estimates.level == pytest.approx([8.0, 0.0, level_2], rel=1e-12)
    assert estimates.gross == pytest.approx([10.0, 0.0, 6.0 / rho_2], rel=1e-12)
    fleet = (8.0 + level_2) / 2
    assert fleet_level(estimates) == pytest.approx(fleet)
    plain = np.array([(fleet + 8.0) / 2, fleet, (fleet + level_2) / 2])
    assert gamma_sq_of(estimates, given) == pytest.approx(plain, rel=1e-12)
    bonus = 0.5 * (10.0 + 6.0 / rho_2) / 2 / np.sqrt([2.0, 1.0, 2.0])
    assert gamma_sq_of(estimates, given, 0.5) == pytest.approx(plain + bonus, rel=1e-12)
    later = update_estimates(estimates, (), given)
    assert all(
        getattr(later, field.name) == pytest.approx(0.9 * getattr(estimates, field.name))
        for field in dataclasses.fields(later)
    )


def drawn(rng, gradient, sigma_sq, module, steps, device=0):
    """What a device would report: E noisy gradients, the energy of their mean and the spread around it."""
    owner = np.repeat(np.arange(M), SIZES)
    each = gradient + rng.normal(0.0, np.sqrt(sigma_sq), (steps, len(gradient)))
    mean = each.mean(axis=0)
    spread = ((each - mean) ** 2).sum(axis=0) / (steps * (steps - 1))
    energy, noise = np.bincount(owner, mean**2), np.bincount(owner, spread)
    return report(device, module, energy, noise)


def test_estimates_are_unbiased_where_the_constants_are_known():
    """Many rounds at λ close to 1: devices of unequal Γ, each on a module of its own, noise as large as the signal."""
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.2])
    owner = np.repeat(np.arange(M), SIZES)
    gamma_sq, sigma_sq, steps = np.array([1.0, 4.0, 0.25]), 0.2, 4
    rounds = []
    for _ in range(4000):
        reports = []
        for k in range(K):
            direction = rng.normal(size=SIZES.sum())
            size = np.sqrt(gamma_sq[k] * share / np.bincount(owner, direction**2))
            reports.append(drawn(rng, direction * size[owner], sigma_sq, (3, 2, 1)[k], steps, k))
        rounds.append(reports)
    given = prior(forgetting=0.9995)
    estimates = learn(rounds, given)
    assert delta_of(estimates, given) == pytest.approx([0.5, 0.2, 0.0], abs=0.02)
    assert noise_of(estimates, given) == pytest.approx(sigma_sq / steps * SIZES, rel=0.03)
    assert gamma_sq_of(estimates, given) == pytest.approx(gamma_sq, rel=0.1)


def test_small_modules_tell_of_their_own_part_alone():
    """No full-size update ever: the last ratio stays the prior's, the first is learned."""
    given = prior()
    estimates = learn([[report(0, 2, [3.0, 1.0, 0.0], [0.0, 0.0, 0.0])]] * 200, given)
    delta = delta_of(estimates, given)
    assert delta[1] == pytest.approx(0.3, rel=1e-12)
    assert 1 - delta[0] == pytest.approx(0.7 * (0.4 / 0.7 + 10 * 0.75) / 11, rel=1e-6)
    assert gamma_sq_of(estimates, given)[0] == pytest.approx(4.0 / 0.7, rel=1e-9)


def test_it_forgets_and_optimism_grows_with_silence():
    """Device 0 falls silent after sending little: its own past fades, and it ends above the fleet's mean."""
    given = prior()
    loud = [report(k, 3, [4.0, 0.0, 0.0], [0.0, 0.0, 0.0]) for k in (1, 2)]
    estimates = learn([[report(0, 3, [0.1, 0.0, 0.0], [0.0] * 3), *loud]] * 30, given)
    optimistic = [gamma_sq_of(estimates, given, 0.5)[0]]
    assert gamma_sq_of(estimates, given)[0] < 1.0
    for _ in range(60):
        estimates = update_estimates(estimates, loud, given)
        optimistic.append(gamma_sq_of(estimates, given, 0.5)[0])
    assert np.all(np.diff(optimistic) > 0)
    assert optimistic[-1] > gamma_sq_of(estimates, given, 0.5)[1] > 4.0
    assert gamma_sq_of(estimates, given)[0] == pytest.approx(fleet_level(estimates), rel=2e-2)
    changed = learn([[report(1, 3, [1.0, 0.0, 0.0], [0.0] * 3)]] * 80, given)
    changed = update_estimates(changed, [report(1, 3, [9.0, 0.0, 0.0], [0.0] * 3)] * 1, given)
    assert 1.5 < gamma_sq_of(changed, given)[1] < 2.0  # a tenth of the weight is on the last round


def test_relative_constants_keep_the_fleet_s_mean_and_every_ratio():
    given = prior(gamma_sq=2.0)
    weight = np.array([0.5, 0.3, 0.2])
    constants = Constants(np.array([3.0, 1.0, 0.5]), np.zeros(M), np.ones((K, M)), 0.9, 0.1, 0.7)
    scaled = relative(constants, given.constants, weight)
    assert weight @ scaled.gamma_sq == pytest.approx(2.0)
    assert scaled.noise / scaled.gamma_sq[:, None] == pytest.approx(constants.noise / constants.gamma_sq[:, None])
    silent = dataclasses.replace(constants, gamma_sq=np.zeros(K))
    assert relative(silent, given.constants, weight) is silent


amounts = st.lists(st.sampled_from([0.0, 1e-12, 0.3, 1.0, 1e12]), min_size=M, max_size=M)
reports_of = st.builds(
    lambda device, module, energy, noise: report(device, module, np.array(energy), noise and np.array(noise)),
    st.integers(0, K - 1),
    st.integers(1, M),
    amounts,
    st.none() | amounts,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(reports_of, max_size=4), max_size=8), st.sampled_from([0.0, 0.5, 0.9]))
def test_whatever_is_heard_the_constants_make_sense(rounds, forgetting):
    given = prior(forgetting=forgetting, generalisation=0.1)
    estimates = learn(rounds, given)
    for optimism in (0.0, 0.5):
        constants = constants_of(estimates, given, optimism)
        scaled = relative(constants, given.constants, np.full(K, 1 / K))
        for one in (constants, scaled):
            assert np.isfinite(one.gamma_sq).all() and (one.gamma_sq >= 0).all()
            assert np.isfinite(one.noise).all() and (np.diff(one.noise, axis=1) >= -1e-9 * one.noise[:, -1:]).all()
        assert ((constants.delta >= 0) & (constants.delta <= 1)).all() and constants.delta[-1] == 0.0
        assert (np.diff(constants.delta) <= 1e-12).all()


def test_long_silence_and_zero_updates_end_at_the_prior():
    given = prior()
    heard = learn([[report(0, 3, [4.0, 2.0, 1.0], [0.1] * 3)]], given)
    for _ in range(3000):
        heard = update_estimates(heard, (), given)
    zero = learn([[report(0, 3, [0.0] * 3, [0.0] * 3)]] * 5, given)
    for estimates in (heard, zero):
        assert gamma_sq_of(estimates, given, 0.5).tolist() == [1.0] * K
    assert delta_of(heard, given) == pytest.approx([0.6, 0.3, 0.0])
    assert noise_of(heard, given).sum() == pytest.approx(0.2)


def test_noise_beyond_what_was_reported_follows_the_prior_s_shape():
    given = prior()
    estimates = learn([[report(0, 1, [5.0, 0.0, 0.0], [1.0, 0.0, 0.0])]], given)
    assert noise_of(estimates, given) == pytest.approx([1.0, 1.5, 2.5])  # the prior's grows as 4, 6, 10
    silent = learn([[report(0, 3, [6.0, 2.0, 2.0])]], given)  # one step tells no noise: that of a prior of its level
    assert noise_of(silent, given) == pytest.approx(fleet_level(silent) * 0.2 * SIZES / 20)


def test_one_device_and_one_module():
    modules = Modules(*(np.array([v]) for v in (2, 1, 8, 1e5, 1e5, 1e6, 1e6)))
    constants = Constants(np.ones(1), np.zeros(1), np.full((1, 1), 0.1), 0.9, 0.1, 0.7)
    given = prior_of(constants, modules, np.array([10]), Online(True))
    estimates = update_estimates(first_estimates(1, 1), [Report(0, 1, np.array([3.0]), np.array([1.0]))], given)
    assert delta_of(estimates, given).tolist() == [0.0] and gamma_sq_of(estimates, given).tolist() == [2.0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Report(3, 1, np.zeros(M), None), r"a device in 0…2 and a module in 1…3, got 3 and 1"),
        (Report(0, 0, np.zeros(M), None), r"got 0 and 0"),
        (Report(0, 1, np.zeros(2), None), r"device 0: its report's energy must be 3 finite numbers"),
        (Report(1, 1, np.array([np.inf, 0, 0]), None), r"device 1: its report's energy"),
        (Report(1, 1, np.zeros(M), np.array([-1.0, 0, 0])), r"device 1: its report's noise"),
    ],
)
def test_a_report_that_makes_no_sense_is_refused(bad, message):
    with pytest.raises(AirtuneError, match=message):
        update_estimates(first_estimates(K, M), [bad], prior())
