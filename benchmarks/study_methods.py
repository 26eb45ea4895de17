"""Every federated LoRA method with error-free links and at 70 % delivery, everything else the same: the table.

    python -m benchmarks.study_methods --data-dir GLUE --tasks sst2
    python -m benchmarks.study_methods --data-dir GLUE --rates tune
    python -m benchmarks.study_methods --data-dir GLUE --rates best

Runs are those of experiments/methods.toml and methods-qnli.toml, all at one learning rate. `--rates tune` tries GRIDS
for each method, with error-free links and a seed that is not reported; `--rates best` then takes the best of each.
Options and resuming: `benchmarks.cells`. Without `--data-dir` it prints the tables of the rows.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from airtune.settings import read_config
from benchmarks.cells import Cell, Row, carry_out, interval, options, place_of, read

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
BASES = {"sst2": EXPERIMENTS / "methods.toml", "qnli": EXPERIMENTS / "methods-qnli.toml"}
DELIVERIES = (1.0, 0.7)
GRIDS = {"sst2": (2e-3, 5e-3, 1e-2, 2e-2, 4e-2), "qnli": (5e-3, 1e-2, 2e-2)}
"""Learning rates of the devices' AdamW, adapter and head; of the server under FedAdam, where devices run SGD."""
COMMON = 5e-3
TUNE_SEED = 100
METHODS: dict[str, dict[str, Any]] = {
    "nested": {},
    "nested, energy basis": {"basis": "energy"},
    "fedit": {"method": "fedit"},
    "hetlora": {"method": "hetlora"},
    "flexlora": {"method": "flexlora"},
    "flora": {"method": "flora"},
    "fedex": {"method": "fedex"},
    "ffa": {"method": "ffa"},
    "fedsa": {"method": "fedsa"},
    "rolora": {"method": "rolora"},
}
LOSSES: dict[str, dict[str, Any]] = {
    "nested, inverse": {"lost": "inverse"},
    "nested, carry": {"lost": "carry"},
    "nested, momentum": {"server_momentum": 0.5},
    "nested, FedAdam": {
        "optimizer": "sgd",
        "rate": 0.1,
        "head_rate": 0.1,
        "server_optimizer": "adam",
        "server_momentum": 0.9,
    },
}
"""What else may be done about lost uploads; FedAdam over SGD, the default of airtune, for comparison."""
ALL = {**METHODS, **LOSSES}
WAYS = {"sst2": ALL, "qnli": METHODS}
"""What is run on each task."""
TOTALS = ("delivered", "scheduled", "tokens", "uplink_bit", "downlink_bit")
"""Columns that are sums over a run's rounds."""


def cell_of(name: str, rate: float, task: str, delivery: float, seed: int) -> Cell:
    """One run."""
    base = read_config(str(BASES[task]))
    changes = dict(ALL[name])
    changes |= {"server_rate": rate} if changes.get("server_optimizer") == "adam" else {"rate": rate, "head_rate": rate}
    config = dataclasses.replace(
        base,
        seed=seed,
        world=dataclasses.replace(base.world, delivery=delivery),
        learning=dataclasses.replace(base.learning, **changes),
    )
    return Cell({"task": task, "method": name, "delivery": delivery, "seed": seed, "rate": rate}, config)


def trials(task: str) -> Iterator[Cell]:
    """The grid: ways that are the same without losses are tried once."""
    for rate in GRIDS[task]:
        for name, changes in WAYS[task].items():
            if "lost" not in changes:
                yield cell_of(name, rate, task, 1.0, TUNE_SEED)


def best_rates(tried: Sequence[Row], task: str) -> dict[str, float]:
    """The best rate of every method that was tried at all of them; the lower of equals."""
    best: dict[str, float] = {}
    for name, changes in WAYS[task].items():
        source = "nested" if "lost" in changes else name
        mine = [row for row in tried if row["task"] == task and row["method"] == source]
        accuracy = {float(row["rate"]): float(row["accuracy"]) for row in mine}
        if set(GRIDS[task]) <= set(accuracy):
            best[name] = max(GRIDS[task], key=lambda rate: (accuracy[rate], -rate))
    return best


def cells(task: str, seeds: int, rates: Mapping[str, float]) -> Iterator[Cell]:
    """Every run, seed by seed."""
    for seed in range(seeds):
        for delivery in DELIVERIES:
            for name, rate in rates.items():
                if delivery < 1.0 or "lost" not in ALL[name]:  # without losses the same as nested
                    yield cell_of(name, rate, task, delivery, seed)


def told(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the row of a run holds."""
    total = {name: sum(row[name] for row in rounds) for name in TOTALS}
    path = " ".join(f"{row['accuracy']:.4f}" for row in rounds if row["accuracy"] is not None)
    return {"accuracy": summary["accuracy"], "path": path, **total, "wall_s": round(summary["wall_s"], 1)}


def changes(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Differences on the seeds that both have."""
    return [other[seed] - one[seed] for seed in one if seed in other]


def table(rows: list[Row], task: str, rates: dict[str, float]) -> str:
    """The methods of one task in Markdown, each at its rate; bits are those of a round."""
    rounds = read_config(str(BASES[task])).rounds
    chosen = [row for row in rows if row["task"] == task and rates.get(row["method"]) == float(row["rate"])]
    found = {(row["method"], float(row["delivery"]), int(row["seed"])): row for row in chosen}
    lines = [
        "| method | rate | error-free | 70 % delivery | change, paired | to nested at 70 % | Mbit up | down | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    accuracy: dict[tuple[str, float], dict[int, float]] = {}
    for (name, delivery, seed), row in sorted(found.items()):
        accuracy.setdefault((name, delivery), {})[seed] = float(row["accuracy"])
    for name in rates:
        free, lossy = (accuracy.get((name, delivery), {}) for delivery in DELIVERIES)
        mine = [row for (other, _, _), row in found.items() if other == name]
        if not mine:
            continue
        base = accuracy.get(("nested", DELIVERIES[1]), {})
        up, down = (mean(float(row[f"{way}link_bit"]) / rounds / 1e6 for row in mine) for way in ("up", "down"))
        cells = [f"{rates[name]:g}", interval(list(free.values())), interval(list(lossy.values()))]
        cells += [interval(changes(free, lossy)), "" if name == "nested" else interval(changes(base, lossy))]
        cells += [f"{up:.1f}", f"{down:.1f}", f"{len(free)} / {len(lossy)}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    shares = [float(row["delivered"]) / float(row["scheduled"]) for row in chosen if float(row["delivery"]) < 1.0]
    if missing := [name for name in rates if name not in {row["method"] for row in chosen}]:
        lines += ["", f"Not run at this rate: {', '.join(missing)}."]
    if shares:
        lines += [
            "",
            f"Delivered at 70 %: {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the uploads of a run.",
        ]
    return "\n".join(lines)


def tried_table(rows: Sequence[Row], task: str) -> str:
    """What was tried, in Markdown: a method's accuracy [%] at each rate."""
    grid, rows = GRIDS[task], [row for row in rows if row["task"] == task]
    found = {(row["method"], float(row["rate"])): f"{100 * float(row['accuracy']):.1f}" for row in rows}
    lines = ["| method | " + " | ".join(f"{rate:g}" for rate in grid) + " |", "|---" * (len(grid) + 1) + "|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        lines.append(f"| {name} | " + " | ".join(found.get((name, rate), "–") for rate in grid) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done yet, then print the tables."""
    parser = options(argparse.ArgumentParser(description=__doc__.splitlines()[0]), "runs/methods")
    parser.add_argument("--tasks", nargs="+", choices=tuple(BASES), default=list(BASES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/methods/rows.csv"))
    parser.add_argument("--rates", choices=("common", "tune", "best"), default="common", help="learning rates")
    given = parser.parse_args()
    tried = given.out.with_name(f"tune-{given.out.name}")
    target = tried if given.rates == "tune" else given.out
    for task in given.tasks:
        rates = dict.fromkeys(WAYS[task], COMMON) if given.rates != "best" else best_rates(read(tried), task)
        if set(rates) != set(WAYS[task]):
            raise SystemExit(f"{tried} has not every learning rate of every method on {task}; --rates tune tries them")
        if given.data_dir is not None:
            plan = trials(task) if given.rates == "tune" else cells(task, given.seeds, rates)
            carry_out(plan, target, place_of(given), told)
        found = read(target)
        shown = tried_table(found, task) if given.rates == "tune" else table(found, task, rates)
        print(f"\n{task}\n\n{shown}")


if __name__ == "__main__":
    main()
