"""`round.step` itself on quadratics: it is (8), it is charged as (2) and (7) say, and its mean gap is the exact one."""

import numpy as np
import pytest
import torch

from airtune.config import FleetConfig, WorldConfig
from airtune.control.evaluation import energy_j, make_decision
from airtune.round import rounds, step
from airtune.testbed.federation import NAME, QuadraticFleet, federation
from airtune.testbed.problems import Quadratics
from airtune.testbed.trajectories import moments
from airtune.theory.bound import divergence_phi
from airtune.types import Fleet

K, KEPT = 3, (1, 3)


def draw(seed):
    rng = np.random.default_rng(seed)
    root, errors = rng.normal(size=(K, 3, 3)), rng.normal(size=(K, 4, 3))
    errors -= errors.mean(axis=1, keepdims=True)
    return Quadratics(rng.dirichlet(np.ones(K)), KEPT, root @ root.transpose(0, 2, 1), rng.normal(size=(K, 3)), errors)


def fixed(problem):
    """Module 1, 2 and none, at the power with π = e^{−1/2}."""
    module, band = np.array([1, 2, 0]), np.full(K, problem.bandwidth_hz / K)
    rows = np.arange(K), np.maximum(module, 1) - 1
    outage_w = problem.link.outage_power_w(problem.payload_bit[rows], problem.uplink_s[rows], band, problem.gain)
    return make_decision(problem, module, 2.0 * outage_w, band)


def make(problem, seed, count=4):
    return federation(
        problem, np.ones(3), 0.5 / problem.curvature.smoothness, fixed, rounds=count, tradeoff_v=10.0, seed=seed,
        world=WorldConfig(shadowing_std_db=0.0, cell_radius_m=400.0, min_distance_m=399.0, bandwidth_hz=4e5),
        fleet=FleetConfig(devices=K, phone_low=0, phone_mid=1, phone_high=0, vehicle=0, edge_box=0, sensor=0),
        account=False,
    )  # fmt: skip


def test_a_round_is_the_update_of_the_paper():
    """(8) from the delivered devices, and their energies by (2) and (7)."""
    problem = draw(0)
    system, start = make(problem, 0)
    assert isinstance(system.fleet, QuadraticFleet) and isinstance(system.fleet, Fleet)
    lost = set()
    state = start
    for after, record in rounds(system, start):
        theta = state.adapters[NAME].numpy()
        gradients = problem.gradients(theta[None])[0]
        moved = after.adapters[NAME].numpy() - theta
        outcome = record.outcome
        matches = []
        for j0 in range(4):
            for j1 in range(4):
                u = np.zeros(3)
                for k, j in ((0, j0), (1, j1)):
                    kept = KEPT[record.decision.module[k] - 1]
                    arrived = problem.weight[k] * outcome.delivered[k]
                    u[:kept] += arrived * (gradients[k] + problem.errors[k, j])[:kept]
                matches.append(np.allclose(moved, -0.5 / problem.curvature.smoothness * u, rtol=1e-9, atol=1e-12))
        assert any(matches) and after.adapters[NAME].dtype == torch.float64
        assert not outcome.delivered[2] and outcome.scheduled.tolist() == [True, True, False]
        spent = energy_j(record.problem, record.decision.module, record.decision.power_w)
        assert outcome.energy_j == pytest.approx(spent) and spent[2] == 0.0 < spent[0]
        lost.add(int(outcome.delivered.sum()))
        state = after
    assert len(lost) > 1  # some rounds lost an upload
    again, _ = step(system, start)
    assert torch.equal(again.adapters[NAME], step(system, start)[0].adapters[NAME])


def test_the_mean_gap_of_many_runs_is_the_exact_one():
    """200 seeds of fades and errors; the mean lies within 4 standard errors of E[R(θ_T)] − R* by `moments`."""
    problem = draw(1)
    module, success = np.tile([1, 2, 0], (2, 1)), np.tile(np.exp([-0.5, -0.5, -np.inf]), (2, 1))
    gaps = []
    for seed in range(200):
        system, state = make(problem, seed, 2)
        for after, record in rounds(system, state):
            state = after
            assert record.decision.success_probability == pytest.approx(success[0], rel=1e-6)
        gaps.append(float(problem.risk(state.adapters[NAME].numpy()[None])[0]) - problem.curvature.least)
    exact = moments(problem, np.ones(3), 0.5 / problem.curvature.smoothness, module, success, {"1": divergence_phi})
    error = np.std(gaps, ddof=1) / np.sqrt(len(gaps))
    assert abs(np.mean(gaps) - exact.gap[-1]) <= 4 * error
