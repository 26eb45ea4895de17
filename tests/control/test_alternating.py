from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.control.alternating import AlternatingPolicy, evaluated, sweep
from airtune.control.bandwidth import allocate_bandwidth
from airtune.control.evaluation import validate_decision
from airtune.control.starts import Offers, starts, switched
from airtune.physics.link import OutageLink
from airtune.types import Policy

SOLVE = AlternatingPolicy()


@pytest.mark.parametrize(("link", "largest"), [("outage", 0.035), ("waterfall", 0.2)])
def test_gap_to_the_global_optimum(make_problem, reference, link, largest):
    """A lower bound by dynamic programming over 400 cells of band; a negative gap means finer than the cells.

    The largest gaps are a handful of devices in a narrow band: a knapsack, which no price and no single move solves.
    """
    gaps = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        devices, modules = int(rng.integers(2, 7)), int(rng.integers(1, 5))
        v, band = 10.0 ** rng.uniform(0.0, 3.0), 10.0 ** rng.uniform(4.5, 6.5)
        problem = make_problem(devices, modules, seed, link, v, band)
        optimum = reference.grid_optimum(problem, cells=400)
        gaps.append((optimum - SOLVE(problem).objective) / max(abs(optimum), 1e-9))
    assert np.median(gaps) < 1e-3
    assert max(gaps) < largest
    assert np.mean(np.array(gaps) < 0.01) > 0.9 - 0.05 * (link == "waterfall")
    # The cells cost something, but not much: a solver far above the reference would be cheating.
    assert min(gaps) > -0.05


@pytest.mark.parametrize("seed", [73, 93, 105])
def test_small_uploads_beside_one_that_holds_the_band(make_problem, reference, seed):
    """The holder of most of the band sits on the convex part of its curve, where no price supports the optimum."""
    problem = make_problem(4, 2, seed, v=600.0, band_hz=1e5)
    assert SOLVE(problem).objective >= reference.grid_optimum(problem, cells=500) * (1 - 0.03)


def test_one_device_by_hand(make_problem):
    # Alone and with free energy: all the band, full power, and the module of most utility times success, (6), (11).
    problem = make_problem(1, 3, 4, queue_j=np.zeros(1), feasible=np.ones((1, 3), np.bool_))
    decision = SOLVE(problem)
    snr = 2.0 ** (problem.payload_bit / (problem.uplink_s * 2e6)) - 1.0
    pi = np.exp(-2.0 * problem.link.noise_w_per_hz * 2e6 * snr / problem.gain / 0.2)
    assert decision.module[0] == 1 + int(np.argmax(problem.utility * pi))
    assert decision.power_w[0] == 0.2 and decision.bandwidth_hz[0] == pytest.approx(2e6)
    assert decision.objective == pytest.approx(50.0 * float((problem.utility * pi).max()), rel=1e-12)


@pytest.mark.parametrize("link", ["outage", "waterfall"])
@pytest.mark.parametrize("seed", range(3))
def test_sweeps_never_lose_and_the_result_beats_every_start(make_problem, link, seed):
    problem = make_problem(15, 3, seed, link, v=200.0)
    bandwidth, allowed = starts(problem, Offers.of(problem))
    point = evaluated(problem, *switched(problem, bandwidth, allowed), bandwidth)
    assert (bandwidth.sum(axis=-1) <= problem.bandwidth_hz * (1 + 1e-9)).all()
    first = point.value
    for _ in range(5):
        after = sweep(problem, point)
        assert (after.value >= point.value).all()
        point = after
    assert SOLVE(problem).objective >= max(first.max(), 0.0)
    assert SOLVE(problem).objective >= point.value.max() * (1 - 1e-4)


def test_no_single_change_of_module_or_power_helps(make_problem):
    problem = make_problem(12, 3, 7, v=200.0)
    found = SOLVE(problem)
    point = evaluated(problem, found.module[None], found.power_w[None], found.bandwidth_hz[None])
    assert float(sweep(problem, point).value[0]) <= found.objective * (1 + 2e-6)


def test_more_band_and_more_v_are_worth_more(make_problem):
    by_band = [SOLVE(make_problem(10, 3, 2, band_hz=b)).objective for b in (1e5, 4e5, 1.6e6, 6.4e6)]
    assert by_band == sorted(by_band)
    by_v = [SOLVE(make_problem(10, 3, 2, v=v)).objective for v in (1.0, 10.0, 100.0, 1000.0)]
    assert by_v == sorted(by_v)


def test_decision_is_deterministic_allowed_and_a_policy(make_problem):
    assert isinstance(SOLVE, Policy)
    problem = make_problem(30, 4, 11)
    first, second = SOLVE(problem), SOLVE(problem)
    validate_decision(problem, first)
    assert first.status == "ok" and first.iterations > 0
    assert (first.module == second.module).all() and (first.bandwidth_hz == second.bandwidth_hz).all()


def test_nobody_can_send(make_problem):
    problem = make_problem(5, 2, 0, feasible=np.zeros((5, 2), np.bool_))
    decision = SOLVE(problem)
    assert decision.objective == 0.0 and not decision.module.any() and decision.status == "ok"
    harmful = make_problem(5, 2, 0, utility=np.full((5, 2), -1.0))
    assert not SOLVE(harmful).module.any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    devices=st.integers(1, 8),
    modules=st.integers(1, 3),
    link=st.sampled_from(["outage", "waterfall"]),
    gain_scale=st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12]),
    queue_scale=st.sampled_from([0.0, 1.0, 1e9]),
    utility_scale=st.sampled_from([-1.0, 0.0, 1e-12, 1.0, 1e9]),
    band_hz=st.sampled_from([1e3, 1e6, 1e10]),
)
def test_extremes_never_warn_and_stay_allowed(
    make_problem, seed, devices, modules, link, gain_scale, queue_scale, utility_scale, band_hz
):
    plain = make_problem(devices, modules, seed, link, band_hz=band_hz)
    rng = np.random.default_rng(seed)
    problem = replace(
        plain,
        gain=plain.gain * gain_scale,
        queue_j=plain.queue_j * queue_scale,
        utility=plain.utility * utility_scale,
        power_max_w=np.where(rng.random(plain.utility.shape) < 0.2, -np.inf, plain.power_max_w),
    )
    problem = replace(
        problem,
        uplink_s=np.where(rng.random(plain.utility.shape) < 0.2, -1.0, problem.uplink_s),
    )
    problem = replace(problem, feasible=problem.feasible & (problem.uplink_s > 0) & (problem.power_max_w > 0))
    decision = SOLVE(problem)
    validate_decision(problem, decision)
    assert np.isfinite(decision.objective) and decision.objective >= 0.0


@pytest.mark.parametrize("devices", [2, 5, 50])
def test_equal_devices_never_overdraw_the_band(make_problem, devices):
    """Copies of one device whose least useful share is all of the band: one of them gets it."""
    problem = make_problem(devices, 1, 0)
    copies = {
        "gain": np.full(devices, 1e-13),
        "queue_j": np.full(devices, 0.5),
        "utility": np.full((devices, 1), 0.3),
        "payload_bit": np.full((devices, 1), 1e6),
        "uplink_s": np.full((devices, 1), 8.0),
        "compute_j": np.full((devices, 1), 0.4),
        "power_max_w": np.full((devices, 1), 0.01),
        "feasible": np.ones((devices, 1), bool),
        "link": OutageLink(4e-21, 2.0),
    }
    problem = replace(problem, tradeoff_v=20.0, bandwidth_hz=5e4, **copies)
    decision = AlternatingPolicy()(problem)
    validate_decision(problem, decision)
    assert (decision.module > 0).sum() == 1
    assert decision.objective == pytest.approx(0.21719, rel=1e-4)  # 6·e^{−c/p} − 0.5·(0.4 + 8·(0.01/0.35 + 0.1))
    shared = allocate_bandwidth(problem, (np.arange(devices) == 1).astype(np.int64), np.full(devices, 0.01))
    assert shared.bandwidth_hz.tolist() == [
        5e4 * (k == 1) for k in range(devices)
    ]  # all or nothing below the inflection
