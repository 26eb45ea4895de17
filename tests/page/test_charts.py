"""Axes and what a large run leaves out."""

import numpy as np
import pytest

from airtune.page.charts import Line, LineChart, decades, draw_lines, tick_text, ticks
from airtune.page.devices import DEVICES_MAX, PIES_MAX, ROUNDS_MAX, Choices, draw_cell, draw_choices, evenly


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1e6), (1e-9, 2e-9), (99.0, 101.0), (0.0, 7.0)])
def test_ticks_are_few_even_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert np.allclose(np.diff(found), found[1] - found[0])
    assert low - 1e-9 * (high - low) <= found[0] and found[-1] <= high + 1e-9 * (high - low)
    assert len({tick_text(value) for value in found}) == len(found)


def test_decades():
    assert decades(1e-3, 10.0) == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 10.0])
    assert len(decades(1e-12, 1e3)) <= 6


def line(values):
    values = np.array(values, dtype=float)
    return Line("p", 0, np.arange(1.0, len(values) + 1), values, values, values)


def test_gaps_zeros_and_single_points_are_drawn():
    assert 'd="M' in draw_lines(LineChart([line([1.0, np.nan, 3.0])], "x", "y"))
    floor = draw_lines(LineChart([line([0.0, 1e-6, 1e-3])], "x", "y", logarithmic=True))
    assert 'data-y0="1e-06"' in floor and "M56.0 210.0" in floor  # zero lies on the axis
    for values in ([2.0], [0.0, 0.0]):
        for chart in (LineChart([line(values)], "x", "y"), LineChart([line(values)], "x", "y", logarithmic=True)):
            assert "nan" not in draw_lines(chart)


def test_a_large_run_is_thinned_and_says_so():
    rounds, devices = 900, 1000
    module = np.ones((rounds, devices))
    choices = Choices(list(range(devices)), ["phone_mid"] * devices, list(range(rounds)), module, module, module)
    _, data, note = draw_choices(choices)
    assert np.shape(data["module"]) == (DEVICES_MAX, ROUNDS_MAX) == (len(data["device"]), len(data["round"]))
    assert (data["round"][0], data["round"][-1], data["device"][-1]) == (1, 900, 999)
    assert note == "Shown are 400 of 900 rounds and 80 of 1,000 devices, evenly spread"
    _, marks, note = draw_cell(choices, np.zeros((devices, 2)), 500.0)
    assert len(marks) == PIES_MAX and marks[0]["counts"] == {"m1": 900}
    assert note == "Shown are 200 of 1,000 devices, evenly spread"


def test_evenly_keeps_both_ends_and_everything_that_fits():
    assert evenly(5, 80).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
