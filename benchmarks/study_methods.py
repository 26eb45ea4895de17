"""Every federated LoRA method with error-free links and at 70 % delivery, everything else the same: the table.

    python -m benchmarks.study_methods --data-dir GLUE --tasks sst2 qnli --seeds 3

Runs are those of experiments/methods.toml, all at one learning rate. `--rates tune` tries GRID for each method, on
SST-2 with error-free links and a seed that is not reported; `--rates best` then takes the best of each. A run that was
interrupted goes on, a finished one is read from the rows; so the study may be stopped and started again at will.
`--shard I/N` does every Nth run, for several processes. Without `--data-dir` it prints the tables of the rows.
"""

import argparse
import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from airtune import experiment
from airtune.config import RunConfig
from airtune.settings import read_config

BASE = Path(__file__).parents[1] / "experiments" / "methods.toml"
DELIVERIES = (1.0, 0.7)
GRID = (2e-3, 5e-3, 1e-2, 2e-2, 4e-2)
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
FIELDS = (
    "task", "method", "delivery", "seed", "rate", "accuracy", "path", "delivered", "scheduled", "tokens", "uplink_bit",
    "downlink_bit", "wall_s",
)  # fmt: skip


def place(name: str, rate: float, task: str, delivery: float, seed: int) -> tuple[dict[str, Any], RunConfig]:
    """Key and configuration of one run."""
    base = read_config(str(BASE))
    changes = dict(ALL[name])
    changes |= {"server_rate": rate} if changes.get("server_optimizer") == "adam" else {"rate": rate, "head_rate": rate}
    config = dataclasses.replace(
        base,
        seed=seed,
        task=dataclasses.replace(base.task, name=task),
        world=dataclasses.replace(base.world, delivery=delivery),
        learning=dataclasses.replace(base.learning, **changes),
    )
    return {"task": task, "method": name, "delivery": delivery, "seed": seed, "rate": rate}, config


def trials() -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """The grid: ways that are the same without losses are tried once."""
    for rate in GRID:
        for name, changes in ALL.items():
            if "lost" not in changes:
                yield place(name, rate, "sst2", 1.0, TUNE_SEED)


def best_rates(tried: list[dict[str, str]]) -> dict[str, float]:
    """The best rate of every method that was tried at all of them; the lower of equals."""
    best: dict[str, float] = {}
    for name, changes in ALL.items():
        source = "nested" if "lost" in changes else name
        accuracy = {float(row["rate"]): float(row["accuracy"]) for row in tried if row["method"] == source}
        if set(GRID) <= set(accuracy):
            best[name] = max(GRID, key=lambda rate: (accuracy[rate], -rate))
    return best


def configs(tasks: list[str], seeds: int, rates: dict[str, float]) -> Iterator[tuple[dict[str, Any], RunConfig]]:
    """Key and configuration of every run, seed by seed."""
    for seed in range(seeds):
        for task in tasks:
            for delivery in DELIVERIES:
                for name, rate in rates.items():
                    if delivery < 1.0 or "lost" not in ALL[name]:  # without losses the same as nested
                        yield place(name, rate, task, delivery, seed)


def read(path: Path) -> list[dict[str, str]]:
    """Rows of every file beside `path` that a shard may have written."""
    rows: list[dict[str, str]] = []
    for part in sorted(path.parent.glob(f"{path.stem}*.csv")):
        with part.open(newline="") as file:
            rows += csv.DictReader(file)
    return rows


def done(key: dict[str, Any], rows: list[dict[str, str]]) -> bool:
    """Whether the run of this key has its row."""
    return any(all(row[name] == str(value) for name, value in key.items()) for row in rows)


def run(key: dict[str, Any], config: RunConfig, scratch: Path) -> dict[str, Any]:
    """One run, and its row."""
    out = scratch / "-".join(str(value).replace(", ", "_").replace(" ", "_") for value in key.values())
    summary = experiment.run_or_resume(dataclasses.replace(config, out=out))
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    total = {name: sum(row[name] for row in rounds) for name in FIELDS[7:12]}
    path = " ".join(f"{row['accuracy']:.4f}" for row in rounds if row["accuracy"] is not None)
    shutil.rmtree(out)
    return {**key, "accuracy": summary["accuracy"], "path": path, **total, "wall_s": round(summary["wall_s"], 1)}


def append(path: Path, row: dict[str, Any]) -> None:
    """One row more."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def interval(values: list[float]) -> str:
    """Mean and 95 % t-interval in per cent; the mean alone of fewer than three values."""
    if len(values) < 3:
        return f"{100 * mean(values):.1f}" if values else "–"
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{100 * mean(values):.1f} ± {100 * half:.1f}"


def changes(one: dict[int, float], other: dict[int, float]) -> list[float]:
    """Differences on the seeds that both have."""
    return [other[seed] - one[seed] for seed in one if seed in other]


def table(rows: list[dict[str, str]], task: str, rates: dict[str, float]) -> str:
    """The methods of one task in Markdown, each at its rate; bits are those of a round."""
    rounds = read_config(str(BASE)).rounds
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
    if shares:
        lines += [
            "",
            f"Delivered at 70 %: {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the uploads of a run.",
        ]
    return "\n".join(lines)


def tried_table(rows: list[dict[str, str]]) -> str:
    """What was tried, in Markdown: a method's accuracy [%] at each rate."""
    found = {(row["method"], float(row["rate"])): f"{100 * float(row['accuracy']):.1f}" for row in rows}
    lines = ["| method | " + " | ".join(f"{rate:g}" for rate in GRID) + " |", "|---" * (len(GRID) + 1) + "|"]
    for name in dict.fromkeys(row["method"] for row in rows):
        lines.append(f"| {name} | " + " | ".join(found.get((name, rate), "–") for rate in GRID) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder of GLUE task folders; without it, only the table")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "qnli"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--shard", default="0/1", help="I/N: every Nth run from the Ith, rows in a file of its own")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/methods/rows.csv"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/methods"))
    parser.add_argument("--rates", choices=("common", "tune", "best"), default="common", help="learning rates")
    given = parser.parse_args()
    part, parts = map(int, given.shard.split("/"))
    tried = given.out.with_name(f"tune-{given.out.name}")
    target = tried if given.rates == "tune" else given.out
    own = target if parts == 1 else target.with_name(f"{target.stem}-{part}.csv")
    rates = dict.fromkeys(ALL, COMMON) if given.rates != "best" else best_rates(read(tried))
    if set(rates) != set(ALL):
        raise SystemExit(f"{tried} has not every learning rate of every method; --rates tune tries them")
    if given.data_dir is not None:
        plan = trials() if given.rates == "tune" else configs(given.tasks, given.seeds, rates)
        for number, (key, config) in enumerate(plan):
            if number % parts == part and not done(key, read(target)):
                placed = dataclasses.replace(config, data_dir=given.data_dir, threads=given.threads)
                append(own, run(key, placed, given.scratch))
    if given.rates == "tune":
        print(f"\nsst2, seed {TUNE_SEED}\n\n{tried_table(read(target))}")
        return
    for task in given.tasks:
        print(f"\n{task}\n\n{table(read(target), task, rates)}")


if __name__ == "__main__":
    main()
