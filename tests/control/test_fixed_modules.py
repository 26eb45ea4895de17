"""Power and bandwidth of Solver B for its own modules against a convex program, where every c/p ≤ 1."""

import numpy as np
import pytest
from benchmarks.instances import LOADS, draw

from airtune.control.joint import JointPolicy


@pytest.mark.parametrize("seed", [0, 1, 3, 7, 10])
def test_power_and_bandwidth_are_the_optimum_for_the_modules(convex_reference, seed):
    problem = draw(seed, 5, 3, LOADS[seed % len(LOADS)])
    decision = JointPolicy()(problem)
    sends = decision.module > 0
    value, band, exponent, _ = convex_reference.solve(problem, decision.module)
    assert exponent.max() < 1.0
    assert decision.objective == pytest.approx(value, rel=1e-6)
    assert decision.bandwidth_hz[sends] == pytest.approx(band, rel=1e-3)
    assert np.exp(-exponent) == pytest.approx(decision.success_probability[sends], rel=1e-3)
