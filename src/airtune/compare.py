"""Policies compared over seeds: same channels, data and initial weights, so differences are paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airtune.paired import Estimate, Paired, estimate, paired, reach
from airtune.report import Rows, Run
from airtune.settings import flat
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True)
class SeedReport:
    """One policy on one seed, against the reference on the same seed; None where there is no such run."""

    seed: int
    accuracy: float | None
    difference: float | None
    """Accuracy − the reference's."""
    energy_j: float
    reached: bool | None
    """Whether it reached the target on the dev subset: the one asked for, or the reference's last accuracy."""
    energy_to_target_j: float | None
    """Energy until then [J]; None if not reached."""
    time_to_target_s: float | None
    """Rounds until then, each as long as the deadline [s]; None if not reached."""
    saving: float | None
    """1 − that energy over the reference's own up to its first crossing; None if either did not reach it."""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy over its seeds; differences are policy − reference on the same seeds."""

    policy: str
    seeds: tuple[int, ...]
    accuracy: Estimate | None
    difference: Paired | None
    """Accuracy against the reference policy; None for the reference itself and where no seed is shared."""
    energy_j: Estimate
    energy_compute_j: float
    energy_transmit_j: float
    budget_j: float
    accuracy_per_kj: Estimate | None
    """Final accuracy (as a fraction) over energy [1/kJ]."""
    reached: int
    """Seeds that reached the target on the dev subset: the one asked for, or the reference's last of the same seed."""
    paired: int
    """Seeds that have a target: with the reference's, those shared with it."""
    energy_to_target_j: Estimate | None
    """Energy until then [J]; None unless every such seed reached it, since a mean over the lucky ones misleads."""
    time_to_target_s: Estimate | None
    """Time until then [s], likewise; a round lasts as long as its deadline."""
    saving: Estimate | None
    """Share of the reference's energy saved until then, paired by seed; None as above and for the reference itself."""
    delivery_rate: Estimate | None
    max_overspend_ratio: float
    """Worst device of all seeds, energy over budget."""
    wall_s: float
    per_seed: tuple[SeedReport, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies compared; the reference comes first."""

    task: str
    model: str
    reference: str
    target: float | None
    """Accuracy asked for; None for the reference's last one, seed by seed."""
    policies: tuple[PolicyReport, ...]


def last_accuracy(rounds: Rows) -> float | None:
    """The last accuracy in the rows, on the dev subset (a summary's may be on the whole dev set); None if none."""
    return next((row["accuracy"] for row in reversed(rounds) if row["accuracy"] is not None), None)


def refuse_target(target: float | None) -> None:
    """Raise AirtuneError unless an accuracy that is asked for can be one."""
    if target is not None and not 0 < target <= 1:
        raise AirtuneError(f"--target: an accuracy above 0 and at most 1, as 0.8, would be right, got {target:g}")


def compare(
    runs: Sequence[Run], reference: str | None = None, target: float | None = None, *, partial: bool = False
) -> Comparison:
    """Group runs by policy and pair them by seed.

    Args:
        runs: finished runs, alike in all but policy and seed.
        reference: policy that the others are set against; the first run's if None.
        target: accuracy on the dev subset, in (0, 1], whose energy and time are told; the reference's last if None.
        partial: the reference may be missing, since its runs have failed; nothing is then set against it.

    Raises AirtuneError if the runs differ in more than policy and seed, if a policy has a seed twice, or if the
    reference is not among them.
    """
    refuse_target(target)
    if not runs:
        raise AirtuneError("there is no run to compare; give at least one finished run folder")
    for run in runs[1:]:
        refuse_unpaired(runs[0], run)
    groups = by_policy(runs)
    reference = reference if reference is not None else next(iter(groups))
    if reference not in groups and not partial:
        raise AirtuneError(f"no run of the reference policy {reference}; there are {', '.join(groups)}")
    names = sorted(groups, key=lambda name: name != reference)
    base = groups.get(reference, {})
    summary = runs[0].summary
    reports = tuple(_policy_report(name, groups[name], base, reference, target) for name in names)
    return Comparison(str(summary["task"]), str(summary["model"]), reference, target, reports)


UNPAIRED = {"seed", "out", "threads", "name", "data_dir"}
"""Keys in which runs that are compared may differ; data are compared by their digests instead of their place."""


def refuse_unpaired(one: Run, other: Run) -> None:
    """Raise AirtuneError if two runs differ in anything but policy and seed, naming the first key that differs.

    Policies have dials of their own; two runs of one policy must have the same.
    """
    free = UNPAIRED if one.summary["policy"] == other.summary["policy"] else UNPAIRED | {"policy"}
    mine, theirs = (flat({key: value for key, value in run.config.items() if key not in free}) for run in (one, other))
    for key in mine | theirs:
        if mine.get(key) != theirs.get(key):
            values = " and ".join(str(side.get(key, "not set")) for side in (mine, theirs))
            own = key.startswith("policy.")
            may = "runs of one policy may differ in their seed alone" if own else "only policy and seed may differ"
            raise AirtuneError(f"{one.path} and {other.path} cannot be compared: {key} is {values}; {may}")
    for part in ("data", "model"):
        digests = [run.environment.get(part, {}).get("sha256") for run in (one, other)]
        if digests[0] != digests[1]:
            raise AirtuneError(f"{one.path} and {other.path} cannot be compared: the files of the {part} differ")


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


def _seed_report(run: Run, reference: Run | None, target: float | None) -> SeedReport:
    seed, accuracy, energy_j = int(run.summary["seed"]), run.summary["accuracy"], float(run.summary["energy_j"])
    theirs = None if reference is None else reference.summary["accuracy"]
    difference = None if accuracy is None or theirs is None else accuracy - theirs
    goal = target if target is not None or reference is None else last_accuracy(reference.rounds)
    if goal is None:
        return SeedReport(seed, accuracy, difference, energy_j, None, None, None, None)
    mine, base = (None if each is None else reach(each.rounds, goal) for each in (run, reference))
    if mine is None:
        return SeedReport(seed, accuracy, difference, energy_j, False, None, None, None)
    saving = 1.0 - mine.energy_j / base.energy_j if base is not None and base.energy_j > 0 else None
    time_s = mine.rounds * float(run.config["world"]["deadline_s"])
    return SeedReport(seed, accuracy, difference, energy_j, True, mine.energy_j, time_s, saving)


def _policy_report(
    name: str, runs: Mapping[int, Run], reference: Mapping[int, Run], label: str, target: float | None
) -> PolicyReport:
    def values(key: str) -> list[float]:
        return [float(run.summary[key]) for run in runs.values() if run.summary[key] is not None]

    seeds = tuple(_seed_report(run, reference.get(seed), target) for seed, run in runs.items())
    asked = [seed for seed in seeds if seed.reached is not None]
    energies_j = [seed.energy_to_target_j for seed in asked if seed.energy_to_target_j is not None]
    times_s = [seed.time_to_target_s for seed in asked if seed.time_to_target_s is not None]
    savings = [seed.saving for seed in asked if seed.saving is not None]
    every = len(energies_j) == len(asked)
    energy = estimate(values("energy_j"))
    assert energy is not None  # a policy has at least one run
    rates = [each.accuracy / each.energy_j * 1e3 for each in seeds if each.accuracy is not None and each.energy_j > 0]
    differences = [seed.difference for seed in seeds if seed.difference is not None]
    return PolicyReport(
        policy=name,
        seeds=tuple(runs),
        accuracy=estimate(values("accuracy")),
        difference=paired(differences) if name != label else None,
        energy_j=energy,
        energy_compute_j=statistics.fmean(values("energy_compute_j")),
        energy_transmit_j=statistics.fmean(values("energy_transmit_j")),
        budget_j=statistics.fmean(values("budget_j")),
        accuracy_per_kj=estimate(rates),
        reached=len(energies_j),
        paired=len(asked),
        energy_to_target_j=estimate(energies_j) if every else None,
        time_to_target_s=estimate(times_s) if every else None,
        saving=estimate(savings) if name != label and len(savings) == len(asked) else None,
        delivery_rate=estimate(values("delivery_rate")),
        max_overspend_ratio=max(values("max_overspend_ratio"), default=math.nan),
        wall_s=statistics.fmean(values("wall_s")),
        per_seed=seeds,
    )
