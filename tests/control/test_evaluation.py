from dataclasses import replace

import numpy as np
import pytest

from airtune.control.evaluation import chosen, device_value, energy_j, make_decision, validate_decision
from airtune.types import AirtuneError


def test_value_and_energy_by_hand(make_problem):
    problem = make_problem(
        2, 2, 0,
        v=10.0, queue_j=np.array([0.5, 2.0]), uplink_s=np.full((2, 2), 4.0), compute_j=np.full((2, 2), 1.5),
        utility=np.array([[0.1, 0.2], [0.3, 0.4]]), payload_bit=np.full((2, 2), 8e6), gain=np.full(2, 1e-10),
    )  # fmt: skip
    module, power, band = np.array([2, 0]), np.array([0.035, 0.1]), np.array([1e6, 1e6])
    # E = 1.5 + (0.035/0.35 + 0.1) * 4 = 2.3 J; 2 bit/s/Hz, so c = 2 N0 1e6 * 3 / 1e-10, (5).
    assert energy_j(problem, module, power).tolist() == pytest.approx([2.3, 0.0])
    pi = np.exp(-2.0 * problem.link.noise_w_per_hz * 1e6 * 3.0 / 1e-10 / 0.035)
    assert device_value(problem, module, power, band).tolist() == pytest.approx([10 * 0.2 * pi - 0.5 * 2.3, 0.0])
    decision = make_decision(problem, module, power, band, iterations=3)
    assert decision.objective == pytest.approx(2.0 * pi - 1.15) and decision.iterations == 3
    assert decision.bandwidth_hz.tolist() == [1e6, 0.0] and decision.power_w.tolist() == [0.035, 0.0]
    assert decision.success_probability.tolist() == pytest.approx([pi, 0.0])
    assert not decision.module.flags.writeable


def test_chosen_has_leading_axes():
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert chosen(table, np.array([[0, 1], [2, 2]]), -1.0).tolist() == [[-1.0, 3.0], [2.0, 4.0]]


@pytest.fixture
def problem(make_problem):
    return make_problem(3, 2, 0, feasible=np.array([[True, True], [True, False], [True, True]]))


@pytest.fixture
def decision(problem):
    return make_decision(problem, np.array([1, 1, 0]), np.full(3, 0.1), np.full(3, 5e5))


def test_a_good_decision_passes(problem, decision):
    assert validate_decision(problem, decision) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": np.array([1, 1])}, r"module must be an array of shape \(3,\)"),
        ({"module": [1, 1, 0]}, "got list"),
        ({"module": np.array([1.0, 1.0, 0.0])}, "must hold integers"),
        ({"power_w": np.array([0, 1, 0])}, "power_w must hold floats"),
        ({"module": np.array([1, 3, 0])}, "module 3 of device 1 does not exist; use 0 .* to 2"),
        ({"module": np.array([1, 2, 0])}, "module 2 of device 1 is not feasible"),
        ({"power_w": np.array([0.1, 0.3, 0.0])}, "power_w of device 1 is 0.3 W; its cap .* is 0.2 W"),
        ({"power_w": np.array([-0.1, 0.1, 0.0])}, "power_w of device 0 is -0.1; it must not be negative"),
        ({"bandwidth_hz": np.array([1.0, np.nan, 0.0])}, "bandwidth_hz of device 1 is nan; it must be finite"),
        ({"bandwidth_hz": np.array([1e6, 1.1e6, 0.0])}, "adds up to 2.1e[+]06 Hz but the band has 2e[+]06"),
        ({"success_probability": np.array([-0.1, 0.5, 0.0])}, "success_probability of device 0 .* not be negative"),
        ({"success_probability": np.ones(3)}, r"success_probability of device 0 is 1; by \(6\) it is 0\.\d+, as make"),
        ({"error_free": True}, "error_free is only for the unlimited policy; leave it out"),
    ],
)
def test_bad_decisions_are_refused_in_one_clear_line(problem, decision, change, message):
    with pytest.raises(AirtuneError, match=message) as caught:
        validate_decision(problem, replace(decision, **change))
    assert "\n" not in str(caught.value)


def test_the_upper_bound_skips_resources_but_not_shapes(problem, decision):
    free = replace(decision, module=np.full(3, 2), bandwidth_hz=np.full(3, 1e9), error_free=True)
    free = replace(free, success_probability=np.ones(3))
    validate_decision(problem, free, unlimited=True)
    with pytest.raises(AirtuneError, match="does not exist"):
        validate_decision(problem, replace(free, module=np.full(3, 5)), unlimited=True)
    with pytest.raises(AirtuneError, match=r"success_probability of device 2 is 0.5; by \(6\) it is 1"):
        validate_decision(problem, replace(free, success_probability=np.array([1.0, 1.0, 0.5])), unlimited=True)


@pytest.mark.parametrize("link", ["outage", "waterfall"])
def test_the_success_probability_is_that_of_the_link(make_problem, link):
    """A claim is compared with exp(−c/p), written out here, on every device; rounding passes, more does not."""
    problem = make_problem(4, 2, 5, link, band_hz=8e6, feasible=np.ones((4, 2), np.bool_))
    good = make_decision(problem, np.array([1, 1, 0, 1]), np.full(4, 0.2), np.full(4, 2e6))
    noise, snr = problem.link.noise_w_per_hz, 2.0 ** (problem.payload_bit[:, 0] / (2e6 * problem.uplink_s[:, 0])) - 1.0
    c = (2.0 * snr if link == "outage" else 1.0) * noise * 2e6 / problem.gain
    pi = np.where([True, True, False, True], np.exp(-c / 0.2), 0.0)
    assert (pi[[0, 1, 3]] > 1e-6).all()
    validate_decision(problem, replace(good, success_probability=pi))
    for k in range(4):
        with pytest.raises(AirtuneError, match=f"success_probability of device {k} "):
            validate_decision(problem, replace(good, success_probability=pi + 1e-6 * (np.arange(4) == k)))
