"""A ceiling on the rate, (16): no policy breaks it, and solvers and bounds stay right under it."""

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.instances import LOADS, draw
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.control.test_policies import ONLINE, check, named

from airtune.control.alternating import AlternatingPolicy
from airtune.control.bandwidth import allocate_bandwidth
from airtune.control.baselines import TraditionalPolicy, UnlimitedPolicy
from airtune.control.evaluation import chosen, device_value, make_decision, validate_decision
from airtune.control.exact import ExactPolicy
from airtune.control.joint import JointPolicy
from airtune.control.oracle import solve_offline
from airtune.physics.link import OutageLink, WaterfallLink
from airtune.types import AirtuneError

POLICY = JointPolicy()


def under(problem, max_efficiency_bit_per_s_hz):
    """The round over the same link with a ceiling on the rate."""
    return replace(problem, link=replace(problem.link, max_efficiency_bit_per_s_hz=max_efficiency_bit_per_s_hz))


def rates(problem, decision):
    """Spectral efficiency of every upload [bit/s/Hz], written from its definition; 0 for who sits out."""
    sends = decision.module > 0
    time_s = np.where(sends, chosen(problem.uplink_s, decision.module), 1.0)
    band_hz = np.where(sends, decision.bandwidth_hz, 1.0)
    return np.where(sends, chosen(problem.payload_bit, decision.module) / (time_s * np.maximum(band_hz, 1e-300)), 0.0)


def binding(problem, share):
    """The round with a ceiling at a share of the highest rate that is best without one, and the best without."""
    free = POLICY(problem)
    return under(problem, share * (rates(problem, free).max() or 1.0)), free


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    devices=st.integers(1, 12),
    modules=st.integers(1, 4),
    load=st.sampled_from([0.05, 0.5, 5.0]),
    ceiling=st.floats(0.05, 12.0),
    waterfall=st.booleans(),
)
def test_no_policy_sends_above_the_ceiling(seed, devices, modules, load, ceiling, waterfall):
    """(16) holds in every decision, which is worth what it says."""
    problem = replace(draw(seed, devices, modules, load), budget_j=np.full(devices, 1e6))
    if waterfall:
        problem = replace(problem, link=WaterfallLink(problem.link.noise_w_per_hz, 1.0, problem.link.snr_gap))
    problem = under(problem, ceiling)
    for name in ONLINE:
        decision = named(name, devices, modules)(problem)
        check(problem, decision)
        validate_decision(problem, decision)
        assert (rates(problem, decision) <= ceiling * (1 + 1e-8)).all(), name
        plain = make_decision(problem, decision.module, decision.power_w, decision.bandwidth_hz)
        assert decision.objective == pytest.approx(plain.objective, rel=1e-6, abs=1e-9), name
        if decision.upper_bound is not None:
            assert plain.objective <= decision.upper_bound * (1 + 1e-9) + 1e-12


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), devices=st.integers(1, 10), waterfall=st.booleans())
def test_a_ceiling_that_never_binds_changes_nothing(seed, devices, waterfall):
    problem = draw(seed, devices, 3, 0.5)
    if waterfall:
        problem = replace(problem, link=WaterfallLink(problem.link.noise_w_per_hz, 1.0, problem.link.snr_gap))
    for name in ONLINE:
        policy = named(name, devices, 3)
        free, high = policy(problem), policy(under(problem, 500.0))
        np.testing.assert_array_equal(free.module, high.module, err_msg=name)
        for field in ("power_w", "bandwidth_hz", "success_probability"):
            np.testing.assert_allclose(getattr(free, field), getattr(high, field), rtol=1e-7, err_msg=name)
        assert free.objective == pytest.approx(high.objective, rel=1e-12)
        if free.upper_bound is not None:
            assert free.upper_bound == pytest.approx(high.upper_bound, rel=1e-12)


@pytest.mark.parametrize("seed", range(24))
def test_solver_b_against_dynamic_programming(make_problem, exact_reference, seed):
    """The optimum, bracketed from both sides, lies between decision and bound; no decision without the ceiling's."""
    rng = np.random.default_rng(seed)
    devices, modules = 1 + seed % 4, 1 + seed % 3
    v, band_hz = devices * 10 ** rng.uniform(0.3, 2.5), devices * 10 ** rng.uniform(4.3, 5.6)
    problem, free = binding(make_problem(devices, modules, seed, v=v, band_hz=band_hz), rng.uniform(0.3, 1.0))
    decision = POLICY(problem)
    low, high = exact_reference.bracket(problem, counts=(200, 1000))
    assert low <= decision.upper_bound * (1 + 1e-9) + 1e-12
    assert low * (1 - 1.01e-5) - 1e-12 <= decision.objective <= high * (1 + 1e-9) + 1e-12
    assert decision.objective <= free.upper_bound * (1 + 1e-9)
    assert decision.certificate <= 1.01e-5


@pytest.mark.parametrize(
    ("devices", "each_hz", "shares", "worst"),
    [(5, 3e4, (0.4, 0.9), 1.01e-5), (12, 3e4, (0.4, 0.9), 1.01e-5), (20, 3e4, (0.4, 0.9), 1.01e-5),
     (60, 1e4, (0.2, 0.5), 1.01e-5), (60, 2e3, (0.2, 0.5), 2e-2)],
)  # fmt: skip
def test_certificates_and_solver_a(make_problem, devices, each_hz, shares, worst):
    """Decisions stay proven where the ceiling binds, but for knapsacks of many least bands; Solver A comes close."""
    worth = []
    for seed in range(20):
        problem = make_problem(devices, 3, 100 * devices + seed, v=devices * 30.0, band_hz=devices * each_hz)
        problem, _ = binding(problem, np.random.default_rng(seed).uniform(*shares))
        decision = POLICY(problem)
        assert decision.certificate <= worst
        assert (decision.status == "ok") == (decision.certificate <= 1.01e-5)
        other = AlternatingPolicy()(problem)
        assert other.objective <= decision.upper_bound * (1 + 1e-12)
        worth.append(other.objective / decision.objective if decision.objective else 1.0)
    assert np.median(worth) > 0.99 and min(worth) > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_scip_agrees(exact_reference, seed):
    problem, _ = binding(draw(seed, 2 + seed % 2, 1 + seed % 3, LOADS[seed % len(LOADS)]), 0.7)
    found, decision = ExactPolicy(time_limit_s=60.0)(problem), POLICY(problem)
    validate_decision(problem, found)
    assert (rates(problem, found) <= problem.link.max_efficiency_bit_per_s_hz * (1 + 1e-8)).all()
    scale = max(found.objective, 1e-9)
    assert decision.objective <= found.upper_bound + 1e-9 * scale
    assert found.objective <= decision.upper_bound + 1e-9 * scale
    assert decision.objective == pytest.approx(found.objective, rel=1.3e-5)
    low, high = exact_reference.bracket(problem)
    assert low - 2e-6 * scale <= found.objective <= high + 1e-9 * scale


@pytest.mark.parametrize("seed", [0, 1, 3, 7, 10])
def test_power_and_bandwidth_are_the_optimum_for_the_modules(convex_reference, seed):
    """CVXPY with b ≥ b_min: some of the senders sit at their least band, and all get what the program gives them."""
    problem, _ = binding(draw(seed, 5, 3, LOADS[seed % len(LOADS)]), 0.7)
    decision = POLICY(problem)
    sends = decision.module > 0
    value, band, exponent, _ = convex_reference.solve(problem, decision.module)
    assert exponent.max() < 1.0
    assert decision.objective == pytest.approx(value, rel=1e-6)
    assert decision.bandwidth_hz[sends] == pytest.approx(band, rel=1e-3)
    assert np.exp(-exponent) == pytest.approx(decision.success_probability[sends], rel=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_sp3_against_dealing_out_the_band(make_problem, reference, seed):
    """Modules and powers fixed: never above the best split of the band, and nearly always close to it."""
    problem = replace(make_problem(4, 2, seed, v=300.0, band_hz=2e5), feasible=np.ones((4, 2), np.bool_))
    module, power = np.full(4, 1 + seed % 2), np.full(4, 0.2)
    least_hz = (chosen(problem.payload_bit, module) / chosen(problem.uplink_s, module)) / 6.0
    problem = replace(under(problem, 6.0), bandwidth_hz=float(least_hz.sum() * (0.8 + 0.15 * seed)))
    band = allocate_bandwidth(problem, module, power).bandwidth_hz
    assert band.sum() <= problem.bandwidth_hz * (1 + 1e-9)
    assert (band[band > 0] >= least_hz[band > 0] * (1 - 1e-9)).all()
    found = device_value(problem, np.where(band > 0, module, 0), np.where(band > 0, power, 0.0), band).sum()
    best = reference.deal([reference.fixed_curve(problem, k, int(module[k]), 0.2, 2000) for k in range(4)])
    assert best * (1 - 2e-2) <= found <= best * (1 + 1e-2)


def test_the_oracle_bounds_and_plans_under_the_ceiling(make_problem):
    problems = [under(make_problem(4, 2, seed, v=1.0, band_hz=2e5), 2.0) for seed in range(5)]
    problems = [replace(problem, budget_j=np.full(4, 2.0), rounds=5) for problem in problems]
    found = solve_offline(problems, POLICY)
    free = solve_offline([under(problem, np.inf) for problem in problems], POLICY)
    assert 0 < found.value <= found.upper_bound and found.value < free.upper_bound
    for problem, decision in zip(problems, found.plan, strict=True):
        assert (rates(problem, decision) <= 2.0 * (1 + 1e-8)).all()


def test_equal_shares_carry_as_many_as_they_can(make_problem):
    """Traditional: the devices that need the least band take part, one more of them would be one too many."""
    problem = make_problem(12, 2, 4, feasible=np.ones((12, 2), np.bool_), budget_j=np.full(12, 1e6))
    need_hz = problem.payload_bit[:, 1] / problem.uplink_s[:, 1] / 2.0
    policy, taken = TraditionalPolicy(None, np.zeros(12)), []
    for band_hz in (0.5 * need_hz.min(), 1e6, 2e6, 1e8):
        decision = policy(replace(under(problem, 2.0), bandwidth_hz=band_hz))
        joins = decision.module > 0
        count = int(joins.sum())
        assert set(np.flatnonzero(joins)) == set(np.argsort(need_hz)[:count])
        assert (need_hz[joins] * count <= band_hz).all()
        assert count == 12 or np.sort(need_hz)[count] * (count + 1) > band_hz
        assert (decision.success_probability[joins] > 0).all()
        taken.append(count)
    assert taken[0] == 0 < taken[1] < taken[2] < taken[3] == 12


def test_the_upper_bound_of_all_knows_no_ceiling(make_problem):
    problem = under(make_problem(6, 2, 1), 1e-6)
    assert UnlimitedPolicy(None)(problem).success_probability.sum() == 6
    assert POLICY(problem).objective == POLICY(problem).upper_bound == 0.0


def test_a_claim_above_the_ceiling_is_refused(make_problem):
    problem = under(make_problem(1, 1, 3, feasible=np.ones((1, 1), np.bool_)), 2.0)
    band_hz = problem.payload_bit[0] / problem.uplink_s[0] / 2.1
    decision = make_decision(problem, np.ones(1, np.int64), np.full(1, 0.2), band_hz)
    assert decision.success_probability.tolist() == [0.0]
    with pytest.raises(AirtuneError, match=r"success_probability of device 0 is 0\.5"):
        validate_decision(problem, replace(decision, success_probability=np.full(1, 0.5)))
    assert isinstance(problem.link, OutageLink)
