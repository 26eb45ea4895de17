"""Statistics over seeds: means with intervals, differences paired by seed, and what a target accuracy cost."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over seeds and its 95 % confidence interval."""

    mean: float
    half_width: float | None
    """Half the width of the t-interval; None for a single seed."""
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Differences of two policies on the same seeds, one value a seed."""

    mean: float
    half_width: float | None
    """Half the width of the 95 % t-interval; None for a single seed."""
    n: int
    low: float | None
    """Lower end of the 95 % bootstrap interval (percentiles of resampled means); None for a single seed."""
    high: float | None
    above: int
    """Seeds on which the difference is positive."""


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % t-interval of independent values; None for no values.

    >>> estimate([0.5])
    Estimate(mean=0.5, half_width=None, n=1)
    """
    n = len(values)
    if n == 0:
        return None
    if n == 1:
        return Estimate(values[0], None, 1)
    from scipy.special import stdtrit  # loaded late: the command line must start quickly

    half_width = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(statistics.fmean(values), half_width, n)


def paired(differences: Sequence[float]) -> Paired | None:
    """Mean difference over seeds with its t-interval, its bootstrap interval and its sign; None for no seeds.

    The bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) resamples seeds, from a generator
    of its own with a fixed seed. With few seeds it is narrower than it should be: of three seeds, both are shown.

    >>> paired([0.25])
    Paired(mean=0.25, half_width=None, n=1, low=None, high=None, above=1)
    """
    whole = estimate(differences)
    if whole is None:
        return None
    low = high = None
    if whole.n > 1:
        from scipy.stats import bootstrap

        drawn = bootstrap(
            (np.asarray(differences, dtype=np.float64),),
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(drawn.low), float(drawn.high)
    return Paired(whole.mean, whole.half_width, whole.n, low, high, sum(value > 0 for value in differences))


@dataclass(frozen=True, slots=True)
class Reached:
    """When an accuracy was first reached, linear between evaluations."""

    energy_j: float
    """Energy of the fleet up to then [J]."""
    rounds: float
    """Rounds up to then; times the deadline, the time on the air."""


def reach(rounds: Sequence[Mapping[str, Any]], target: float) -> Reached | None:
    """When the accuracy first reaches the target; None if it never does.

    Args:
        rounds: `rows.RoundRow`s in order; energy counts up to and including the evaluated round.
        target: accuracy on the dev subset, as in the rows.
    """
    spent_j, before = 0.0, None
    for count, row in enumerate(rounds, 1):
        spent_j += row["energy_compute_j"] + row["energy_transmit_j"]
        accuracy = row["accuracy"]
        if accuracy is None:
            continue
        if accuracy >= target:
            if before is None:
                return Reached(spent_j, count)
            share = (target - before[2]) / (accuracy - before[2])
            return Reached(before[0] + share * (spent_j - before[0]), before[1] + share * (count - before[1]))
        before = (spent_j, count, accuracy)
    return None
