"""Solvers A and B against SCIP's proven optimum on random rounds.

    python -m benchmarks.study_exact --instances 100 --devices 2-8 --modules 1-4 [--time-limit 60] [--out FILE]

Instance i has seed i, K and M drawn from the given ranges, and the loads of `benchmarks.instances` in turn. Rows go to
the CSV one by one; instances that it already holds (same seed, K, M and load) are not solved again. Times are processor
seconds of one thread for one call on this machine, the shortest of `--repeats` for A and B.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from airtune.control.alternating import AlternatingPolicy
from airtune.control.exact import ExactPolicy
from airtune.control.joint import JointPolicy
from benchmarks.instances import LOADS, draw, timed

OUT = Path("experiments/results/exact/gaps.csv")
COLUMNS = (
    "seed", "devices", "modules", "load", "optimum_j2", "scip_bound_j2", "scip_gap", "scip_status", "scip_nodes",
    "scip_s", "a_j2", "a_s", "b_j2", "b_bound_j2", "b_s",
)  # fmt: skip
Row = dict[str, str]


def span(text: str) -> tuple[int, int]:
    """A range, written 8 or 2-8."""
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def solved(seed: int, devices: int, modules: int, load: float, limit_s: float, repeats: int) -> Row:
    """One row: all three solvers on one instance."""
    problem = draw(seed, devices, modules, load)
    exact, exact_s = timed(ExactPolicy(time_limit_s=limit_s), problem, 1)
    a, a_s = timed(AlternatingPolicy(), problem, repeats)
    b, b_s = timed(JointPolicy(), problem, repeats)
    bound = exact.upper_bound if exact.upper_bound is not None else float("inf")
    gap = (bound - exact.objective) / max(abs(exact.objective), 1e-300) if bound > exact.objective else 0.0
    values = (
        seed, devices, modules, load, exact.objective, bound, gap, exact.status, exact.iterations, exact_s,
        a.objective, a_s, b.objective, b.upper_bound, b_s,
    )  # fmt: skip
    return {
        name: repr(value) if isinstance(value, float) else str(value)
        for name, value in zip(COLUMNS, values, strict=True)
    }


def summary(rows: list[Row], out: Callable[[str], None] = print) -> None:
    """Gaps in % of the optimum, and times."""

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])

    scale = np.maximum(np.abs(column("optimum_j2")), 1e-300)
    proven = np.array([row["scip_status"] == "optimal" for row in rows])
    out(f"{len(rows)} instances, {proven.sum()} solved to proven optimality by SCIP; others up to its bound")
    out(f"SCIP gap: median {100 * np.median(column('scip_gap')):.2g} %, worst {100 * column('scip_gap').max():.2g} %")
    for name in ("a", "b"):
        gap = 100.0 * (column("optimum_j2") - column(f"{name}_j2")) / scale
        line = f"Solver {name.upper()} below SCIP's value: median {np.median(gap):.2g} %, worst {gap.max():.2g} %"
        out(f"{line}, largest excess over it {max(-gap.min(), 0.0):.2g} %")
    certificate = 100.0 * (column("b_bound_j2") - column("b_j2")) / scale
    short = 100.0 * (column("optimum_j2") - column("b_bound_j2")) / scale
    out(f"Solver B's certificate: median {np.median(certificate):.2g} %, worst {certificate.max():.2g} %")
    out(f"SCIP's value above B's bound: {(short > 1e-7).sum()} instances, by at most {max(short.max(), 0.0):.2g} %")
    above = 100.0 * (column("b_j2") - column("scip_bound_j2")) / scale
    out(f"Solver B above SCIP's bound: {(above > 1e-7).sum()} instances, by at most {max(above.max(), 0.0):.2g} %")
    for name in ("scip_s", "a_s", "b_s"):
        seconds = column(name)
        out(f"{name}: median {np.median(seconds):.3g} s, longest {seconds.max():.3g} s")
    ratio = column("scip_s") / column("b_s")
    out(f"SCIP's time over B's: median {np.median(ratio):.4g}, least {ratio.min():.4g}")
    largest = column("devices") == column("devices").max()
    out(f"at K = {column('devices').max():.0f} ({largest.sum()} instances): median {np.median(ratio[largest]):.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Solvers A and B against SCIP's proven optimum")
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--devices", type=span, default=(2, 8), help="K or a range, as 2-8")
    parser.add_argument("--modules", type=span, default=(1, 4), help="M or a range, as 1-4")
    parser.add_argument("--time-limit", type=float, default=60.0, help="SCIP's, per instance [s]")
    parser.add_argument("--repeats", type=int, default=5, help="calls of A and B that are timed")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = list(csv.DictReader(options.out.open())) if options.out.exists() else []
    held = {(row["seed"], row["devices"], row["modules"], row["load"]): row for row in rows}
    JointPolicy()(draw(0, 2, 1, 1.0))  # compiled before anything is timed
    wanted: list[Row] = []
    for seed in range(options.instances):
        rng = np.random.default_rng((seed, 1))
        devices = int(rng.integers(options.devices[0], options.devices[1] + 1))
        modules = int(rng.integers(options.modules[0], options.modules[1] + 1))
        load = LOADS[seed % len(LOADS)]
        key = (str(seed), str(devices), str(modules), repr(load))
        if key not in held:
            held[key] = solved(seed, devices, modules, load, options.time_limit, options.repeats)
            new = not options.out.exists()
            with options.out.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if new:
                    writer.writeheader()
                writer.writerow(held[key])
        wanted.append(held[key])
    summary(wanted)


if __name__ == "__main__":
    main()
