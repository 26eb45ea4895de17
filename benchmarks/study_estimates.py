"""What does not knowing the constants cost? Exact, estimated and assumed ones at equal budgets, paired by seed.

    python -m benchmarks.study_estimates --seeds 20 --out experiments/results/estimates

Quadratics with nested coordinates and devices of unequal gradients, run by `round.step` itself: real link, real
energies, exact final risk gap. Every source meets the same channels, fades and first gradient errors, and enters (P1)
in the same unit: the fleet's mean Γ² is 1 in each. `exact` sees Γ_k², δ_m and v_{k,m} of the round's own θ.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from airtune.config import ConstantsConfig, FleetConfig, WorldConfig
from airtune.control.alternating import AlternatingPolicy
from airtune.round import State, System, step
from airtune.testbed.federation import NAME, federation
from airtune.testbed.problems import Quadratics
from airtune.theory.constants import Constants, prior_constants
from airtune.theory.estimates import Online, constants_of, relative

DEVICES, SIZE, KEPT = 8, 12, (2, 5, 12)
SOURCES = {
    "exact": Online(),
    "estimated": Online(used=True),
    "no optimism": Online(used=True, optimism=0.0),
    "forgetting 0.7": Online(used=True, forgetting=0.7),
    "prior": Online(),
}
"""Where the constants come from, and how they are learned meanwhile."""


def draw(seed: int, noise: float) -> tuple[Quadratics, np.ndarray]:
    """Bowls whose gradients differ by some factor 10 over the devices and fall along the coordinates."""
    rng = np.random.default_rng((seed, 78))
    root = rng.normal(size=(DEVICES, SIZE, SIZE)) / np.sqrt(SIZE)
    curve = 0.1 * root @ root.transpose(0, 2, 1) + np.diag(np.linspace(1.0, 0.2, SIZE))
    hessian = np.exp(0.5 * rng.normal(size=(DEVICES, 1, 1))) * curve
    errors = noise * rng.normal(size=(DEVICES, 16, SIZE))
    errors -= errors.mean(axis=1, keepdims=True)
    centre = rng.normal(size=(DEVICES, SIZE))
    problem = Quadratics(np.full(DEVICES, 1.0 / DEVICES), KEPT, hessian, centre, errors)
    return problem, 2.0 + 0.3 * rng.normal(size=SIZE)


def exact(problem: Quadratics, theta: np.ndarray, prior: Constants) -> Constants:
    """The constants at θ; δ_m pooled over the devices, which is what an estimate can aim at."""
    square = problem.gradients(theta[None])[0] ** 2
    within = np.cumsum(square.sum(axis=0))[np.array(KEPT) - 1]
    noise = np.cumsum((problem.errors**2).mean(axis=1), axis=1)[:, np.array(KEPT) - 1]
    return replace(prior, gamma_sq=square.sum(axis=1), delta=1.0 - within / within[-1], noise=noise)


def errors(system: System, state: State, truth: Constants) -> dict[str, float]:
    """How far the estimates are from the truth: Γ² relative in the mean over the fleet, δ at worst, v_M relative."""
    known = constants_of(state.memory.estimates, system.cell.prior)
    return {
        "gamma_error": float(np.abs(known.gamma_sq - truth.gamma_sq).sum() / truth.gamma_sq.sum()),
        "delta_error": float(np.abs(known.delta - truth.delta).max()),
        "noise_error": float(abs(known.noise[:, -1].mean() / truth.noise[:, -1].mean() - 1.0)),
    }


def run(seed: int, source: str, noise: float, rounds: int, v: float, scale: float) -> list[dict[str, Any]]:
    """One run, a row for each round."""
    problem, theta = draw(seed, noise)
    curvature = problem.curvature
    rate = min(1.0 / curvature.smoothness, 4.0 / (rounds * curvature.pl))
    world, fleet = (
        WorldConfig(bandwidth_hz=3e5, shadowing_correlation=0.0),
        FleetConfig(devices=DEVICES, budget_scale=scale),
    )
    system, state = federation(
        problem,
        theta,
        rate,
        AlternatingPolicy(),
        rounds=rounds,
        tradeoff_v=v * DEVICES,
        seed=seed,
        world=world,
        fleet=fleet,
    )
    samples = system.cell.devices.samples
    prior = replace(prior_constants(ConstantsConfig(), system.cell.modules, samples), contraction=0.9, step=rate)
    system = replace(system, cell=replace(system.cell, constants=prior, online=SOURCES[source]))
    rows: list[dict[str, Any]] = []
    delivered = 0
    for t in range(rounds):
        at = exact(problem, state.adapters[NAME].numpy(), prior)
        seen = relative(at, prior, system.cell.devices.weight) if source == "exact" else prior
        state, record = step(replace(system, cell=replace(system.cell, constants=seen)), state)
        delivered += int(record.outcome.delivered.sum())
        reached = state.adapters[NAME].numpy()
        rows.append(
            {
                "source": source,
                "noise": noise,
                "seed": seed,
                "t": t,
                "gap": float(problem.risk(reached[None])[0]) - curvature.least,
                "energy_share": float(state.memory.spent_j.sum() / (rounds * system.cell.devices.budget_j.sum())),
                "delivered": delivered,
                **errors(system, state, exact(problem, reached, prior)),
            }
        )
    return rows


def paired(rows: Sequence[dict[str, Any]], source: str) -> tuple[float, float, float]:
    """Mean change of the log of the final gap against exact constants as a factor, and its 95 % t-interval."""
    gap = {(row["source"], row["seed"]): row["gap"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    change = np.array([np.log(gap[source, seed] / gap["exact", seed]) for seed in seeds])
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * float(change.std(ddof=1)) / np.sqrt(len(seeds))
    mean = float(change.mean())
    return float(np.exp(mean)), float(np.exp(mean - half)), float(np.exp(mean + half))


def told(rows: Sequence[dict[str, Any]], source: str, rounds: int) -> str:
    """A line about a source: its paired final gap, its energy and its errors after some rounds."""
    last = [row for row in rows if row["t"] == rounds - 1]
    factor, low, high = paired(last, source)
    mine = [row for row in rows if row["source"] == source]

    def mean(name: str, t: int) -> float:
        return float(np.mean([row[name] for row in mine if row["t"] == t]))

    moments = (0, 4, rounds // 2, rounds - 1)
    error = "  ".join(
        f"{name} " + "/".join(f"{mean(f'{name}_error', t):.2f}" for t in moments)
        for name in ("gamma", "delta", "noise")
    )
    return (
        f"{source:14} gap × {factor:.3f} [{low:.3f}, {high:.3f}]  energy {mean('energy_share', rounds - 1):.1%}  "
        f"delivered {mean('delivered', rounds - 1):.1f}  errors after {'/'.join(str(t + 1) for t in moments)}: {error}"
    )


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """All rows so far, six digits each."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()})


def main() -> None:
    """Run the study, write its rows and print what each source costs against the exact constants."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--v", type=float, default=30.0)
    parser.add_argument("--budget-scale", type=float, default=0.5)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/estimates"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in range(asked.seeds):
        for source in asked.sources:
            rows += run(seed, source, asked.noise, asked.rounds, asked.v, asked.budget_scale)
        write(asked.out, rows)
        if seed:
            print(f"{seed + 1} seeds", flush=True)
            for source in asked.sources:
                print(told(rows, source, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
