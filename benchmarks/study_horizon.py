"""Do rounds that count more in (9) deserve a larger V? Three weightings at equal budgets, paired by seed.

    python -m benchmarks.study_horizon --seeds 20 --out experiments/results/horizon

Quadratics with nested coordinates, run by `round.step` itself: real link, real energies, exact final risk gap. Every
weighting meets the same channels, fades and gradient errors. `learned` estimates 1−ημ from the losses that it hears, as
the slope of a regression of each round's loss on the one before (which a constant floor does not change), held to at
least 1 − 4/T; until it has heard eight rounds it is flat. `early` takes the weights of the bound in reverse order.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from airtune.config import FleetConfig, WorldConfig
from airtune.control.joint import JointPolicy
from airtune.round import rounds
from airtune.testbed.federation import NAME, federation
from airtune.testbed.problems import Quadratics
from airtune.theory.bound import horizon_weight
from airtune.types import Decision, Policy, Problem
from benchmarks.instances import bowls

DEVICES, SIZE, KEPT = 8, 6, (1, 3, 6)
WEIGHTINGS = ("flat", "bound", "learned", "early")
SOLVER = JointPolicy()


class Learned:
    """A policy under V_t = V w_t with a contraction that is learned from the losses heard so far."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.losses: list[float] = []
        self.contraction: float | None = None

    def hear(self, loss: float | None, horizon: int) -> None:
        """Take in a round's mean loss."""
        if loss is not None:
            self.losses.append(loss)
        if len(self.losses) >= 8:
            before, after = np.array(self.losses[:-1]), np.array(self.losses[1:])
            spread = float(((before - before.mean()) ** 2).sum())
            slope = float(((before - before.mean()) * (after - after.mean())).sum()) / max(spread, 1e-300)
            self.contraction = float(np.clip(slope, 1.0 - 4.0 / horizon, 1.0 - 1e-6))

    def __call__(self, problem: Problem) -> Decision:
        """Decide under the weighted V."""
        if self.contraction is None:
            return self.inner(problem)
        weight = horizon_weight(problem.t, problem.rounds, self.contraction)
        return self.inner(replace(problem, tradeoff_v=problem.tradeoff_v * weight))


@dataclass(frozen=True, slots=True)
class Early:
    """A policy under the bound's weights in reverse order."""

    inner: Policy
    contraction: float

    def __call__(self, problem: Problem) -> Decision:
        """Decide under the weighted V."""
        weight = horizon_weight(problem.rounds - 1 - problem.t, problem.rounds, self.contraction)
        return self.inner(replace(problem, tradeoff_v=problem.tradeoff_v * weight))


def draw(seed: int, spread: float, noise: float) -> tuple[Quadratics, np.ndarray]:
    """Bowls of condition 10 about optima `spread` apart; coordinates of falling weight; errors of size `noise`."""
    rng = np.random.default_rng((seed, 77))
    return bowls(rng, DEVICES, KEPT, spread, noise), 2.0 + 0.3 * rng.normal(size=SIZE)


def run(seed: int, weighting: str, spread: float, noise: float, horizon: int, v: float, scale: float) -> dict[str, Any]:
    """One run; its exact final gap, energy and overspend."""
    problem, theta = draw(seed, spread, noise)
    curvature = problem.curvature
    step = min(1.0 / curvature.smoothness, 4.0 / (horizon * curvature.pl))
    policy: Any = SOLVER
    if weighting == "learned":
        policy = Learned(SOLVER)
    if weighting == "early":
        policy = Early(SOLVER, 1.0 - step * curvature.pl)
    gamma_sq = float((problem.gradients(theta[None]) ** 2).sum(-1).mean())
    system, start = federation(
        problem,
        theta,
        step,
        policy,
        rounds=horizon,
        tradeoff_v=v * DEVICES / gamma_sq,
        seed=seed,
        world=WorldConfig(bandwidth_hz=3e5, shadowing_correlation=0.0),
        fleet=FleetConfig(devices=DEVICES, budget_scale=scale),
        horizon="bound" if weighting == "bound" else "flat",
    )
    delivered, state = 0, start
    for after, record in rounds(system, start):
        state = after
        delivered += int(record.outcome.delivered.sum())
        if isinstance(policy, Learned):
            policy.hear(record.loss, horizon)
    gap = float(problem.risk(state.adapters[NAME].numpy()[None])[0]) - curvature.least
    budget_j = horizon * system.cell.devices.budget_j
    return {
        "spread": spread,
        "noise": noise,
        "rounds": horizon,
        "v": v,
        "seed": seed,
        "weighting": weighting,
        "contraction": 1.0 - step * curvature.pl,
        "learned": policy.contraction if isinstance(policy, Learned) else None,
        "gap": gap,
        "energy_share": float(state.memory.spent_j.sum() / budget_j.sum()),
        "overspend": float((state.memory.spent_j / budget_j).max()),
        "delivered": delivered,
    }


def paired(rows: list[dict[str, Any]], weighting: str) -> tuple[float, float, float, float]:
    """Mean change of log gap against flat as a factor, its 95 % t-interval, and the share of seeds that gained."""
    gap = {(row["weighting"], row["seed"]): row["gap"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    change = np.array([np.log(gap[weighting, seed] / gap["flat", seed]) for seed in seeds])
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * float(change.std(ddof=1)) / np.sqrt(len(seeds))
    mean = float(change.mean())
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half)), float((change < 0).mean())


def main() -> None:
    """Run the study, write its rows and print the paired changes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--v", type=float, nargs="+", default=[30.0])
    parser.add_argument("--budget-scale", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/horizon"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for v in asked.v:
        for spread, noise in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)):
            mine = [
                run(seed, weighting, spread, noise, asked.rounds, v, asked.budget_scale)
                for seed in range(asked.seeds)
                for weighting in WEIGHTINGS
            ]
            rows += mine
            for weighting in WEIGHTINGS:
                each = [row for row in mine if row["weighting"] == weighting]
                energy = np.mean([row["energy_share"] for row in each])
                factor, low, high, share = paired(mine, weighting)
                print(
                    f"V {v:6g}  spread {spread:g}  noise {noise:g}  {weighting:8} gap × {factor:.3f} "
                    f"[{low:.3f}, {high:.3f}]  better on {share:.0%}  energy {energy:.1%}  "
                    f"delivered {np.mean([row['delivered'] for row in each]):.1f}",
                    flush=True,
                )
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
