"""Solver B: certificates over many random rounds, time per decision, its growth with K, and Solver A side by side.

    python -m benchmarks.bench_solver [--instances 500] [--largest 100000] [--out experiments/results/solver]

Instances are those of `benchmarks.instances`: K log-uniform in 5–1000, M uniform in 1–8 from the seed, loads in turn.
Times are processor seconds of one thread, the shortest of some calls after a first one that compiles. SCIP, which takes
minutes, is in `benchmarks.study_exact`.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from airtune.control.alternating import AlternatingPolicy
from airtune.control.joint import JointPolicy
from airtune.types import Decision
from benchmarks.instances import LOADS, draw, timed

PICTURE = Path("docs/pictures/solver.png")
SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
Row = dict[str, float]


def certificate(decision: Decision) -> float:
    """(Bound − objective)/bound; 0 where both are 0."""
    bound = decision.upper_bound or 0.0
    return (bound - decision.objective) / bound if bound > 0 else 0.0


def certificates(instances: int) -> list[Row]:
    """One row per random instance."""
    rows: list[Row] = []
    for seed in range(instances):
        rng = np.random.default_rng((seed, 77))
        devices = round(float(np.exp(rng.uniform(np.log(5), np.log(1000)))))
        modules, load = int(rng.integers(1, 9)), LOADS[seed % len(LOADS)]
        problem = draw(seed, devices, modules, load)
        joint, joint_s = timed(JointPolicy(), problem, 2)
        alternating, alternating_s = timed(AlternatingPolicy(), problem, 1)
        bound = joint.upper_bound or 0.0
        rows.append(
            {
                "seed": seed,
                "devices": devices,
                "modules": modules,
                "load": load,
                "active": int((joint.module > 0).sum()),
                "objective_j2": joint.objective,
                "certificate": certificate(joint),
                "nodes": joint.iterations,
                "joint_s": joint_s,
                "alternating_gap": (bound - alternating.objective) / bound if bound > 0 else 0.0,
                "alternating_s": alternating_s,
            }
        )
    return rows


def growth(largest: int, seeds: int = 3) -> list[Row]:
    """Times of one decision at M = 5 and load 0.5 for growing K."""
    rows: list[Row] = []
    for devices in (size for size in SIZES if size <= largest):
        for seed in range(seeds):
            problem = draw(seed, devices, 5, 0.5)
            joint, joint_s = timed(JointPolicy(), problem, 5 if devices <= 3_000 else 2)
            rows.append({"devices": devices, "seed": seed, "joint_s": joint_s, "certificate": certificate(joint)})
    return rows


def exponent(rows: Sequence[Row]) -> float:
    """Slope of log time against log K from K = 100 on, over the medians of the seeds."""
    sizes = sorted({row["devices"] for row in rows})
    medians = [float(np.median([row["joint_s"] for row in rows if row["devices"] == size])) for size in sizes]
    return float(np.polyfit(np.log(sizes), np.log(medians), 1)[0])


def write(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def picture(rows: Sequence[Row], times: Sequence[Row], path: Path) -> None:
    """Distribution of the certificates, and time against K."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for low, high, label in ((5, 19, "K < 20"), (20, 1000, "K ≥ 20")):
        values = np.sort([100 * row["certificate"] for row in rows if low <= row["devices"] <= high])
        part = np.arange(1, len(values) + 1) / len(values)
        left.plot(np.maximum(values, 1e-12), part, label=f"Solver B, {label} ({len(values)})")
    values = np.sort([100 * row["alternating_gap"] for row in rows])
    left.plot(
        np.maximum(values, 1e-12), np.arange(1, len(values) + 1) / len(values), ":", color="gray", label="Solver A"
    )
    left.set(xscale="log", xlabel="distance to the proven bound [%]", ylabel="share of instances", ylim=(0, 1.02))
    left.legend(frameon=False)
    right.plot([row["devices"] for row in times], [1e3 * row["joint_s"] for row in times], "o", ms=4)
    right.set(xscale="log", yscale="log", xlabel="devices K (M = 5)", ylabel="one decision [ms]")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def told(rows: Sequence[Row], times: Sequence[Row], out: Callable[[str], None] = print) -> None:
    """The table of docs/benchmarks.md."""

    def column(name: str, keep: Callable[[Row], bool]) -> NDArray[np.float64]:
        return np.array([row[name] for row in rows if keep(row)])

    out("| figure | measured |\n|---|---|")
    for label, keep in (("5 ≤ K < 20", lambda row: row["devices"] < 20), ("K ≥ 20", lambda row: row["devices"] >= 20)):
        values = 100 * column("certificate", keep)
        text = f"worst {values.max():.1e} %, median {np.median(values):.1e} %"
        out(f"| certificate, {len(values)} instances, {label} | {text} |")
    gaps = 100 * column("alternating_gap", lambda row: True)
    text = f"median {np.median(gaps):.2g} %, 90 % {np.quantile(gaps, 0.9):.2g} %, worst {gaps.max():.2g} %"
    out(f"| Solver A below the same bounds | {text} |")
    ratio = column("alternating_s", lambda row: True) / column("joint_s", lambda row: True)
    out(f"| Solver A's time over Solver B's | median {np.median(ratio):.0f} ×, least {ratio.min():.1f} × |")
    for size in (1_000, 100_000):
        found = [row["joint_s"] for row in times if row["devices"] == size]
        if found:
            text = f"{1e3 * np.median(found):.3g} ms (worst {1e3 * max(found):.3g})"
            out(f"| one decision, K = {size:,}, M = 5 | {text} |")
    out(
        f"| growth of time with K, {int(times[0]['devices'])}–{int(times[-1]['devices']):,} | K^{exponent(times):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--largest", type=int, default=100_000, help="largest K that is timed")
    parser.add_argument("--out", type=Path, help="folder for CSV rows; with it the picture is drawn too")
    asked = parser.parse_args()
    for seed in range(3):
        JointPolicy()(draw(seed, 6, 3, 0.05))  # compiles
    rows, times = certificates(asked.instances), growth(asked.largest)
    told(rows, times)
    if asked.out is not None:
        write(asked.out / "certificates.csv", rows)
        write(asked.out / "growth.csv", times)
        picture(rows, times, PICTURE)


if __name__ == "__main__":
    main()
