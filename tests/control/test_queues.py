import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from airtune.control.queues import next_queue_j


def test_by_hand():
    # (13)
    assert next_queue_j(np.array([0.0, 1.0, 3.0]), np.array([2.0, 0.5, 0.0]), 1.5).tolist() == [0.5, 0.0, 1.5]


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=30), st.floats(0.0, 1e3), st.floats(0.0, 100.0))
def test_the_queue_bounds_the_overspend(spent, budget, start):
    queue = start
    for energy in spent:
        queue = float(next_queue_j(queue, energy, budget))
        assert queue >= 0.0
    assert queue >= start + sum(spent) - len(spent) * budget - 1e-6
    # The queue is the largest overspend over any final stretch of rounds (Lindley's recursion, unrolled).
    tails = [sum(spent[i:]) - (len(spent) - i) * budget for i in range(len(spent) + 1)]
    assert abs(queue - max(*tails, start + tails[0])) < 1e-6
