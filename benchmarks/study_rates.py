"""Theorem 3 measured: how the time average of Φ approaches the best, and the queues, as V and T grow.

    python -m benchmarks.study_rates --seeds 2 --out experiments/results/rates --picture docs/pictures/rates.png

Independent channels, constants known and fixed, no account: the theorem's hypotheses. No training is needed, since
energy and Φ follow from the decision. For each seed (another cell) and V two runs on the same observations:

- cold, Z(0) = 0: the queues at every T;
- warm, Z(0) = V λ: Φ above the best in the steady state. λ is where Z/V settled in a cold run at the middle V (second
  half), refined by a run at the second largest V that starts from there.

Φ^opt is estimated from below by the dual, D(λ) = mean over the observations of min Φ + Σ λ (E − Ē), as exact as the
solver is. The excess of a warm run is measured as its Lagrangian above D(λ), round by round on the same observations:
it equals mean Φ − D(λ) but for Σ λ (mean E − Ē), which vanishes as T grows, and so do its noise and bias.
Exit code 1 if any run breaks one of the theorem's bounds, with its explicit constants and ε = 0.
"""

import argparse
import csv
import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from scipy import stats

from airtune.config import FleetConfig, WorldConfig
from airtune.control.evaluation import energy_j
from airtune.control.joint import JointPolicy
from airtune.control.problem import Cell, divergence, first_memory, pose, remember
from airtune.testbed.federation import federation
from airtune.testbed.problems import Quadratics
from airtune.types import Outcome, Policy, World

KEPT = (1, 3, 6)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One run: T rounds of Φ and energies, and the queues after each."""

    start_j: np.ndarray
    phi: np.ndarray
    energy_j: np.ndarray
    """T×K."""
    queue_j: np.ndarray
    """T×K."""
    least_j: np.ndarray
    """E_k^min: least energy with which device k could take part in any round, K."""
    most_j: np.ndarray
    """E_k^max."""


def cell_of(seed: int, devices: int, rounds: int) -> tuple[Cell, World]:
    """A cell of heterogeneous quadratics, its constants those at the start."""
    rng = np.random.default_rng((seed, 78))
    size = KEPT[-1]
    root = rng.normal(size=(devices, size, size)) / np.sqrt(size)
    errors = 0.5 * rng.normal(size=(devices, 8, size))
    problem = Quadratics(
        np.full(devices, 1.0 / devices),
        KEPT,
        root @ root.transpose(0, 2, 1) + np.eye(size),
        rng.normal(size=(devices, size)),
        errors - errors.mean(axis=1, keepdims=True),
    )
    system, _ = federation(
        problem,
        np.ones(size),
        0.5 / problem.curvature.smoothness,
        JointPolicy(),
        rounds=rounds,
        tradeoff_v=1.0,
        seed=seed,
        world=WorldConfig(bandwidth_hz=3e5, shadowing_correlation=0.0, availability=0.9),
        fleet=FleetConfig(devices=devices, budget_scale=0.5),
        account=False,
    )
    constants = system.cell.constants
    unit = replace(constants, gamma_sq=constants.gamma_sq / constants.gamma_sq.mean(),
                   noise=constants.noise / constants.gamma_sq.mean())  # fmt: skip
    return replace(system.cell, constants=unit), system.world


def drive(cell: Cell, world: World, policy: Policy, queue_j: np.ndarray, frozen: bool = False) -> Trace:
    """T rounds from Z(0); `frozen` keeps the queues, so each round is solved at the same prices."""
    memory = replace(first_memory(cell, 0.0), queue_j=queue_j.copy())
    phi, energy, queue = [], [], []
    least, most = np.full(len(queue_j), np.inf), np.zeros(len(queue_j))
    for t in range(cell.rounds):
        problem = pose(cell, memory, world.observe(t))
        decision = policy(problem)
        spent = energy_j(problem, decision.module, decision.power_w)
        both = divergence(cell, memory, decision)
        circuit_w = problem.circuit_power_w[:, None]
        idle = problem.compute_j + circuit_w * problem.uplink_s
        full = idle + problem.power_max_w / problem.pa_efficiency[:, None] * problem.uplink_s
        least = np.minimum(least, np.where(problem.feasible, idle, np.inf).min(axis=1))
        most = np.maximum(most, np.where(problem.feasible, full, 0.0).max(axis=1))
        nobody = np.zeros(len(spent), bool)
        after = remember(cell, memory, *both, Outcome(nobody, nobody, spent, 0.0 * spent, 0.0 * spent, ()))
        memory = replace(after, queue_j=queue_j.copy()) if frozen else after
        phi.append(both[0])
        energy.append(spent)
        queue.append(after.queue_j)
    return Trace(queue_j, np.array(phi), np.array(energy), np.array(queue), least, most)


def broken(cell: Cell, v: float, best: float, run: Trace) -> list[str]:
    """Which of the theorem's claims a run breaks, after any number of rounds; each with ε = 0 and D for Φ^opt.

    The claim on mean Φ is one about the expectation over observations, of which a run is one sample: four standard
    errors of Φ over that many rounds are allowed for. The others hold on every run.
    """
    budget, constants, weight = cell.devices.budget_j, cell.constants, cell.devices.weight
    rounds = np.arange(1, len(run.phi) + 1)
    c = 0.5 * float((np.maximum(budget, run.most_j - budget) ** 2).sum())
    start = 0.5 * float((run.start_j**2).sum())
    worth = np.maximum(weight[:, None] * (constants.gamma_sq[:, None] * (1 - constants.delta) - constants.noise), 0.0)
    lowest = float(weight @ constants.gamma_sq - worth.max(axis=1).sum())
    mean_phi = np.cumsum(run.phi) / rounds
    limit = np.sqrt(2 * start + 2 * rounds * (c + v * (best - lowest)))
    over = np.cumsum(run.energy_j - budget, axis=0) / rounds[:, None]
    sure = np.maximum(run.start_j, v * worth.max(axis=1) / run.least_j + run.most_j - budget)
    claims = {
        "mean Φ": np.all(mean_phi <= best + c / v + start / (v * rounds) + 4.0 * run.phi.std(ddof=1) / np.sqrt(rounds)),
        "queues": np.all(np.sqrt((run.queue_j**2).sum(axis=1)) <= limit),
        "overspend": np.all(over <= (limit[:, None] - run.start_j) / rounds[:, None] + 1e-12),
        "sure queue": np.all(run.queue_j <= sure * (1 + 1e-9)),
    }
    return [name for name, holds in claims.items() if not holds]


def study(
    seed: int, devices: int, rounds: int, values: list[float], policy: Policy
) -> tuple[list[dict[str, Any]], int]:
    """Rows of one seed and how many claims were broken."""
    cell, world = cell_of(seed, devices, rounds)
    budget = cell.devices.budget_j
    cold = {v: drive(replace(cell, tradeoff_v=v), world, policy, np.zeros(devices)) for v in values}
    price = cold[values[len(values) // 2]].queue_j[rounds // 2 :].mean(axis=0) / values[len(values) // 2]
    settled = drive(replace(cell, tradeoff_v=values[-2]), world, policy, values[-2] * price)
    price = settled.queue_j[rounds // 2 :].mean(axis=0) / values[-2]
    least = drive(replace(cell, tradeoff_v=1.0), world, policy, price, frozen=True)
    floor = least.phi + (least.energy_j - budget) @ price
    best, wrong, rows = float(floor.mean()), 0, []
    for v in values:
        warm = drive(replace(cell, tradeoff_v=v), world, policy, v * price)
        excess = float((warm.phi + (warm.energy_j - budget) @ price - floor).mean())
        for name, run in (("cold", cold[v]), ("warm", warm)):
            found = broken(cell, v, best, run)
            wrong += len(found)
            if found:
                print(f"seed {seed}  V {v:g}  {name}: breaks {', '.join(found)}")
        for t in sorted({int(x) for x in np.geomspace(10, rounds, 8).round()}):
            over = (cold[v].energy_j[:t].mean(axis=0) / budget).max() - 1.0
            rows.append({
                "seed": seed, "v": v, "rounds": t, "phi_cold": float(cold[v].phi[:t].mean()), "best": best,
                "queue_over_t": float(cold[v].queue_j[t - 1].mean() / t), "overspend_cold": float(over),
                "phi_warm": float(warm.phi[:t].mean()) if t == rounds else None,
                "excess_warm": excess if t == rounds else None,
            })  # fmt: skip
        print(f"seed {seed}  V {v:8g}  excess {excess:.3e}  Z(T)/T {rows[-1]['queue_over_t']:.4f} J  "
              f"overspend {rows[-1]['overspend_cold']:+.1%}", flush=True)  # fmt: skip
    return rows, wrong


def slope(x: list[float], y: list[float], group: list[int]) -> tuple[float, float]:
    """Exponent of y ~ x^b with a factor of its own for each group, and half its 95 % interval."""
    seeds = sorted(set(group))
    log_x, log_y = np.log(x), np.log(y)
    for one in seeds:
        mine = np.array(group) == one
        log_x[mine] -= log_x[mine].mean()
        log_y[mine] -= log_y[mine].mean()
    b = float(log_x @ log_y / (log_x @ log_x))
    left = len(x) - len(seeds) - 1
    error = float(np.sqrt(((log_y - b * log_x) ** 2).sum() / left / (log_x @ log_x)))
    return b, error * float(stats.t.ppf(0.975, left))


def fits(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """The fitted exponents."""
    steady = [row for row in rows if row["excess_warm"] is not None and row["excess_warm"] > 0]
    seeds = sorted({row["seed"] for row in rows})
    values = sorted({row["v"] for row in rows})
    full = max(row["rounds"] for row in rows)
    grown = [row for row in rows if row["queue_over_t"] > 0]
    small = [row for row in grown if row["v"] in values[: len(values) // 2] and row["rounds"] >= full // 8]

    def queue(some: list[dict[str, Any]]) -> tuple[float, float]:
        ratio = [row["v"] / row["rounds"] for row in some]
        return slope(ratio, [row["queue_over_t"] for row in some], [seeds.index(row["seed"]) for row in some])

    b, half = slope([r["v"] for r in steady], [r["excess_warm"] for r in steady], [r["seed"] for r in steady])
    return {"excess of Φ ~ V^-a": (-b, half), "Z/T ~ (V/T)^b, all": queue(grown), "the same, V ≪ T": queue(small)}


def picture(rows: list[dict[str, Any]], found: dict[str, tuple[float, float]], path: Path) -> None:
    """Both rates on logarithmic axes with the theorem's slopes."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for seed in sorted({row["seed"] for row in rows}):
        each = [row for row in rows if row["seed"] == seed and row["excess_warm"] is not None]
        left.loglog([row["v"] for row in each], [row["excess_warm"] for row in each], "o", label=f"cell {seed}")
        mine = [row for row in rows if row["seed"] == seed]
        right.loglog([row["v"] / row["rounds"] for row in mine], [row["queue_over_t"] for row in mine], ".")
    steady = [row for row in rows if row["excess_warm"] is not None]
    v = np.array(sorted({row["v"] for row in steady}))
    left.loglog(v, max(row["excess_warm"] for row in steady) * v[0] / v, "k--", lw=1, label="slope −1 (Theorem 3)")
    ratio = np.array(sorted(row["v"] / row["rounds"] for row in rows))
    top = max(row["queue_over_t"] / np.sqrt(row["v"] / row["rounds"]) for row in rows)
    right.loglog(ratio, top * np.sqrt(ratio), "k--", lw=1, label="slope ½ (Theorem 3)")
    left.set(
        xlabel="V [J²]", ylabel="steady excess of Φ", title="a = {:.2f} ± {:.2f}".format(*found["excess of Φ ~ V^-a"])
    )
    right.set(xlabel="V/T [J²]", ylabel="Z(T)/T [J]", title="b = {:.2f} ± {:.2f}".format(*found["Z/T ~ (V/T)^b, all"]))
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    """Run the study; 1 if a bound was broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--v", type=float, nargs="+", default=[16.0, 64.0, 256.0, 1024.0, 4096.0])
    parser.add_argument("--policy", help="MODULE:CLASS; Solver B if not given")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/rates"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/rates.png"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    policy: Policy = JointPolicy()
    if asked.policy is not None:
        module, name = asked.policy.split(":")
        policy = getattr(importlib.import_module(module), name)()
    rows, wrong = [], 0
    for seed in range(asked.seeds):
        mine, broke = study(seed, asked.devices, asked.rounds, sorted(asked.v), policy)
        rows, wrong = rows + mine, wrong + broke
    found = fits(rows)
    for claim, (exponent, half) in found.items():
        print(f"{claim}: {exponent:.2f} ± {half:.2f}")
    print(f"{wrong} of {asked.seeds * len(asked.v) * 2 * 4} claims broken")
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    picture(rows, found, asked.picture)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
