"""Is the bound at least the gap, and how far above it? Random instances with exact constants, counted by family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.testbed.instances import FAMILIES
from airtune.testbed.trajectories import Divergence
from airtune.theory.bound import divergence_phi, divergence_tight
from airtune.types import AirtuneError

BOUNDS: Mapping[str, Divergence] = {"Theorem 1": divergence_phi, "Theorem 2": divergence_tight}
"""What is verified: (9) with (10), and (9) with (12)."""
RELATIVE_SLACK = 1e-9
"""Relative excess of the gap over the bound that still counts as rounding."""
ROUNDING = 1e-12
"""Absolute excess that does, in units of the risks that were added up."""


@dataclass(frozen=True, slots=True)
class Check:
    """One instance under one bound."""

    instance: int
    family: str
    bound: str
    rounds: int
    gap: float
    """E[R(θ_T)] − R*."""
    value: float
    """The bound after the last round."""
    violated: bool
    """Whether the gap exceeded the bound after any round."""

    @property
    def ratio(self) -> float | None:
        """Bound over gap after the last round; None where the gap is nothing but rounding."""
        return self.value / self.gap if self.gap > 0 else None


@dataclass(frozen=True, slots=True)
class Line:
    """A family's instances under one bound."""

    family: str
    bound: str
    instances: int
    violations: int
    median: float
    """Of bound over gap."""
    upper: float
    """Its 90 % quantile."""


def checks(instances: int, seed: int, bounds: Mapping[str, Divergence] = BOUNDS) -> Iterator[Sequence[Check]]:
    """Verify instances one by one; each depends on the seed and its number alone.

    Theorem 2 is applied where its assumptions hold; the last family breaks them, and only Theorem 1 is checked there.

    Args:
        instances: how many.
        seed: of all of them.
        bounds: divergences by name; those named other than "Theorem 1" are taken to need Theorem 2's assumptions.

    Raises:
        AirtuneError: no instance, or a negative seed.
    """
    if instances < 1 or seed < 0:
        raise AirtuneError(f"verify: needs instances ≥ 1 and seed ≥ 0, got {instances} and {seed}")
    for number in range(instances):
        family = FAMILIES[number % len(FAMILIES)]
        fitting = {name: each for name, each in bounds.items() if family.theorem_2 or name == "Theorem 1"}
        path = family.path(np.random.default_rng((seed, number)), fitting)
        slack = ROUNDING * path.scale
        last = float(path.gap[-1]) if path.gap[-1] > slack else 0.0
        yield [
            Check(
                number,
                family.name,
                name,
                len(path.gap) - 1,
                last,
                float(values[-1]),
                bool(np.any(~(path.gap <= values * (1.0 + RELATIVE_SLACK) + slack))),
            )
            for name, values in path.bounds.items()
        ]


def verify(
    instances: int,
    seed: int,
    bounds: Mapping[str, Divergence] = BOUNDS,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Check]:
    """All checks; `progress` hears how many instances are done."""
    found: list[Check] = []
    for done, several in enumerate(checks(instances, seed, bounds), 1):
        found.extend(several)
        progress(done)
    return found


def summary(found: Sequence[Check]) -> list[Line]:
    """A line for each family and bound, and one for each bound over all families."""
    lines = [line for family in FAMILIES for line in _lines(family.name, [c for c in found if c.family == family.name])]
    return lines + _lines("all", found)


def _lines(family: str, found: Sequence[Check]) -> list[Line]:
    lines: list[Line] = []
    for bound in dict.fromkeys(check.bound for check in found):
        mine = [check for check in found if check.bound == bound]
        ratios = [ratio for check in mine if (ratio := check.ratio) is not None]
        median, upper = np.quantile(ratios, [0.5, 0.9]) if ratios else (np.nan, np.nan)
        wrong = sum(check.violated for check in mine)
        lines.append(Line(family, bound, len(mine), wrong, float(median), float(upper)))
    return lines
