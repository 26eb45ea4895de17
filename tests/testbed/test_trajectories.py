"""Exact gaps against a walk through every outcome, and one way of computing them against the other."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.testbed.problems import Logistic, Quadratics, Ridge, batches, local_constants
from airtune.testbed.trajectories import enumerated, moments
from airtune.theory.bound import divergence_phi, divergence_tight
from airtune.types import AirtuneError

BOUNDS = {"loose": divergence_phi, "tight": divergence_tight}
KEPT = (1, 3)


@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parents[1] / "reference" / "testbed_reference.py"
    spec = importlib.util.spec_from_file_location("testbed_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(rng, kind, reference, devices=2):
    """A problem, and by device its risk and the gradient functions of its draws, from the reference."""
    weight, samples, size = rng.dirichlet(np.ones(devices)), 3, KEPT[-1]
    inputs, targets = rng.normal(size=(devices, samples, size)), rng.normal(size=(devices, samples))
    chosen = list(itertools.combinations(range(samples), 2))
    if kind == "quadratics":
        root, errors = rng.normal(size=(devices, size, 2)), rng.normal(size=(devices, 2, size))
        problem = Quadratics(weight, KEPT, root @ root.transpose(0, 2, 1), rng.normal(size=(devices, size)), errors)
        each = [reference.quadratic(problem.hessian[k], problem.centre[k]) for k in range(devices)]
        draws = [[lambda theta, k=k, j=j: each[k][1](theta) + errors[k, j] for j in range(2)] for k in range(devices)]
        return problem, [risk for risk, _ in each], draws
    if kind == "ridge":
        problem = Ridge(weight, KEPT, inputs, targets, 0.3, batches(samples, 2))
        make = [lambda chosen, k=k: reference.ridge(inputs[k], targets[k], 0.3, chosen) for k in range(devices)]
    else:
        problem = Logistic.of(weight, KEPT, inputs, 0.3, batches(samples, 2))
        make = [lambda chosen, k=k: reference.logistic(inputs[k], 0.3, chosen) for k in range(devices)]
    return problem, [each(range(samples))[0] for each in make], [[each(b)[1] for b in chosen] for each in make]


def mixture(weight, risks):
    return lambda theta: sum(w * risk(theta) for w, risk in zip(weight, risks, strict=True))


@pytest.mark.parametrize("kind", ["quadratics", "ridge", "logistic"])
@pytest.mark.parametrize("common", [False, True])
def test_enumeration_is_the_walk_through_every_outcome(kind, common, reference):
    rng = np.random.default_rng(1)
    problem, risks, draws = draw(rng, kind, reference)
    decisions = [(np.array([2, 1]), np.array([0.7, 0.2])), (np.array([1, 0]), np.array([0.4, 0.0]))]
    start, step = rng.normal(size=3), 0.5 / problem.curvature.smoothness

    def decide(t, local):
        points = len(local.gamma_sq)
        return np.tile(decisions[t][0], (points, 1)), np.tile(decisions[t][1], (points, 1))

    path = enumerated(problem, start, step, 2, decide, BOUNDS, common=common)
    risk = mixture(problem.weight, risks)
    expected = reference.walk(problem.weight, draws, KEPT, risk, start, step, decisions, common)
    assert path.gap + problem.curvature.least == pytest.approx(expected, rel=1e-10)
    assert problem.curvature.least == pytest.approx(reference.least(risk, 3), rel=1e-7, abs=1e-9)
    assert np.all(path.bounds["tight"] <= path.bounds["loose"] * (1 + 1e-12))


@pytest.mark.parametrize("kind", ["quadratics", "ridge", "logistic"])
def test_constants_by_definition(kind, reference):
    """A1–A5 one by one at random points: nothing violates them, and Γ, δ and v could not be smaller."""
    rng = np.random.default_rng(2)
    problem, risks, draws = draw(rng, kind, reference)
    smoothness, pl, least = problem.curvature
    risk = mixture(problem.weight, risks)
    theta = 3.0 * rng.normal(size=(20, 3))
    local, gradients = local_constants(problem, theta), problem.gradients(theta)
    assert problem.risk(theta) == pytest.approx([risk(x) for x in theta])
    for n, x in enumerate(theta):
        slope = problem.weight @ gradients[n]
        numeric = [(risk(x + h) - risk(x - h)) / 2e-6 for h in 1e-6 * np.eye(3)]
        assert slope == pytest.approx(numeric, rel=1e-5, abs=1e-6)
        assert slope @ slope >= 2 * pl * (risk(x) - least) * (1 - 1e-9)
        other = theta[n - 1] - x
        assert risk(theta[n - 1]) <= risk(x) + slope @ other + smoothness / 2 * other @ other + 1e-9
        for k in range(2):
            norm = gradients[n, k] @ gradients[n, k]
            assert local.gamma_sq[n, k] == pytest.approx(norm)
            for m, kept in enumerate(KEPT):
                errors = [np.sum((each(x) - gradients[n, k])[:kept] ** 2) for each in draws[k]]
                assert local.noise[n, k, m] == pytest.approx(np.mean(errors))
        shares = [[np.sum(g[kept:] ** 2) / (g @ g) for g in gradients[n]] for kept in KEPT]
        assert local.delta[n] == pytest.approx(np.max(shares, axis=1), abs=1e-12)


def test_curvature_is_the_extreme_of_the_hessian():
    """L and μ of a rank-deficient quadratic: the largest and the least positive eigenvalue."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(4, 2)))[0]
    hessian = np.array([basis @ np.diag([1.0, 5.0]) @ basis.T, basis @ np.diag([3.0, 1.0]) @ basis.T])
    problem = Quadratics(np.array([0.5, 0.5]), (1, 4), hessian, rng.normal(size=(2, 4)), np.zeros((2, 1, 4)))
    assert problem.curvature.smoothness == pytest.approx(3.0) and problem.curvature.pl == pytest.approx(2.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_moments_are_the_enumeration_for_decisions_fixed_in_advance(seed, devices):
    """The same gap; the same bound after one round, then one by mean constants (Remark 1); both above the gap."""
    rng = np.random.default_rng(seed)
    root, errors = rng.normal(size=(devices, 3, 3)), rng.normal(size=(devices, 2, 3))
    errors -= errors.mean(axis=1, keepdims=True)
    problem = Quadratics(rng.dirichlet(np.ones(devices)), KEPT, root @ root.transpose(0, 2, 1), root[:, 0], errors)
    module = rng.integers(0, 3, (2, devices))
    success = rng.random((2, devices)) * (module > 0)
    start, step = rng.normal(size=3), 0.9 / problem.curvature.smoothness

    def decide(t, local):
        points = len(local.gamma_sq)
        return np.tile(module[t], (points, 1)), np.tile(success[t], (points, 1))

    exact = enumerated(problem, start, step, 2, decide, BOUNDS)
    quick = moments(problem, start, step, module, success, BOUNDS)
    assert quick.gap == pytest.approx(exact.gap, rel=1e-9)
    for name in BOUNDS:
        assert np.all(quick.bounds[name] >= exact.gap * (1 - 1e-9)) and np.all(
            exact.bounds[name] >= exact.gap * (1 - 1e-9)
        )
        assert quick.bounds[name][1] == pytest.approx(exact.bounds[name][1], rel=1e-9)


def test_a_step_above_one_over_l_is_refused():
    problem = Quadratics(np.ones(1), (1,), np.ones((1, 1, 1)), np.zeros((1, 1)), np.zeros((1, 1, 1)))
    with pytest.raises(AirtuneError, match=r"step in \(0, 1/L\], got 1.5"):
        moments(problem, np.ones(1), 1.5, np.ones((1, 1), int), np.ones((1, 1)), BOUNDS)
    with pytest.raises(AirtuneError, match=r"step in \(0, 1/L\], got 1.5"):
        enumerated(problem, np.ones(1), 1.5, 1, lambda t, local: (np.ones((1, 1), int), np.ones((1, 1))), BOUNDS)
