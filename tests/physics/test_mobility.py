"""Roads through the cell: as far as the speed says, never out of the cell, uniform at any time."""

import numpy as np
import pytest

from airtune.physics.mobility import headings_rad, on_road_m, shadowing_correlation


def walked(start, heading, way, radius, steps=20_000):
    """One device walked in small steps, turning back where the next step would leave the cell."""
    place, step = np.array(start), way / steps * np.array([np.cos(heading), np.sin(heading)])
    for _ in range(steps):
        if np.hypot(*(place + step)) > radius:
            step = -step
        place = place + step
    return place


@pytest.mark.parametrize("way", [0.0, 30.0, 250.0, 1234.0])
def test_against_small_steps(way):
    start, heading = np.array([[40.0, -10.0], [-60.0, 55.0], [0.0, 0.0]]), np.array([0.3, 2.0, 4.4])
    found = on_road_m(start, heading, way, 100.0)
    for k in range(3):
        assert found[k] == pytest.approx(walked(start[k], heading[k], way, 100.0), abs=1.0)


def test_a_uniform_cell_stays_uniform():
    count, radius = 4000, 200.0
    rng = np.random.default_rng(0)
    distance, angle = radius * np.sqrt(rng.random(count)), 2 * np.pi * rng.random(count)
    start = np.stack((distance * np.cos(angle), distance * np.sin(angle)), axis=1)
    heading = headings_rad(0, count)
    assert (heading >= 0).all() and (heading < 2 * np.pi).all() and (heading != headings_rad(1, count)).any()
    for way in (17.0, 500.0, 12_345.6):
        place = on_road_m(start, heading, way, radius)
        squared = (place**2).sum(axis=1) / radius**2
        assert squared.max() <= 1.0 + 1e-12
        # Uniform over the disc: (d/R)² is uniform on [0, 1]; four standard errors.
        assert squared.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / count))
        assert np.mean(squared < 0.25) == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / count))


def test_correlation_by_hand():
    assert shadowing_correlation(50.0, 50.0) == pytest.approx(0.36787944117144233, rel=1e-12)
    assert shadowing_correlation(np.array([0.0, 25.0]), 50.0) == pytest.approx([1.0, 0.6065306597126334], rel=1e-12)
