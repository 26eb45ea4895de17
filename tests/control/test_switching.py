import numpy as np
import pytest

from airtune.control.evaluation import device_value
from airtune.control.switching import best_module, module_power_w, module_value


@pytest.mark.parametrize("link", ["outage", "waterfall"])
def test_sp1_against_enumeration(make_problem, link):
    problem = make_problem(10, 4, 3, link, v=20.0)
    power, band = np.full(10, 0.15), np.full(10, 2e5)
    found = best_module(module_value(problem, power[:, None], band[:, None]))
    options = []
    for m in range(5):
        value = device_value(problem, np.full(10, m), power, band)
        options.append(np.where(problem.feasible[:, m - 1], value, -np.inf) if m else np.zeros(10))
    assert found.tolist() == np.argmax(options, axis=0).tolist()
    assert len(set(found.tolist())) > 1


def test_infeasible_and_worthless_modules_are_not_chosen():
    value = np.array([[[1.0, 3.0], [-np.inf, -np.inf], [0.0, -2.0], [2.0, 2.0]]])
    assert best_module(value).tolist() == [[2, 0, 0, 1]]


def test_each_module_at_its_own_power_is_at_least_as_good(make_problem):
    problem = make_problem(10, 4, 3)
    band = np.full((10, 1), 2e5)
    best = module_value(problem, module_power_w(problem, band), band)
    for power in (0.01, 0.05, 0.2):
        plain = module_value(problem, np.full((10, 1), power), band)
        worth_sending = plain > best
        assert not worth_sending[best > 0].any()
        assert (np.maximum(best, 0) >= np.maximum(plain, 0)).all()
