"""How much of the offline oracle's bound the online algorithm reaches, over V; channels and energy only, no training.

    python -m benchmarks.study_regret --devices 20 --rounds 80 --v 30,100,300,1000,3000,10000 --seeds 0,1,2 [--out FILE]

The default cell, fleet, constants and account, MiniLM-L6 with the default family of modules, and the same number of
tokens for every device in every round. The oracle sees all channels; both keep every budget T Ē_k. Rows go to a CSV.
"""

import argparse
import csv
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from airtune.config import ConstantsConfig, FleetConfig, ModulesConfig, PolicyConfig, WorldConfig
from airtune.control.evaluation import chosen, energy_j
from airtune.control.joint import JointPolicy
from airtune.control.oracle import solve_offline
from airtune.control.problem import Cell, first_memory, pose
from airtune.control.queues import next_queue_j
from airtune.physics.devices import sample_devices
from airtune.physics.link import link_of
from airtune.theory.constants import prior_constants
from airtune.types import Decision, Modules, Policy, Problem
from airtune.worlds.analytic import AnalyticWorld, radio_of

OUT = Path("experiments/results/regret/shares.csv")
COLUMNS = (
    "seed", "devices", "rounds", "v", "mean_utility", "oracle_bound", "oracle_plan", "share_of_bound",
    "largest_spent", "oracle_iterations",
)  # fmt: skip
TOKENS = 800.0
"""Two local steps of 16 samples of 25 tokens."""
HIDDEN, LAYERS, WIDE = 384, 6, 1536
"""MiniLM-L6."""
MODEL_BYTE = 91e6
"""Its weights in float32."""
SAVED_BYTE = 20e6
"""Activations and gradients per adapted layer, roughly."""


def modules_table(config: ModulesConfig) -> Modules:
    """The family's costs from the shape of the model."""
    rank, depth = np.array(config.ranks, np.int64), np.array(config.depths, np.int64)
    adapter = len(config.targets) * depth * rank * 2 * HIDDEN
    parameters = adapter + 2 * HIDDEN + 2
    payload_bit = parameters * float(config.bits_per_parameter) + config.overhead_bit
    layer_flop = 2.0 * (4 * HIDDEN**2 + 2 * HIDDEN * WIDE)
    return Modules(
        rank=rank,
        depth=depth,
        parameters=parameters,
        payload_bit=payload_bit,
        downlink_bit=np.full(len(rank), payload_bit[-1]),
        flop_per_token=layer_flop * (LAYERS + depth) + 6.0 * adapter,
        memory_byte=MODEL_BYTE + SAVED_BYTE * depth,
    )


def cell_of(devices: int, rounds: int, v: float, seed: int) -> Cell:
    """The default cell and fleet."""
    samples = np.full(devices, 1000, np.int64)
    modules, radio = modules_table(ModulesConfig()), radio_of(WorldConfig())
    return Cell(
        devices=sample_devices(FleetConfig(devices=devices), samples, seed),
        modules=modules,
        radio=radio,
        link=link_of(WorldConfig(), radio),
        constants=prior_constants(ConstantsConfig(), modules, samples),
        rounds=rounds,
        tradeoff_v=v,
        account=True,
    )


def utility(problem: Problem, decision: Decision) -> float:
    """Σ_k U π of a decision."""
    return float((chosen(problem.utility, decision.module) * decision.success_probability).sum())


def online(cell: Cell, world: AnalyticWorld, policy: Policy) -> tuple[float, float]:
    """The online algorithm over the horizon: mean of Σ U π per round, and the largest part of a budget spent."""
    memory, total = first_memory(cell, PolicyConfig().queue_start), 0.0
    for t in range(cell.rounds):
        problem = pose(cell, memory, world.observe(t))
        decision = policy(problem)
        spent = energy_j(problem, decision.module, decision.power_w)
        queue = next_queue_j(memory.queue_j, spent, cell.devices.budget_j)
        memory = replace(memory, queue_j=queue, spent_j=memory.spent_j + spent)
        total += utility(problem, decision)
    return total / cell.rounds, float((memory.spent_j / (cell.rounds * cell.devices.budget_j)).max())


def rows_of(seed: int, devices: int, rounds: int, sweep: list[float], iterations: int) -> list[dict[str, object]]:
    """The oracle once, and the online algorithm for each V."""
    base = cell_of(devices, rounds, 1.0, seed)
    world = AnalyticWorld(WorldConfig(), base.devices, seed, lambda _: np.full(devices, TOKENS))
    fresh = first_memory(base, 0.0)
    began = time.perf_counter()
    problems = [pose(base, fresh, world.observe(t)) for t in range(rounds)]
    oracle = solve_offline(problems, JointPolicy(), iterations_max=iterations)
    oracle_s = time.perf_counter() - began
    rows: list[dict[str, object]] = []
    for v in sweep:
        mean, spent = online(cell_of(devices, rounds, v, seed), world, JointPolicy())
        share = mean / oracle.upper_bound
        values = (seed, devices, rounds, v, mean, oracle.upper_bound, oracle.value, share, spent, oracle.iterations)
        rows.append(dict(zip(COLUMNS, values, strict=True)) | {"oracle_s": f"{oracle_s:.2f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Share of the offline oracle's bound that the online algorithm reaches"
    )
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--v", default="30,100,300,1000,3000,10000", help="values of V, separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--iterations", type=int, default=100, help="multipliers at most that the oracle tries")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    sweep = [float(v) for v in options.v.split(",")]
    rows: list[dict[str, object]] = []
    for seed in (int(seed) for seed in options.seeds.split(",")):
        found = rows_of(seed, options.devices, options.rounds, sweep, options.iterations)
        rows += found
        first = found[0]
        print(f"seed {seed}: bound {first['oracle_bound']:.5g}, plan {first['oracle_plan']:.5g}, {first['oracle_s']} s")
        print("  " + ", ".join(f"V {row['v']:g}: {100 * row['share_of_bound']:.1f} %" for row in found))  # pyright: ignore
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
