"""The least band or budget that meets a target: a coarse grid, then bisection, on common random numbers."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from airtune.planning.points import Planner, Point
from airtune.types import AirtuneError

Measure = Literal["utility", "delivered"]
"""What a target is set for, an estimate of `Point`."""

SEARCHED = ("bandwidth", "budget")
"""Axes that a target can be searched on: what an operator can buy."""
GRID = tuple(4.0**power for power in range(-5, 6))
"""Multiples of the base's own value that are tried first, up to 1024 times less and more."""
_LIMITS = {"bandwidth": (1e3, 1e10), "budget": (1e-6, 1e6)}
"""Values that the settings allow, or that make sense."""


@dataclass(frozen=True, slots=True)
class Found:
    """Where a target is met, if it is."""

    axis: str
    measure: Measure
    target: float
    met: Point | None
    """At the least value found whose mean over the seeds meets the target; None if no value tried does."""
    missed: Point | None
    """At the greatest value tried below, whose mean misses it, no further below than the tolerance; None if even the
    least value of the grid meets it."""
    drop: float
    """Most by which the measure fell from one value tried to the next greater one; 0 where it is monotone."""
    tried: tuple[Point, ...]
    """All that was tried, by value."""

    @property
    def best(self) -> Point:
        """Where the measure was greatest."""
        return max(self.tried, key=lambda point: mean_of(point, self.measure))


def mean_of(point: Point, measure: Measure) -> float:
    """A point's mean over the seeds of what a target is set for."""
    match measure:
        case "utility":
            return point.utility.mean
        case "delivered":
            return point.delivered.mean


def refuse_search(axis: str, target: float, tolerance: float) -> None:
    """Refuse what `least` cannot search for. Raises AirtuneError."""
    if axis not in SEARCHED:
        raise AirtuneError(f"--search: {' or '.join(SEARCHED)} would be right, got {axis!r}")
    if not 0.0 < target <= 1.0:
        raise AirtuneError(f"--target: a share above 0 and at most 1 would be right, got {target:g}")
    if not 0.0 < tolerance < 1.0:
        raise AirtuneError(f"--tolerance: a share strictly between 0 and 1 would be right, got {tolerance:g}")


def least(planner: Planner, axis: str, measure: Measure, target: float, tolerance: float = 0.02) -> Found:
    """Search for the least value of an axis at which the mean of a measure over the seeds is at least the target.

    Every trial has the same channels, fades, batches and devices, so two differ by the value alone. Of the grid's
    values the least that meets the target and the one before it are the ends of a bisection (of logarithms); so a
    measure that falls again further up, as deliveries do where larger modules take their place, does not mislead it.

    Args:
        planner: makes the trials.
        axis: one of `SEARCHED`.
        measure: what is to be met.
        target: in (0, 1].
        tolerance: relative distance of the two values that are left, in (0, 1).

    Raises:
        AirtuneError: an axis, target or tolerance that cannot be.
    """
    refuse_search(axis, target, tolerance)
    start, (bottom, top) = planner.value(axis), _LIMITS[axis]
    tried = {value: planner.point(axis, value) for value in (min(max(start * each, bottom), top) for each in GRID)}

    def meets(value: float) -> bool:
        return mean_of(tried[value], measure) >= target

    grid = sorted(tried)
    high = next((value for value in grid if meets(value)), None)
    low = max((value for value in grid if high is not None and value < high), default=None)
    while low is not None and high is not None and high > low * (1.0 + tolerance):
        middle = math.sqrt(low * high)
        tried[middle] = planner.point(axis, middle)
        low, high = (low, middle) if meets(middle) else (middle, high)
    points = tuple(tried[value] for value in sorted(tried))
    falls = (mean_of(before, measure) - mean_of(after, measure) for before, after in pairwise(points))
    return Found(
        axis=axis,
        measure=measure,
        target=target,
        met=None if high is None else tried[high],
        missed=None if low is None else tried[low],
        drop=max(0.0, *falls),
        tried=points,
    )
