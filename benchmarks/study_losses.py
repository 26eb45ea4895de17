"""What to do about lost uploads where the gap is exact: quadratics that differ, and whose far devices lose more.

    python -m benchmarks.study_losses --out experiments/results/losses

Twenty devices send the whole adapter at full power in every round over `world.delivery`; optima are `spread` apart, so
that leaning towards the near has a price. Every way meets the same deliveries. Final gaps R(θ_T) − R* are averaged over
the last tenth of the rounds; ratios are to plain renormalisation, paired by seed.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from airtune.config import FleetConfig, LearningConfig, WorldConfig
from airtune.control.baselines import TraditionalPolicy
from airtune.round import rounds
from airtune.testbed.federation import NAME, PLAIN, federation
from airtune.testbed.problems import Quadratics
from benchmarks.instances import bowls

DEVICES, SIZE, ROUNDS, KEPT = 20, 8, 400, (8,)
WAYS: dict[str, tuple[Any, LearningConfig]] = {
    "renormalise": ("renormalised", PLAIN),
    "inverse, cap 5": ("renormalised", replace(PLAIN, lost="inverse", inverse_cap=5.0)),
    "inverse, cap 50": ("renormalised", replace(PLAIN, lost="inverse", inverse_cap=50.0)),
    "carry": ("renormalised", replace(PLAIN, lost="carry")),
    "momentum 0.9": ("renormalised", replace(PLAIN, server_momentum=0.9)),
    "sum, (8)": ("sum", PLAIN),
    "sum, inverse, cap 50": ("sum", replace(PLAIN, lost="inverse", inverse_cap=50.0)),
}


def draw(seed: int, spread: float, noise: float) -> tuple[Quadratics, np.ndarray]:
    """Bowls about optima `spread` apart, with gradient errors of size `noise`; and θ_0."""
    rng = np.random.default_rng((seed, 91))
    return bowls(rng, DEVICES, KEPT, spread, noise), 2.0 * np.ones(SIZE)


def run(seed: int, way: str, delivery: float, spread: float, noise: float) -> dict[str, Any]:
    """One run and its mean gap over the last tenth of the rounds."""
    problem, theta = draw(seed, spread, noise)
    mean, learning = WAYS[way]
    system, state = federation(
        problem,
        theta,
        0.2 / problem.curvature.smoothness,
        TraditionalPolicy(None, np.zeros(DEVICES)),
        rounds=ROUNDS,
        tradeoff_v=1.0,
        seed=seed,
        world=WorldConfig(
            delivery=delivery, cell_radius_m=250.0, min_distance_m=100.0, shadowing_std_db=4.0, deadline_s=100.0
        ),
        fleet=FleetConfig(devices=DEVICES, budget_scale=1e6),
        account=False,
        mean=mean,
        learning=learning,
    )
    least, gaps, delivered = problem.curvature.least, list[float](), 0
    for after, record in rounds(system, state):
        gaps.append(float(problem.risk(after.adapters[NAME].numpy()[None])[0]) - least)
        delivered += int(record.outcome.delivered.sum())
    return {
        "delivery": delivery,
        "spread": spread,
        "noise": noise,
        "seed": seed,
        "way": way,
        "gap": float(np.mean(gaps[-ROUNDS // 10 :])),
        "delivered": delivered / (ROUNDS * DEVICES),
    }


def main() -> None:
    """Run, write the rows, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/losses"))
    given = parser.parse_args()
    cases = [(d, s, n) for d in (0.7, 0.4) for s, n in ((1.0, 0.2), (0.2, 1.0))]
    rows = [run(seed, way, *case) for case in cases for seed in range(given.seeds) for way in WAYS]
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print("| delivery | optima apart | noise | way | gap | gap over renormalisation's, paired | better in |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        mine = [row for row in rows if (row["delivery"], row["spread"], row["noise"]) == case]
        base = np.array([row["gap"] for row in mine if row["way"] == "renormalise"])
        for way in WAYS:
            gap = np.array([row["gap"] for row in mine if row["way"] == way])
            change = np.log(gap / base)
            half = float(stats.t.ppf(0.975, len(gap) - 1)) * change.std(ddof=1) / len(gap) ** 0.5
            low, middle, high = np.exp([change.mean() - half, change.mean(), change.mean() + half])
            print(
                f"| {case[0]} | {case[1]} | {case[2]} | {way} | {gap.mean():.4f} | {middle:.2f} ({low:.2f}–{high:.2f}) "
                f"| {int((gap < base).sum())} of {len(gap)} |"
            )


if __name__ == "__main__":
    main()
