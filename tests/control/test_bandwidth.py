from dataclasses import replace

import cvxpy as cp
import numpy as np
import pytest
from benchmarks.instances import LOADS, draw

from airtune.control.bandwidth import allocate_bandwidth
from airtune.control.evaluation import device_value
from airtune.control.joint import JointPolicy
from airtune.control.market import inflection
from airtune.physics.link import OutageLink
from airtune.types import AirtuneError

LARGEST_GAP = 0.05
"""One price cannot see that dropping a device sometimes makes room for two; Solver A's offers do."""


def constants(problem, module, power):
    """(reward, a, kappa) of the senders, from the formulas."""
    rows, column = np.arange(len(module)), module - 1
    a = np.log(2.0) * problem.payload_bit[rows, column] / problem.uplink_s[rows, column]
    kappa = problem.link.snr_gap * problem.link.noise_w_per_hz * a / (problem.gain * power)
    return problem.tradeoff_v * problem.utility[rows, column], a, kappa


def slope(reward, a, kappa, band):
    """Marginal value of bandwidth by central differences."""
    step = 1e-5 * band

    def value(b):
        return reward * np.exp(-kappa * np.expm1(a / b) / (a / b))

    return (value(band + step) - value(band - step)) / (2.0 * step)


@pytest.mark.parametrize("seed", range(8))
def test_kkt_residual_and_full_band(make_problem, seed):
    problem = make_problem(12, 3, seed, queue_j=np.zeros(12), band_hz=2e6)
    module, power = np.full(12, 1 + seed % 3), np.full(12, 0.1)
    allocation = allocate_bandwidth(problem, module, power)
    band = allocation.bandwidth_hz
    assert band.sum() == pytest.approx(2e6, rel=1e-12)
    sends = band > 0
    assert sends.sum() >= 2
    reward, a, kappa = (each[sends] for each in constants(problem, module, power))
    marginal = slope(reward, a, kappa, band[sends])
    assert marginal == pytest.approx(float(allocation.price), rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_against_cvxpy_where_the_problem_is_concave(make_problem, seed):
    """On the concave branch a local optimum is the optimum, so a linear program certifies it."""
    problem = make_problem(6, 1, seed, queue_j=np.zeros(6), feasible=np.ones((6, 1), np.bool_), band_hz=6e6)
    module, power = np.ones(6, np.int64), np.full(6, 0.2)
    band = allocate_bandwidth(problem, module, power).bandwidth_hz
    reward, a, kappa = constants(problem, module, power)
    least = a / inflection(kappa)
    assert (band >= least).all()
    gradient = slope(reward, a, kappa, band)
    scaled = gradient / gradient.max()
    share = cp.Variable(6)
    linear = cp.Problem(cp.Maximize(scaled @ share), [cp.sum(share) <= 1.0, share >= least / 6e6])
    linear.solve(solver=cp.CLARABEL)
    # Concavity: no allocation is worth more than this linearisation says.
    assert linear.value - float(scaled @ band) / 6e6 <= 1e-4


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_value_price_and_bandwidth_of_an_exponential_cone_program(convex_reference, seed):
    """SP3 at Solver B's modules and powers, where every c/p ≤ 1: the global optimum for those who send."""
    problem = draw(seed, 5, 3, LOADS[seed % len(LOADS)])
    decision = JointPolicy()(problem)
    allocation = allocate_bandwidth(problem, decision.module, decision.power_w)
    sends = allocation.bandwidth_hz > 0
    module = np.where(sends, decision.module, 0)
    assert sends.sum() >= 3
    found = device_value(problem, module, decision.power_w, allocation.bandwidth_hz).sum()
    value, band, exponent, price = convex_reference.solve(problem, module, decision.power_w)
    assert exponent.max() < 1.0
    assert found == pytest.approx(value, rel=1e-6)
    assert allocation.bandwidth_hz[sends] == pytest.approx(band, rel=1e-3)
    assert float(allocation.price) == pytest.approx(price, rel=1e-3)


@pytest.mark.parametrize("link", ["outage", "waterfall"])
def test_against_dealing_out_cells(make_problem, reference, link):
    """SP3 against dynamic programming over 800 cells, few devices and a narrow band: the hardest case for a price."""
    gaps = []
    for seed in range(20):
        problem = make_problem(4, 2, seed, link, band_hz=4e5)
        module, power = np.array([1, 2, 1, 2]), np.full(4, 0.2)
        found = device_value(problem, *sitting_out(problem, module, power)).sum()
        best = reference.deal([reference.fixed_curve(problem, k, module[k], 0.2, 800) for k in range(4)])
        gaps.append(1.0 - found / best)
    assert np.median(gaps) < 1e-3
    assert np.mean(np.array(gaps) < 1e-3) >= 0.8, gaps
    assert max(gaps) < LARGEST_GAP and min(gaps) > -0.02, gaps


def sitting_out(problem, module, power):
    band = allocate_bandwidth(problem, module, power).bandwidth_hz
    module = np.where(band > 0, module, 0)
    return module, np.where(module > 0, power, 0.0), band


def test_rows_are_independent(make_problem):
    problem = make_problem(9, 3, 5)
    rng = np.random.default_rng(0)
    module, power = rng.integers(0, 4, (5, 9)), rng.uniform(0.01, 0.2, (5, 9))
    together = allocate_bandwidth(problem, module, power)
    for row in range(5):
        alone = allocate_bandwidth(problem, module[row], power[row])
        assert together.bandwidth_hz[row] == pytest.approx(alone.bandwidth_hz, rel=1e-6, abs=1e-3)
        assert together.price[row] == pytest.approx(float(alone.price), rel=1e-6)
    assert (together.bandwidth_hz[module == 0] == 0).all()


def test_equal_devices_share_what_fits(make_problem):
    # Fifty equal devices for whom the band is far too narrow: some must send, and not all can.
    same = make_problem(1, 1, 1)
    ones = np.ones((50, 1))
    problem = replace(
        same,
        **{name: np.repeat(getattr(same, name), 50, axis=0) for name in
           ("gain", "pa_efficiency", "circuit_power_w", "spent_j", "budget_j", "weight", "utility", "uplink_s",
            "compute_j", "power_max_w")},
        queue_j=np.zeros(50), payload_bit=4e6 * ones, feasible=ones > 0, bandwidth_hz=5e5,
    )  # fmt: skip
    module, power = np.ones(50, np.int64), np.full(50, 0.2)
    band = allocate_bandwidth(problem, module, power).bandwidth_hz
    found = device_value(problem, np.where(band > 0, 1, 0), power, band).sum()
    counts = np.arange(1, 51)
    by_count = [
        device_value(problem, np.where(np.arange(50) < n, 1, 0), power, np.where(np.arange(50) < n, 5e5 / n, 0.0)).sum()
        for n in counts
    ]
    assert 1 < counts[int(np.argmax(by_count))] < 50
    assert found >= max(by_count) * (1 - 1e-3)


def test_a_device_that_costs_what_it_earns_leaves_the_band_to_others(make_problem, reference):
    """Twins, but the energy of one costs 0.7 of its reward: it would take half the band and is worth none of it."""
    same = make_problem(1, 1, 1)
    names = ("gain", "pa_efficiency", "circuit_power_w", "spent_j", "budget_j", "weight", "utility", "uplink_s")
    twins = {name: np.repeat(getattr(same, name), 2, axis=0) for name in (*names, "compute_j", "power_max_w")}
    spent = float(same.compute_j[0, 0] + (0.2 / 0.35 + 0.1) * same.uplink_s[0, 0])
    queue = np.array([0.0, 0.7 * same.tradeoff_v * float(same.utility[0, 0]) / spent])
    rate = dict(payload_bit=np.full((2, 1), 4e6), feasible=np.ones((2, 1), np.bool_))
    problem = replace(same, **twins, **rate, queue_j=queue)
    for band_hz in (1e5, 2e5, 4e5, 8e5, 1.6e6):
        narrow = replace(problem, bandwidth_hz=band_hz)
        module, power = np.ones(2, np.int64), np.full(2, 0.2)
        found = device_value(narrow, *sitting_out(narrow, module, power)).sum()
        best = reference.deal([reference.fixed_curve(narrow, k, 1, 0.2, 1000) for k in range(2)])
        assert found >= best * (1 - 1e-3), band_hz


def test_waterfall_gets_the_least_that_carries_the_rate(make_problem):
    problem = make_problem(8, 2, 3, link="waterfall", queue_j=np.zeros(8))
    module, power = np.full(8, 1), np.full(8, 0.1)
    band = allocate_bandwidth(problem, module, power).bandwidth_hz
    sends = band > 0
    assert sends.any() and band.sum() <= problem.bandwidth_hz
    rate = band * np.log2(1.0 + power * problem.gain / (2.0 * problem.link.noise_w_per_hz * np.where(sends, band, 1.0)))
    needed = problem.payload_bit[:, 0] / problem.uplink_s[:, 0]
    assert rate[sends] == pytest.approx(needed[sends], rel=1e-9)


def test_waterfall_drops_the_least_valuable_per_hertz(make_problem):
    wide = make_problem(8, 2, 3, link="waterfall", queue_j=np.zeros(8), band_hz=1e9)
    module, power = np.full(8, 1), np.full(8, 0.1)
    full = allocate_bandwidth(wide, module, power)
    assert full.price == 0
    worth = device_value(wide, module, power, full.bandwidth_hz)
    sends = full.bandwidth_hz > 0
    density = np.where(sends, worth / np.where(sends, full.bandwidth_hz, 1.0), 0.0)
    narrow = replace(wide, bandwidth_hz=0.5 * full.bandwidth_hz.sum())
    kept = allocate_bandwidth(narrow, module, power)
    stays = kept.bandwidth_hz > 0
    assert 0 < stays.sum() < sends.sum() and kept.bandwidth_hz.sum() <= narrow.bandwidth_hz
    assert density[stays].min() >= density[sends & ~stays].max()
    assert float(kept.price) == pytest.approx(density[sends & ~stays].max(), rel=1e-9)


def test_inflection_is_where_the_curvature_vanishes():
    kappa = np.geomspace(1e-12, 500.0, 40)
    x = inflection(kappa)

    def log_slope(y):
        return np.log((y - 1.0) * np.exp(y) + 1.0) - kappa * np.expm1(y) / y

    relative = (log_slope(x * 1.001) - log_slope(x * 0.999)) / 0.002
    reach = (log_slope(x * 1.1) - 2 * log_slope(x) + log_slope(x * 0.9)) / 0.01
    assert np.abs(relative / reach).max() < 2e-3


def test_hopeless_and_unknown(make_problem):
    problem = make_problem(3, 1, 0, gain=np.full(3, 1e-25))
    nothing = allocate_bandwidth(problem, np.ones(3, np.int64), np.full(3, 0.2))
    assert nothing.bandwidth_hz.tolist() == [0.0, 0.0, 0.0] and nothing.price == 0

    class Strange(OutageLink):
        pass

    class Other:
        def outage_power_w(self, payload_bit, uplink_s, bandwidth_hz, gain):
            return np.zeros(1)

        power_min_w = outage_power_w

    assert allocate_bandwidth(replace(problem, link=Strange(1e-20, 1.0)), np.ones(3, np.int64), np.ones(3)).price == 0
    with pytest.raises(AirtuneError, match="Other"):
        allocate_bandwidth(replace(problem, link=Other()), np.ones(3, np.int64), np.full(3, 0.2))
