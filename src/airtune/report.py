"""One run in numbers, computed from its rows only; `tables` shows them and `compare` sets runs side by side."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from airtune.record import RunFolder
from airtune.rows import Summary
from airtune.types import AirtuneError

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """A run read back for comparison."""

    path: Path
    summary: Mapping[str, Any]
    """`rows.Summary`."""
    rounds: Rows
    """`rows.RoundRow`s."""
    config: Mapping[str, Any]
    """The resolved configuration; what was None is absent."""
    environment: Mapping[str, Any]
    """What it ran on, with the digests of model and data."""


@dataclass(frozen=True, slots=True)
class KindReport:
    """What one class of devices did."""

    kind: str
    devices: int
    """Those that have rows: with fleet.active, those ever drawn."""
    scheduled: int
    """Device-rounds."""
    delivered: int
    module_mean: float | None
    """Mean module among the scheduled; None if there were none."""
    energy_j: float
    """Energy per device over the run [J]."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run in numbers."""

    path: Path
    finished: bool
    summary: Summary
    """Its budget_j is NaN while the run has not ended."""
    best_accuracy: float | None
    jain: float | None
    """Jain's fairness index of the delivered uploads of the devices that have rows, in (0, 1]; None if nobody
    delivered."""
    gap_median: float | None
    """Median certificate (upper bound − objective) / |upper bound|; None if the policy gives no bound."""
    decide_median_s: float | None
    privacy: Mapping[str, Any]
    """Table `privacy` of the configuration; empty in runs of a version without it."""
    kinds: tuple[KindReport, ...]


def summarise(
    rounds: Rows, *, task: str, model: str, policy: str, seed: int, budget_j: float, wall_s: float
) -> Summary:
    """Totals of a run from its round rows (at least one); budget_j is T·Σ_k Ē_k. Raises AirtuneError for no rows."""
    if not rounds:
        raise AirtuneError("a run without a finished round has nothing to summarise")
    accuracies = [row["accuracy"] for row in rounds if row["accuracy"] is not None]
    compute_j = math.fsum(row["energy_compute_j"] for row in rounds)
    transmit_j = math.fsum(row["energy_transmit_j"] for row in rounds)
    scheduled = sum(row["scheduled"] for row in rounds)
    summary = Summary(
        task=task,
        model=model,
        policy=policy,
        seed=seed,
        rounds=len(rounds),
        accuracy=accuracies[-1] if accuracies else None,
        energy_j=compute_j + transmit_j,
        energy_compute_j=compute_j,
        energy_transmit_j=transmit_j,
        budget_j=budget_j,
        max_overspend_ratio=rounds[-1]["max_overspend_ratio"],
        delivery_rate=sum(row["delivered"] for row in rounds) / scheduled if scheduled else None,
        tokens=math.fsum(row["tokens"] for row in rounds),
        wall_s=wall_s,
        bound=rounds[-1]["bound"],
        bound_tight=rounds[-1].get("bound_tight"),
        module_histogram=[sum(counts) for counts in zip(*(row["modules"] for row in rounds), strict=True)],
    )
    if "epsilon" in rounds[-1]:
        summary["epsilon"] = rounds[-1]["epsilon"]
    return summary


def elapsed_s(timings: Rows) -> float:
    """Time spent on a run up to its last timing row, by all processes together [s]; 0 without rows."""
    if not timings:
        return 0.0
    return timings[-1].get("elapsed_s") or math.fsum(row["wall_s"] for row in timings)


def load_run(path: Path) -> Run:
    """Read a finished run for comparison. Raises AirtuneError if it is none or has not ended."""
    folder = RunFolder.open(path)
    summary = folder.read_summary()
    if summary is None:
        raise AirtuneError(f"run {path} has not ended; `airtune resume {path}` finishes it")
    rounds = folder.read_rounds()
    _refuse_short(path, summary, rounds)
    return Run(path, summary, rounds, folder.read_config(), folder.read_environment())


def _refuse_short(path: Path, summary: Mapping[str, Any], rounds: Rows) -> None:
    """Raise AirtuneError if a run that has ended lacks rows of its rounds."""
    if len(rounds) != summary["rounds"]:
        raise AirtuneError(
            f"run {path} is damaged: rounds.jsonl has {len(rounds)} of its {summary['rounds']} rounds; copy it again"
        )


def report_run(path: Path) -> RunReport:
    """Read one run, finished or not, and report on the rounds it has. Raises AirtuneError if it has none."""
    folder = RunFolder.open(path)
    return report_rows(folder, folder.read_rounds(), folder.read_devices())


def report_rows(folder: RunFolder, rounds: Rows, devices: Rows) -> RunReport:
    """Report on a run whose rows have been read. Raises AirtuneError if there is no round."""
    timings, config, written = folder.read_timings(), folder.read_config(), folder.read_summary()
    if written is not None:
        _refuse_short(folder.path, written, rounds)
    summary = cast("Summary | None", written) or summarise(
        rounds,
        task=config.get("task", {}).get("name", "?"),
        model=config.get("model", {}).get("name", "?"),
        policy=folder.read_environment().get("policy", {}).get("label") or config.get("policy", {}).get("name", "?"),
        seed=config.get("seed", 0),
        budget_j=math.nan,
        wall_s=elapsed_s(timings),
    )
    gaps = [gap for row in rounds if (gap := certified_gap(row)) is not None]
    delivered: dict[int, int] = {}
    for row in devices:
        delivered[row["device"]] = delivered.get(row["device"], 0) + bool(row["delivered"])
    return RunReport(
        path=folder.path,
        finished=written is not None,
        summary=summary,
        best_accuracy=max((row["accuracy"] for row in rounds if row["accuracy"] is not None), default=None),
        jain=jain_index(list(delivered.values())),
        gap_median=statistics.median(gaps) if gaps else None,
        decide_median_s=statistics.median(row["decide_s"] for row in timings) if timings else None,
        privacy=config.get("privacy", {}),
        kinds=report_kinds(devices),
    )


def certified_gap(row: Mapping[str, Any]) -> float | None:
    """How far below its upper bound a round's decision is at most, relatively; None where no bound was proven.

    >>> certified_gap({"upper_bound": 10.0, "objective": 9.0}), certified_gap({"upper_bound": None, "objective": 9.0})
    (0.1, None)
    """
    bound = row["upper_bound"]
    return (bound - row["objective"]) / abs(bound) if bound else None


def report_kinds(devices: Rows) -> tuple[KindReport, ...]:
    """What each class of devices did, from device rows, in order of appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in devices:
        groups.setdefault(row["kind"], []).append(row)
    reports: list[KindReport] = []
    for kind, group in groups.items():
        count = len({row["device"] for row in group})
        modules = [row["module"] for row in group if row["module"] > 0]
        energy_j = math.fsum(row["energy_compute_j"] + row["energy_transmit_j"] for row in group)
        reports.append(
            KindReport(
                kind=kind,
                devices=count,
                scheduled=len(modules),
                delivered=sum(bool(row["delivered"]) for row in group),
                module_mean=statistics.fmean(modules) if modules else None,
                energy_j=energy_j / count,
            )
        )
    return tuple(reports)


def jain_index(shares: Sequence[float]) -> float | None:
    """Jain's fairness index (Σx)² / (K·Σx²); 1 if all are equal, 1/K if one has all; None if nobody has any.

    >>> jain_index([1, 1, 1, 1]), jain_index([1, 0, 0, 0])
    (1.0, 0.25)
    """
    squares = math.fsum(x * x for x in shares)
    return math.fsum(shares) ** 2 / (len(shares) * squares) if squares else None
