import cvxpy as cp
import numpy as np
import pytest

from airtune.control.digest import DigestPolicy, least_power_w, rate_bandwidth_hz
from airtune.control.evaluation import validate_decision
from airtune.physics.link import success_probability
from airtune.types import AirtuneError


def test_least_power_meets_the_target_exactly():
    c = np.array([1e-4, 1e-2, 1.0, np.inf])
    power = least_power_w(c, 0.9, 0.2)
    assert (power > 0).tolist() == [True, True, False, False]
    assert success_probability(c, power)[:2] == pytest.approx([0.9, 0.9], rel=1e-12)
    assert least_power_w(1e-4, 0.9, 0.2, 0.15) == 0.15
    with pytest.raises(AirtuneError, match="strictly between"):
        least_power_w(c, 1.0, 0.2)


@pytest.mark.parametrize("seed", range(3))
def test_rate_bandwidth_against_cvxpy(seed):
    rng = np.random.default_rng(seed)
    weight, snr_hz = rng.uniform(0.2, 2.0, 5), 10.0 ** rng.uniform(-1.0, 2.0, 5)
    found = rate_bandwidth_hz(weight, snr_hz, 4.0)
    band = cp.Variable(5)
    # b ln(1 + s/b) = -(relative entropy of b against b + s)
    rate = -cp.multiply(weight, cp.rel_entr(band, band + snr_hz))
    value = cp.Problem(cp.Maximize(cp.sum(rate)), [cp.sum(band) == 4.0, band >= 0])
    value.solve(solver=cp.CLARABEL)
    assert found.sum() == pytest.approx(4.0, rel=1e-12)
    reached = float((weight * found * np.log1p(snr_hz / found)).sum())
    assert reached == pytest.approx(value.value, rel=1e-7)
    residual = weight * (np.log1p(snr_hz / found) - snr_hz / (found + snr_hz))
    assert residual == pytest.approx(residual[0], rel=1e-8)


def test_rate_bandwidth_edges():
    assert rate_bandwidth_hz(np.zeros(3), np.ones(3), 1e6).tolist() == [0.0, 0.0, 0.0]
    assert rate_bandwidth_hz(np.ones(2), np.array([0.0, 1e5]), 1e6) == pytest.approx([0.0, 1e6])
    assert rate_bandwidth_hz(np.ones(4), np.full(4, 1e-3), 1e6) == pytest.approx(np.full(4, 2.5e5), rel=1e-9)
    assert rate_bandwidth_hz(np.ones(3), np.array([1e-2, 1e5, 1e12]), 1e6).sum() == pytest.approx(1e6)


@pytest.mark.parametrize("link", ["outage", "waterfall"])
def test_policy_is_allowed_and_reaches_its_target(make_problem, link):
    problem = make_problem(12, 3, 1, link, v=200.0)
    decision = DigestPolicy(target=0.8)(problem)
    validate_decision(problem, decision)
    active = decision.module > 0
    assert active.any() and decision.objective > 0
    assert (decision.success_probability[active] >= 0.8 * (1 - 1e-9)).all()
