import sys
from dataclasses import replace

import numpy as np
import pytest
from benchmarks.instances import LOADS, draw

from airtune.control.alternating import AlternatingPolicy
from airtune.control.evaluation import validate_decision
from airtune.control.exact import ExactPolicy
from airtune.control.exact_curve import options_of
from airtune.types import AirtuneError, Policy

SOLVE = ExactPolicy(time_limit_s=60.0)


def instance(seed):
    return draw(seed, 2 + seed % 2, 1 + seed % 3, LOADS[seed % len(LOADS)])


@pytest.mark.parametrize("seed", range(7))
def test_against_dynamic_programming_from_both_sides(exact_reference, seed):
    """The reference brackets the optimum; SCIP's decision and bound must bracket it too, and both must overlap."""
    problem = instance(seed)
    low, high = exact_reference.bracket(problem)
    found = SOLVE(problem)
    validate_decision(problem, found)
    assert found.status == "optimal" and found.upper_bound is not None
    scale = max(low, 1e-9)
    assert high - low <= 2e-4 * scale
    assert found.objective <= high + 1e-9 * scale and found.upper_bound >= low - 1e-9 * scale
    assert found.objective >= low - 2e-6 * scale
    assert -1e-9 * scale <= found.upper_bound - found.objective <= 2e-6 * scale


@pytest.mark.parametrize("seed", range(3))
def test_never_below_solver_a(seed):
    problem = draw(seed, 4, 2, LOADS[seed])
    found = SOLVE(problem)
    assert found.objective >= AlternatingPolicy()(problem).objective * (1 - 2e-6)


@pytest.mark.parametrize("seed", range(4))
def test_tangents_lie_above_the_value_and_its_slope_is_right(seed):
    for option in options_of(draw(seed, 4, 3, LOADS[seed % 5])):
        least = option.least_share(1e-9 * option.reward)
        share = np.geomspace(least, 1.0, 400)
        value = option.value(share)
        assert (np.diff(value) >= -1e-12 * option.reward).all()
        step = 1e-6 * share
        numeric = (option.value(share + step) - option.value(share - step)) / (2.0 * step)
        assert np.abs(numeric - option.slope(share)).max() <= 1e-4 * np.abs(numeric).max()
        touching = option.touching(least)
        if touching is None:
            assert (value <= value[0] + (value[-1] - value[0]) * (share - least) / (1 - least) + 1e-9).all()
            continue
        for start, slope in option.tangents(np.geomspace(touching, 1.0, 9)):
            assert (start + slope * share - value >= -1e-9 * option.reward).all()


def test_nothing_worth_sending_and_the_protocol():
    problem = draw(0, 3, 2, 0.5)
    nobody = SOLVE(replace(problem, feasible=np.zeros((3, 2), np.bool_)))
    assert nobody.module.tolist() == [0, 0, 0] and nobody.objective == nobody.upper_bound == 0.0
    assert isinstance(SOLVE, Policy)


def test_a_time_limit_still_gives_a_proven_bound():
    problem = draw(0, 8, 4, 0.05)
    for limit_s in (1e-3, 0.1):
        found = ExactPolicy(time_limit_s=limit_s)(problem)
        assert found.upper_bound is not None and found.upper_bound >= AlternatingPolicy()(problem).objective
        assert np.isfinite(found.upper_bound)
        validate_decision(problem, found)
        assert found.status == "time limit"


def test_refuses_other_links_and_a_missing_package(make_problem, monkeypatch):
    with pytest.raises(AirtuneError, match="exact: link must be an OutageLink, got WaterfallLink"):
        SOLVE(make_problem(2, 1, 0, "waterfall"))
    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(AirtuneError, match=r'pip install "airtune\[exact\]"'):
        SOLVE(draw(0, 2, 1, 1.0))
