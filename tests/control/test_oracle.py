import itertools
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.instances import draw

from airtune.control.alternating import AlternatingPolicy
from airtune.control.evaluation import chosen, energy_j, validate_decision
from airtune.control.joint import JointPolicy
from airtune.control.oracle import solve_offline
from airtune.types import AirtuneError


def horizon(devices, modules, rounds, seed, budget):
    """Rounds that differ in gain alone; budgets as a part of what the dearest module costs at full power."""
    base = draw(seed, devices, modules, 0.5)
    base = replace(base, feasible=np.ones((devices, modules), np.bool_), rounds=rounds)
    full = (base.power_max_w[:, -1] / base.pa_efficiency + base.circuit_power_w) * base.uplink_s[:, -1]
    rng = np.random.default_rng(seed)
    gains = base.gain * 10.0 ** rng.normal(0.0, 0.5, (rounds, devices))
    budget_j = budget * (base.compute_j[:, -1] + full)
    return [replace(base, t=t, gain=gains[t], budget_j=budget_j) for t in range(rounds)]


def rewarded(problem, module, power, band):
    """Σ_k U π and E of one round, from the formulas."""
    total, energy = 0.0, np.zeros(len(module))
    for k, (m, p, b) in enumerate(zip(module, power, band, strict=True)):
        if m == 0:
            continue
        uplink = problem.uplink_s[k, m - 1]
        snr = 2.0 ** min(problem.payload_bit[k, m - 1] / (uplink * b), 900.0) - 1.0
        c = problem.link.snr_gap * problem.link.noise_w_per_hz * b * snr / problem.gain[k]
        total += problem.utility[k, m - 1] * np.exp(-c / p)
        energy[k] = problem.compute_j[k, m - 1] + (p / problem.pa_efficiency[k] + problem.circuit_power_w[k]) * uplink
    return total, energy


def brute_force(problems):
    """The best of all plans on a grid of modules, powers and splits of the band, for two devices."""
    allowed = len(problems) * problems[0].budget_j
    rounds = []
    for problem in problems:
        choices = []
        for module in itertools.product(range(problem.utility.shape[1] + 1), repeat=2):
            for parts in itertools.product((0.1, 0.4, 1.0), repeat=2):
                if any(m == 0 and part < 1.0 for m, part in zip(module, parts, strict=True)):
                    continue
                power = [parts[k] * problem.power_max_w[k, max(module[k], 1) - 1] for k in range(2)]
                for share in (0.15, 0.35, 0.5, 0.65, 0.85) if min(module) > 0 else (0.5,):
                    band = problem.bandwidth_hz * np.array([share, 1.0 - share])
                    band = band if min(module) > 0 else np.full(2, problem.bandwidth_hz)
                    total, energy = rewarded(problem, module, power, band)
                    if (energy <= allowed).all():
                        choices.append((total, *energy))
        kept = [one for one in choices if not any(dominates(other, one) for other in choices)]
        rounds.append(np.unique(np.array(kept), axis=0))
    best = 0.0
    last = rounds[-1]
    for first in itertools.product(*rounds[:-1]):
        total, *energy = np.sum(first, axis=0)
        fits = (last[:, 1:] + energy <= allowed * (1 + 1e-12)).all(axis=1)
        if fits.any():
            best = max(best, total + float(last[fits, 0].max()))
    return best / len(problems)


def dominates(other, one):
    return other[0] >= one[0] and other[1] <= one[1] and other[2] <= one[2] and other != one


def checked(problems, oracle):
    """The plan is allowed, keeps the budgets and is worth what it says."""
    spent, total = np.zeros(len(problems[0].gain)), 0.0
    for problem, decision in zip(problems, oracle.plan, strict=True):
        validate_decision(problem, decision)
        spent += energy_j(problem, decision.module, decision.power_w)
        total += float((chosen(problem.utility, decision.module) * decision.success_probability).sum())
    assert (spent <= len(problems) * problems[0].budget_j * (1 + 1e-9)).all()
    assert oracle.value == pytest.approx(total / len(problems), rel=1e-12)
    assert oracle.value <= oracle.upper_bound * (1 + 1e-12)


@pytest.mark.parametrize(("seed", "budget"), [(1, 0.3), (4, 0.5), (9, 0.8)])
def test_bound_and_plan_against_brute_force(seed, budget):
    problems = horizon(2, 2, 3, seed, budget)
    oracle = solve_offline(problems, JointPolicy(), iterations_max=80)
    checked(problems, oracle)
    best = brute_force(problems)
    assert best > 0
    assert oracle.upper_bound >= best * (1 - 1e-12)
    # Three rounds leave a duality gap: whole rounds are had or not.
    assert oracle.upper_bound <= 1.6 * best and oracle.value >= 0.6 * best


def test_budgets_that_do_not_bind_leave_no_gap():
    problems = horizon(3, 2, 4, 2, 1.5)
    oracle = solve_offline(problems, JointPolicy(), start=np.zeros(3))
    checked(problems, oracle)
    assert oracle.value == pytest.approx(oracle.upper_bound, rel=1e-4)
    assert oracle.iterations == 1


def test_gap_closes_with_the_horizon():
    problems = horizon(4, 2, 30, 3, 0.4)
    oracle = solve_offline(problems, JointPolicy(), iterations_max=30, tolerance=0.0)
    checked(problems, oracle)
    assert oracle.value >= 0.9 * oracle.upper_bound
    assert (oracle.multiplier >= 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_no_online_policy_beats_the_bound(seed):
    problems = horizon(4, 2, 8, 20 + seed, 0.4)
    oracle = solve_offline(problems, JointPolicy(), iterations_max=40)
    checked(problems, oracle)
    allowed = len(problems) * problems[0].budget_j
    for policy, v in itertools.product((JointPolicy(), AlternatingPolicy()), (1.0, 30.0, 1000.0)):
        queue, spent, total = 1.0 * problems[0].budget_j, np.zeros(4), 0.0
        for problem in problems:
            left = (allowed - spent)[:, None] - problem.compute_j
            cap = problem.pa_efficiency[:, None] * (left / problem.uplink_s - problem.circuit_power_w[:, None])
            cap = np.minimum(problem.power_max_w, cap)
            now = replace(problem, tradeoff_v=v, queue_j=queue, power_max_w=cap, feasible=cap > 0)
            decision = policy(now)
            energy = energy_j(now, decision.module, decision.power_w)
            queue, spent = np.maximum(queue + energy - now.budget_j, 0.0), spent + energy
            total += float((chosen(now.utility, decision.module) * decision.success_probability).sum())
        assert (spent <= allowed * (1 + 1e-9)).all()
        assert total / len(problems) <= oracle.upper_bound * (1 + 1e-9)


def test_refuses_no_rounds_and_policies_without_a_bound():
    with pytest.raises(AirtuneError, match="at least one round"):
        solve_offline([], JointPolicy())
    with pytest.raises(AirtuneError, match="proven upper_bound"):
        solve_offline(horizon(2, 1, 2, 0, 0.5), AlternatingPolicy())
