"""Rows of `benchmarks.study_policies` as runs, and policies against each other on the seeds that both have."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from airtune.compare import PolicyReport, compare
from airtune.paired import Estimate, Paired
from airtune.report import Run
from airtune.settings import dump, read_config
from airtune.tables import interval, reached
from benchmarks.cells import Row


def runs_of(rows: Sequence[Row]) -> list[Run]:
    """Rows as runs that `compare` takes."""
    return [_run(row) for row in rows]


def _run(row: Row) -> Run:
    energies = {name: float(row[name]) for name in ("energy_compute_j", "energy_transmit_j", "budget_j")}
    scheduled = float(row["scheduled"])
    summary: dict[str, Any] = {
        "task": row["task"],
        "model": "minilm-l6",
        "policy": row["policy"],
        "seed": int(row["seed"]),
        "accuracy": float(row["accuracy"]),
        **energies,
        "energy_j": energies["energy_compute_j"] + energies["energy_transmit_j"],
        "delivery_rate": float(row["delivered"]) / scheduled if scheduled else None,
        "max_overspend_ratio": float(row["max_overspend_ratio"]),
        "wall_s": float(row["wall_s"]),
    }
    deadline_s = dump(read_config(row["task"]))["world"]["deadline_s"]
    if row["point"].startswith("world.deadline_s="):
        deadline_s = float(row["point"].partition("=")[2])
    return Run(Path(row["policy"]), summary, list(_rounds(row["path"])), {"world": {"deadline_s": deadline_s}}, {})


def _rounds(path: str) -> Iterator[dict[str, Any]]:
    """A row for every round; what was spent between two evaluations is spread evenly over the rounds between."""
    t, spent = 0, 0.0
    for point in path.split():
        ended, accuracy, energy = point.split(":")
        share = (float(energy) - spent) / (int(ended) - t)
        for each in range(t, int(ended)):
            known = float(accuracy) if each + 1 == int(ended) else None
            yield {"t": each, "accuracy": known, "energy_compute_j": share, "energy_transmit_j": 0.0}
        t, spent = int(ended), float(energy)


def whole_seeds(rows: Sequence[Row]) -> list[Row]:
    """Rows of the seeds that every policy has run."""
    ran = {
        policy: {row["seed"] for row in rows if row["policy"] == policy} for policy in {row["policy"] for row in rows}
    }
    return [row for row in rows if all(row["seed"] in seeds for seeds in ran.values())]


def lead(runs: Sequence[Run], policy: str, over: str) -> PolicyReport | None:
    """`policy` against another on the seeds that both have; None without any."""
    seeds = [{run.summary["seed"] for run in runs if run.summary["policy"] == each} for each in (policy, over)]
    both = seeds[0] & seeds[1]
    pair = [run for run in runs if run.summary["policy"] in (policy, over) and run.summary["seed"] in both]
    return compare(pair, over).policies[-1] if both and policy != over else None


def verdict(difference: Estimate | Paired | None) -> str:
    """Whether a paired difference, or what was saved, is told from nothing by its t-interval."""
    if difference is None or difference.half_width is None:
        return "–"
    if abs(difference.mean) <= difference.half_width:
        return "not told apart"
    return "ahead" if difference.mean > 0 else "behind"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def told(ours: PolicyReport | None) -> str:
    """The paired difference, what it tells, and on how many seeds it is above nothing."""
    difference = None if ours is None else ours.difference
    if difference is None:
        return "–"
    return f"{interval(difference, 100, 1, sign=True)}, {verdict(difference)}, {difference.above} of {difference.n}"


def saving(policy: PolicyReport) -> str:
    """Energy saved to the reference's final accuracy, or on how many seeds it was reached."""
    if policy.difference is None:  # the reference itself
        return "–"
    return interval(policy.saving, 100, 0, sign=True) if policy.saving else reached(policy, None)
