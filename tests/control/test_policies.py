"""What defines each policy, and that none ever breaks a constraint of the round or of the run."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.instances import draw
from benchmarks.study_regret import TOKENS, cell_of
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.config import PolicyConfig, WorldConfig
from airtune.control.evaluation import chosen, energy_j, make_decision
from airtune.control.foresight import OraclePolicy
from airtune.control.joint import JointPolicy
from airtune.control.policies import policy_of
from airtune.control.problem import first_memory, pose, remember
from airtune.control.restricted import EqualBandPolicy, FixedModulePolicy, FullPowerPolicy, MyopicPolicy
from airtune.control.scheduling import ScheduledPolicy
from airtune.physics.link import OutageLink, WaterfallLink
from airtune.types import AirtuneError, Outcome, Policy
from airtune.worlds.analytic import AnalyticWorld

ONLINE = (
    "joint", "alternating", "traditional", "random", "round-robin", "best-channel", "capability", "myopic",
    "no-switching", "no-power-control", "no-bandwidth-allocation", "digest",
)  # fmt: skip


def named(name, devices, modules, **dials):
    """A policy for a fleet of which only size and speeds matter."""
    fleet = cell_of(devices, 1, 1.0, 0).devices
    return policy_of(PolicyConfig(name=name, **dials), fleet, modules, 0)


def rich(problem):
    """The same round for devices whose account never binds."""
    return replace(problem, budget_j=np.full(len(problem.gain), 1e6))


# Constraints


def check(problem, decision):
    """Constraints of a round, §4, from their formulas: one module, memory and time, power, band."""
    module, power, band = decision.module, decision.power_w, decision.bandwidth_hz
    for k, m in enumerate(module):
        assert 0 <= m <= problem.utility.shape[1]
        if m == 0:
            assert power[k] == band[k] == decision.success_probability[k] == 0.0
            continue
        assert problem.feasible[k, m - 1] and problem.uplink_s[k, m - 1] > 0
        assert 0.0 <= power[k] <= problem.power_max_w[k, m - 1] * (1 + 1e-9)
    assert (band >= 0).all() and band.sum() <= problem.bandwidth_hz * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    devices=st.integers(1, 12),
    modules=st.integers(1, 4),
    load=st.sampled_from([0.05, 0.5, 5.0]),
    waterfall=st.booleans(),
    t=st.integers(0, 29),
)
def test_no_policy_breaks_a_constraint_of_the_round(seed, devices, modules, load, waterfall, t):
    problem = replace(draw(seed, devices, modules, load), t=t)
    if waterfall:
        problem = replace(problem, link=WaterfallLink(problem.link.noise_w_per_hz, 1.0, problem.link.snr_gap))
    for name in ONLINE:
        decision = named(name, devices, modules)(problem)
        check(problem, decision)
        plain = make_decision(problem, decision.module, decision.power_w, decision.bandwidth_hz)
        assert decision.objective == pytest.approx(plain.objective, rel=1e-6, abs=1e-9), name


def online(cell, world, policy):
    """A run without training: utility per round, energy of each round and device, decisions."""
    memory, worth, spent, made = first_memory(cell, 2.0), [], [], []
    for t in range(cell.rounds):
        problem = pose(cell, memory, world.observe(t))
        decision = policy(problem)
        check(problem, decision)
        energy = energy_j(problem, decision.module, decision.power_w)
        sent = decision.module > 0
        compute = chosen(problem.compute_j, decision.module)
        outcome = Outcome(sent, sent, compute, energy - compute, np.zeros(len(sent)), ())
        memory = remember(cell, memory, 0.0, 0.0, outcome, (), decision.price)
        worth.append(float((chosen(problem.utility, decision.module) * decision.success_probability).sum()))
        spent.append(energy)
        made.append(decision)
    return np.mean(worth), np.array(spent), made


def cell_and_world(devices, rounds, seed, v=1000.0):
    cell = cell_of(devices, rounds, v, seed)
    return cell, AnalyticWorld(WorldConfig(), cell.devices, seed, lambda t: np.full(devices, TOKENS))


@pytest.mark.parametrize("name", ONLINE)
def test_no_policy_spends_more_than_the_budget_of_the_run(name):
    cell, world = cell_and_world(8, 12, 3)
    _, spent, made = online(cell, world, policy_of(PolicyConfig(name=name), cell.devices, 4, 3))
    assert (spent.sum(axis=0) <= cell.rounds * cell.devices.budget_j * (1 + 1e-9)).all()
    assert any((decision.module > 0).any() for decision in made)


# What defines each


def test_every_name_makes_a_policy():
    for name in ONLINE:
        assert isinstance(named(name, 5, 4), Policy), name
    assert named("no-switching", 5, 4, module=2) == FixedModulePolicy(2)
    assert named("random", 5, 4).count == 2 and named("random", 5, 4, scheduled=3).count == 3


def test_round_robin_serves_each_device_equally_often():
    problem = rich(replace(draw(5, 7, 2, 1.0), feasible=np.ones((7, 2), np.bool_)))
    policy, served = named("round-robin", 7, 2, scheduled=3), np.zeros(7, int)
    for t in range(21):
        decision = policy(replace(problem, t=t))
        assert np.count_nonzero(decision.module) == 3
        served += decision.module > 0
        assert served.max() - served.min() <= 1
    assert served.tolist() == [9] * 7


def test_who_cannot_in_its_turn_misses_it():
    feasible = np.ones((6, 1), np.bool_)
    feasible[1] = False
    problem = rich(replace(draw(5, 6, 1, 1.0), feasible=feasible))
    turns = [np.flatnonzero(named("round-robin", 6, 1, scheduled=2)(replace(problem, t=t)).module) for t in range(3)]
    assert [turn.tolist() for turn in turns] == [[0], [2, 3], [4, 5]]


def test_random_is_uniform_over_those_who_can_and_repeats_with_its_seed():
    feasible = np.ones((8, 1), np.bool_)
    feasible[3] = False
    problem = rich(replace(draw(5, 8, 1, 1.0), feasible=feasible))
    policy, other = (ScheduledPolicy("random", 2, None, np.zeros(8), seed) for seed in (0, 1))
    taken = np.array([policy(replace(problem, t=t)).module > 0 for t in range(700)])
    assert (taken.sum(axis=1) == 2).all()
    expected = np.where(np.arange(8) == 3, 0.0, 200.0)
    assert (np.abs(taken.sum(axis=0) - expected) <= 5 * np.sqrt(200.0)).all() and taken[:, 3].sum() == 0
    assert (taken[7] == (policy(replace(problem, t=7)).module > 0)).all()
    assert any((taken[t] != (other(replace(problem, t=t)).module > 0)).any() for t in range(5))


def test_best_channel_takes_the_greatest_gains_at_full_power_and_equal_shares():
    feasible = np.ones((6, 2), np.bool_)
    gain = np.array([1.0, 6.0, 5.0, 4.0, 3.0, 2.0]) * 1e-12
    feasible[1] = False
    problem = rich(replace(draw(5, 6, 2, 1.0), feasible=feasible, gain=gain))
    decision = named("best-channel", 6, 2, scheduled=2)(problem)
    assert np.flatnonzero(decision.module).tolist() == [2, 3] and decision.module[2] == 2
    assert decision.bandwidth_hz[[2, 3]] == pytest.approx(problem.bandwidth_hz / 2)
    assert (decision.power_w[[2, 3]] == problem.power_max_w[[2, 3], 1]).all()


@pytest.mark.parametrize("seed", range(6))
def test_without_switching_one_module_and_never_better_than_joint(seed):
    problem = draw(seed, 6, 3, 0.5)
    best = JointPolicy()(problem)
    values = []
    for module in (1, 2, 3, None):
        decision = FixedModulePolicy(module)(problem)
        assert set(decision.module.tolist()) <= {0, module or 3} and decision.upper_bound is None
        assert decision.objective <= best.upper_bound * (1 + 1e-9)
        values.append(decision.objective)
    assert values[3] == values[2]
    alone = replace(problem, feasible=problem.feasible & (np.arange(3) == 1))
    assert values[1] == pytest.approx(JointPolicy()(alone).objective, rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_without_power_control_always_full_power(seed):
    problem = draw(seed, 6, 3, 0.5)
    decision = FullPowerPolicy()(problem)
    sends = np.flatnonzero(decision.module)
    assert (decision.power_w[sends] == problem.power_max_w[sends, decision.module[sends] - 1]).all()
    assert decision.objective <= JointPolicy()(problem).upper_bound * (1 + 1e-9)


def test_without_power_control_against_all_modules_and_splits_of_the_band():
    """Two devices on a grid: no pair of modules and no split of the band at full power is worth more."""
    for seed in range(8):
        problem = draw(seed, 2, 2, 0.5)
        best = 0.0
        for first in range(3):
            for second in range(3):
                module = np.array([first, second])
                if not all(m == 0 or problem.feasible[k, m - 1] for k, m in enumerate(module)):
                    continue
                power = chosen(problem.power_max_w, module)
                for share in np.linspace(0.0, 1.0, 201):
                    band = problem.bandwidth_hz * np.array([share, 1.0 - share])
                    best = max(best, make_decision(problem, module, power, band).objective)
        assert FullPowerPolicy()(problem).objective >= best * (1 - 1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_without_bandwidth_allocation_equal_shares(seed):
    problem = draw(seed, 6, 3, 0.5)
    decision = EqualBandPolicy()(problem)
    shares = decision.bandwidth_hz[decision.module > 0]
    assert (shares == shares[0]).all() if len(shares) else decision.objective == 0.0
    assert decision.objective <= JointPolicy()(problem).upper_bound * (1 + 1e-9)


def test_without_bandwidth_allocation_against_all_sets_of_devices():
    """No set of devices with an equal split, each at the best of its modules and of many powers, is worth more."""
    for seed in range(4):
        problem, best = draw(seed, 4, 2, 0.5), 0.0
        for members in range(1, 16):
            able = np.array([members >> k & 1 for k in range(4)], np.bool_)
            band = np.where(able, problem.bandwidth_hz / able.sum(), 0.0)
            total = 0.0
            for k in np.flatnonzero(able):
                options = [0.0]
                for m in np.flatnonzero(problem.feasible[k]):
                    for part in np.geomspace(1e-3, 1.0, 200):
                        power = np.where(np.arange(4) == k, part * problem.power_max_w[k, m], 0.0)
                        alone = np.where(np.arange(4) == k, m + 1, 0)
                        options.append(make_decision(problem, alone, power, band).objective)
                total += max(options)
            best = max(best, total)
        assert EqualBandPolicy()(problem).objective >= best * (1 - 1e-9)


def test_myopic_is_never_above_the_budget_of_a_round():
    cell, world = cell_and_world(10, 12, 1)
    _, spent, made = online(cell, world, MyopicPolicy())
    assert (spent <= cell.devices.budget_j * (1 + 1e-9)).all()
    assert sum(np.count_nonzero(decision.module) for decision in made) > 12
    memory = replace(first_memory(cell, 0.0), queue_j=np.full(10, 1e3))
    problem = pose(cell, memory, world.observe(0))
    assert (MyopicPolicy()(problem).module == made[0].module).all()  # queues do not matter


@pytest.mark.parametrize("seed", [0, 1])
def test_the_oracle_delivers_at_least_what_online_control_does(seed):
    cell, world = cell_and_world(5, 16, seed)
    fresh = first_memory(cell, 0.0)

    def problems():
        return [pose(cell, fresh, world.observe(t)) for t in range(cell.rounds)]

    oracle = policy_of(PolicyConfig(name="oracle"), cell.devices, 4, seed, problems)
    best, spent, _ = online(cell, world, oracle)
    assert (spent.sum(axis=0) <= cell.rounds * cell.devices.budget_j * (1 + 1e-9)).all()
    for name in ("joint", "myopic", "traditional"):
        for v in (300.0, 1000.0, 3000.0):
            other, _, _ = online(dataclasses.replace(cell, tradeoff_v=v), world, named(name, 5, 4))
            assert best >= other, (name, v)


def test_what_the_oracle_cannot(make_problem):
    with pytest.raises(AirtuneError, match="at least one round"):
        named("oracle", 3, 2)
    fleet = cell_of(3, 1, 1.0, 0).devices
    with pytest.raises(AirtuneError, match="needs the bounds"):
        policy_of(PolicyConfig(name="oracle"), fleet, 2, 0, lambda: [make_problem(3, 2, 0, link="waterfall")])
    problem = make_problem(3, 2, 0)
    assert isinstance(problem.link, OutageLink)
    plan = OraclePolicy((JointPolicy()(problem),))
    with pytest.raises(AirtuneError, match="none for round 1"):
        plan(replace(problem, t=1))
    assert plan(replace(problem, feasible=np.zeros((3, 2), np.bool_))).module.tolist() == [0, 0, 0]
