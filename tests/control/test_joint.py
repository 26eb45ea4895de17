"""Solver B: decisions and bounds against slow references, weak duality, optimality residuals, and degenerate rounds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from airtune.control.alternating import AlternatingPolicy
from airtune.control.branching import close_gap, new_tree
from airtune.control.curve import capped_slope, free_slope
from airtune.control.dual import HIGH, LATEST, LOW, dual_at, free_limits, minimise_dual, new_demand
from airtune.control.evaluation import chosen, device_value, validate_decision
from airtune.control.joint import JointPolicy
from airtune.control.options import options_of
from airtune.control.sharing import new_incumbent, recover
from airtune.physics.link import OutageLink

POLICY = JointPolicy()


def spread(make_problem, devices, seed, modules=None):
    """Rounds from lightly to heavily loaded, energy from nearly free to dear."""
    rng = np.random.default_rng(seed)
    modules = modules or int(rng.integers(1, 9))
    v = devices * 10 ** rng.uniform(0.3, 2.5)
    return make_problem(devices, modules, seed, v=float(v), band_hz=float(devices * 10 ** rng.uniform(2, 5.6)))


def gap_of(decision):
    return (decision.upper_bound - decision.objective) / decision.upper_bound if decision.upper_bound else 0.0


@pytest.mark.parametrize("seed", range(12))
def test_against_dynamic_programming(make_problem, reference, seed):
    """A feasible value found by dealing out the band in cells never passes the bound, and hardly the decision."""
    problem = spread(make_problem, 1 + seed % 4, seed, modules=1 + seed % 3)
    decision = POLICY(problem)
    validate_decision(problem, decision)
    known = reference.grid_optimum(problem, cells=400)
    assert known <= decision.upper_bound * (1 + 1e-9) + 1e-12
    assert known <= decision.objective * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("devices", [5, 12, 20, 60])
def test_certificates(make_problem, devices):
    """Every decision is proven to be within the tolerance, and Solver A never passes the bound."""
    for seed in range(15):
        problem = spread(make_problem, devices, 100 * devices + seed)
        decision = POLICY(problem)
        validate_decision(problem, decision)
        assert decision.status == "ok"
        assert 0 <= gap_of(decision) <= 1.01 * POLICY.tolerance
        if seed < 4:
            assert AlternatingPolicy()(problem).objective <= decision.upper_bound * (1 + 1e-12)


def searched(problem):
    """The options of a round and what is wanted around the minimum of its dual."""
    options = options_of(problem, problem.link)
    devices, band_hz = len(problem.gain), problem.bandwidth_hz
    limits, demand = free_limits(devices, len(options.reward), band_hz), new_demand(devices, len(options.reward))
    minimise_dual(options, limits, band_hz, 0.0, demand)
    return options, limits, demand


@pytest.mark.parametrize("seed", range(5))
def test_weak_duality_and_convexity(make_problem, seed):
    """(15): D(λ) is above every decision at every price, convex with slope B − Σ b, and least where the search ends."""
    problem = spread(make_problem, 8, 40 + seed)
    options, limits, demand = searched(problem)
    lowest = min(demand.dual[LOW], demand.dual[HIGH])
    objective = POLICY(problem).objective
    logs = np.linspace(demand.log_price[HIGH] - 3.0, demand.log_price[HIGH] + 3.0, 41)
    points = []
    for log_price in logs:
        total = dual_at(options, limits, problem.bandwidth_hz, log_price, demand)
        points.append((math.exp(log_price), demand.dual[LATEST], problem.bandwidth_hz - total))
        value = points[-1][0] * problem.bandwidth_hz + sum(
            max(0.0, *(demand.phi[LATEST, options.first[k] : options.first[k + 1]]), 0.0) for k in range(8)
        )
        assert demand.dual[LATEST] == pytest.approx(value, rel=1e-11)
    prices, duals, slopes = map(np.array, zip(*points, strict=True))
    assert (duals >= objective * (1 - 1e-12)).all()
    assert (duals >= lowest * (1 - 1e-8) - 1e-100).all()  # a round that is worth nothing has its least D at λ = 0
    for price, dual, slope in points:
        assert (duals >= dual + slope * (prices - price) - 1e-9 * duals).all()
    assert (np.diff(slopes) >= -1e-9 * problem.bandwidth_hz).all()


@pytest.mark.parametrize("seed", range(6))
def test_all_senders_value_the_last_hertz_alike(make_problem, seed):
    """Optimality residual: dv/db is the same for all who send, and power meets (14) or the cap."""
    problem = spread(make_problem, 30, 70 + seed)
    decision = POLICY(problem)
    active = decision.module > 0
    c = problem.link.outage_power_w(
        chosen(problem.payload_bit, decision.module), chosen(problem.uplink_s, decision.module), 1.0, problem.gain
    )
    assert active.any() and c.shape == active.shape
    step = 1e-5
    more, less = (
        device_value(problem, decision.module, decision.power_w, decision.bandwidth_hz * each)
        for each in (1 + step, 1 - step)
    )
    slope = ((more - less) / (2 * step * np.where(active, decision.bandwidth_hz, 1.0)))[active]
    assert slope == pytest.approx(np.full(len(slope), slope.mean()), rel=2e-3)
    assert decision.bandwidth_hz.sum() == pytest.approx(problem.bandwidth_hz, rel=1e-9)
    louder, quieter = (
        device_value(problem, decision.module, decision.power_w * each, decision.bandwidth_hz)[active]
        for each in (1 + 1e-4, 1 - 1e-4)
    )
    here = device_value(problem, decision.module, decision.power_w, decision.bandwidth_hz)[active]
    capped = decision.power_w[active] >= chosen(problem.power_max_w, decision.module)[active] * (1 - 1e-9)
    scale = problem.tradeoff_v * problem.utility.max()
    assert (quieter <= here + 1e-12 * scale).all()
    assert (np.where(capped, here, louder) <= here + 1e-12 * scale).all()


def test_one_device_is_exact(make_problem):
    problem = make_problem(1, 1, 3, v=500.0)
    problem = replace(problem, feasible=np.ones((1, 1), bool))
    decision = POLICY(problem)
    assert decision.bandwidth_hz[0] == pytest.approx(problem.bandwidth_hz)
    assert decision.objective == pytest.approx(decision.upper_bound, rel=1e-11)


def test_nobody_can_send(make_problem):
    problem = make_problem(4, 3, 1)
    for changes in ({"feasible": np.zeros((4, 3), bool)}, {"utility": -problem.utility}, {"gain": np.zeros(4)}):
        decision = POLICY(replace(problem, **changes))
        assert (decision.module == 0).all()
        assert decision.objective == decision.upper_bound == 0.0
        assert decision.status == "ok"


def test_free_energy_means_full_power(make_problem):
    problem = replace(make_problem(12, 4, 5, v=100.0), queue_j=np.zeros(12))
    decision = POLICY(problem)
    active = decision.module > 0
    assert active.any()
    assert decision.power_w[active] == pytest.approx(0.2)
    assert gap_of(decision) <= POLICY.tolerance


def test_equal_devices(make_problem):
    """Copies of one device tie everywhere; who is left out does not matter, that the band is full does."""
    problem = make_problem(6, 3, 2, v=200.0, band_hz=1.5e5)
    copies = {
        name: np.repeat(getattr(problem, name)[:1], 6, axis=0)
        for name in ("gain", "queue_j", "utility", "payload_bit", "uplink_s", "compute_j", "power_max_w")
    }
    problem = replace(problem, feasible=np.ones((6, 3), bool), **copies)
    decision = POLICY(problem)
    validate_decision(problem, decision)
    assert gap_of(decision) <= 1e-3
    assert AlternatingPolicy()(problem).objective <= decision.upper_bound * (1 + 1e-12)


def test_a_scarce_band_is_cut_open_by_branching(make_problem):
    """Few large uploads: the dual alone leaves a gap of percents, the search closes it."""
    wide, used = 0.0, 0
    for seed in range(30):
        problem = make_problem(5, 2, 300 + seed, v=400.0, band_hz=8e4)
        decision = POLICY(problem)
        options, limits, demand = searched(problem)
        best = new_incumbent(5)
        recover(options, demand, problem.bandwidth_hz, 1e-5, limits.guess, best)
        root = float(demand.dual[[LOW, HIGH]].min())
        assert decision.upper_bound <= root * (1 + 1e-9)
        wide, used = max(wide, (root - decision.objective) / root), max(used, decision.iterations)
        assert gap_of(decision) <= 1.01e-5
    assert wide > 0.01
    assert used > 3


def test_a_search_that_runs_out_of_nodes_says_so(make_problem):
    problem = make_problem(5, 2, 300, v=400.0, band_hz=8e4)
    gaps = []
    for seed in range(300, 330):
        problem = make_problem(5, 2, seed, v=400.0, band_hz=8e4)
        short, full = JointPolicy(nodes_max=1)(problem), POLICY(problem)
        assert short.objective <= full.objective * (1 + 1e-9) + 1e-12
        assert short.upper_bound >= full.upper_bound * (1 - 1e-5)
        assert (short.status == "ok") == (gap_of(short) <= 1.01e-5)
        gaps.append(gap_of(short))
    assert max(gaps) > 1e-3


def test_the_tree_needs_no_incumbent(make_problem):
    """Bounds of the search do not lean on how good the first point was."""
    problem = make_problem(6, 3, 11, v=400.0, band_hz=1e5)
    options, limits, demand = searched(problem)
    best = new_incumbent(6)
    bound, nodes = close_gap(options, limits, problem.bandwidth_hz, demand, 1e-6, new_tree(400), best)
    decision = POLICY(problem)
    assert nodes > 1
    assert bound == pytest.approx(decision.objective, rel=2e-5)
    assert best.value[0] == pytest.approx(decision.objective, rel=2e-5)


def test_the_marginal_value_is_continuous_where_the_cap_begins_to_bind(make_problem):
    options = options_of(problem := make_problem(40, 4, 9, v=100.0), problem.link)
    joins = np.flatnonzero((options.x_join > 0) & (options.x_join < options.x_top))
    assert len(joins)
    for i in joins:
        free = free_slope(options.x_join[i], options.ratio[i], options.log_scale[i])[0]
        capped = capped_slope(options.x_join[i], options.kappa[i], options.log_scale[i])[0]
        assert free == pytest.approx(capped, rel=1e-6, abs=1e-6)


def test_another_link_is_left_to_solver_a(make_problem):
    problem = make_problem(8, 3, 4, link="waterfall")
    decision = POLICY(problem)
    assert not isinstance(problem.link, OutageLink)
    assert decision.upper_bound is None
    assert decision.objective == AlternatingPolicy()(problem).objective


def test_a_band_too_small_for_the_concave_branch_goes_to_one_device(make_problem):
    """All of the band lies in the convex part of the capped curve: the best is the best single device."""
    sent = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        problem = replace(
            make_problem(4, 1, seed, v=50.0, band_hz=float(4e3 * 2 ** rng.uniform(0, 3))), queue_j=np.zeros(4)
        )
        alone = [
            POLICY(replace(problem, feasible=problem.feasible & (np.arange(4) == k)[:, None])).objective
            for k in range(4)
        ]
        decision = POLICY(problem)
        assert decision.objective >= max(alone) * (1 - 1e-9)
        assert gap_of(decision) <= 1.01 * POLICY.tolerance
        sent += decision.objective > 0
    assert sent > 3
