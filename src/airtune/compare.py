"""Policies compared over seeds: same channels, data and initial weights, so differences are paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from airtune.report import Rows, Run
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean over seeds and its 95 % confidence interval."""

    mean: float
    half_width: float | None
    """Half the width of the t-interval; None for a single seed."""
    n: int


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy over its seeds; differences are policy − reference on the same seeds."""

    policy: str
    seeds: tuple[int, ...]
    accuracy: Estimate | None
    difference: Estimate | None
    """Accuracy against the reference policy; None for the reference itself and where no seed is shared."""
    energy_j: Estimate
    energy_compute_j: float
    energy_transmit_j: float
    budget_j: float
    accuracy_per_kj: Estimate | None
    """Final accuracy (as a fraction) over energy [1/kJ]."""
    reached: int
    """Seeds that reached the reference policy's last accuracy on the dev subset, of the same seed."""
    paired: int
    """Seeds shared with the reference policy."""
    energy_to_reference_j: Estimate | None
    """Energy until then [J]; None unless every shared seed reached it, since a mean over the lucky ones misleads."""
    delivery_rate: Estimate | None
    max_overspend_ratio: float
    """Worst device of all seeds, energy over budget."""
    wall_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies compared; the reference comes first."""

    task: str
    model: str
    reference: str
    policies: tuple[PolicyReport, ...]


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
    half_width = float(stdtrit(n - 1, 0.975)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(statistics.fmean(values), half_width, n)


def energy_to_accuracy_j(rounds: Rows, target: float) -> float | None:
    """Cumulative energy [J] at which the accuracy first reaches the target; None if it never does.

    Linear between evaluations; energy counts up to and including the evaluated round.
    """
    spent_j, before = 0.0, None
    for row in rounds:
        spent_j += row["energy_compute_j"] + row["energy_transmit_j"]
        accuracy = row["accuracy"]
        if accuracy is None:
            continue
        if accuracy >= target:
            if before is None:
                return spent_j
            share = (target - before[1]) / (accuracy - before[1])
            return before[0] + share * (spent_j - before[0])
        before = (spent_j, accuracy)
    return None


def last_accuracy(rounds: Rows) -> float | None:
    """The last accuracy in the rows, on the dev subset (a summary's may be on the whole dev set); None if none."""
    return next((row["accuracy"] for row in reversed(rounds) if row["accuracy"] is not None), None)


def compare(runs: Sequence[Run], reference: str | None = None) -> Comparison:
    """Group runs by policy and pair them by seed against a reference policy (the first run's if None).

    Raises AirtuneError if the runs are of several tasks or models, if a policy has a seed twice, or if the
    reference is not among them.
    """
    if not runs:
        raise AirtuneError("there is no run to compare; give at least one finished run folder")
    for key in ("task", "model"):
        found = sorted({str(run.summary[key]) for run in runs})
        if len(found) > 1:
            raise AirtuneError(f"runs of one {key} can be compared, these are of {', '.join(found)}")
    groups = by_policy(runs)
    reference = reference if reference is not None else next(iter(groups))
    if reference not in groups:
        raise AirtuneError(f"no run of the reference policy {reference}; there are {', '.join(groups)}")
    names = [reference, *(name for name in groups if name != reference)]
    summary = runs[0].summary
    reports = tuple(_policy_report(name, groups[name], groups[reference], reference) for name in names)
    return Comparison(str(summary["task"]), str(summary["model"]), reference, reports)


def by_policy(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Runs as policy → seed → run, policies in order of appearance. Raises AirtuneError for a seed given twice."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        seeds = groups.setdefault(str(run.summary["policy"]), {})
        seed = int(run.summary["seed"])
        if seed in seeds:
            raise AirtuneError(
                f"{seeds[seed].path} and {run.path} are both policy {run.summary['policy']} with seed {seed}; give one"
            )
        seeds[seed] = run
    return {name: dict(sorted(seeds.items())) for name, seeds in groups.items()}


def _policy_report(name: str, runs: Mapping[int, Run], reference: Mapping[int, Run], label: str) -> PolicyReport:
    def values(key: str) -> list[float]:
        return [float(run.summary[key]) for run in runs.values() if run.summary[key] is not None]

    energy = estimate(values("energy_j"))
    assert energy is not None  # a policy has at least one run
    accuracies = {seed: run.summary["accuracy"] for seed, run in runs.items()}
    targets = {seed: run.summary["accuracy"] for seed, run in reference.items() if run.summary["accuracy"] is not None}
    shared = [seed for seed in runs if seed in targets]
    goals = {seed: last_accuracy(run.rounds) for seed, run in reference.items() if seed in runs}
    reached = [energy_to_accuracy_j(runs[seed].rounds, goal) for seed, goal in goals.items() if goal is not None]
    hits = [energy_j for energy_j in reached if energy_j is not None]
    differences = [accuracies[seed] - targets[seed] for seed in shared if accuracies[seed] is not None]
    rates = [
        run.summary["accuracy"] / run.summary["energy_j"] * 1e3
        for run in runs.values()
        if run.summary["accuracy"] is not None and run.summary["energy_j"] > 0
    ]
    return PolicyReport(
        policy=name,
        seeds=tuple(runs),
        accuracy=estimate(values("accuracy")),
        difference=estimate(differences) if name != label else None,
        energy_j=energy,
        energy_compute_j=statistics.fmean(values("energy_compute_j")),
        energy_transmit_j=statistics.fmean(values("energy_transmit_j")),
        budget_j=statistics.fmean(values("budget_j")),
        accuracy_per_kj=estimate(rates),
        reached=len(hits),
        paired=len(reached),
        energy_to_reference_j=estimate(hits) if len(hits) == len(reached) else None,
        delivery_rate=estimate(values("delivery_rate")),
        max_overspend_ratio=max(values("max_overspend_ratio"), default=math.nan),
        wall_s=statistics.fmean(values("wall_s")),
    )
