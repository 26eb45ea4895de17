"""Every policy at the same energy budgets: tuning, the comparison, and what the scenario's settings change.

    python -m benchmarks.study_policies tune --data-dir GLUE
    python -m benchmarks.study_policies compare --data-dir GLUE --tasks sst2 --seeds 5
    python -m benchmarks.study_policies compare --data-dir GLUE --tasks qnli --seeds 3
    python -m benchmarks.study_policies sensitivity --data-dir GLUE --seeds 3

`tune` gives each policy the same number of trials (TRIALS; the traditional one twice as many, for its module is all it
has) on SST-2, half the rounds and a seed that is not reported;
`compare` runs the presets with the best trial of each; `sensitivity` changes one setting of SST-2 at a time, half the
rounds. Options and resuming: `benchmarks.cells`; rows: experiments/results/policies. `python -m benchmarks.results`
makes docs/results.md of them.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.learning.engine import device_of
from airtune.settings import override, read_config
from benchmarks.cells import Cell, Row, carry_out, options, place_of, read

RESULTS = Path("experiments/results/policies")
TUNE_SEED = 100
TUNE_ROUNDS = 40
RATES = ("2e-3", "4e-3", "8e-3", "1.6e-2")
"""Server rates of policies without a dial of their own; 4e-3 is airtune's default."""


def _trials(key: str, *values: str) -> tuple[str, ...]:
    """Two values of a policy's own dial, each at two server rates."""
    return tuple(f"{key}={value} learning.server_rate={rate}" for value in values for rate in ("4e-3", "8e-3"))


_OWN_RATE = tuple(f"learning.server_rate={rate}" for rate in RATES)
TRIALS: dict[str, tuple[str, ...]] = {
    "joint": _trials("policy.v", "1000", "3000"),
    "alternating": _trials("policy.v", "1000", "3000"),
    "no-switching": _trials("policy.module", "3", "4"),
    "no-power-control": _trials("policy.v", "1000", "3000"),
    "no-bandwidth-allocation": _trials("policy.v", "1000", "3000"),
    "myopic": _OWN_RATE,
    "digest": _OWN_RATE,
    "traditional": _trials("policy.module", "1", "2", "3", "4"),
    "capability": _OWN_RATE,
    "random": _trials("policy.scheduled", "5", "10"),
    "round-robin": _trials("policy.scheduled", "5", "10"),
    "best-channel": _trials("policy.scheduled", "5", "10"),
}
"""What is tried for each policy, space-separated KEY=VALUE: four settings, and traditional at every module."""
UNTUNED = ("oracle", "unlimited")
"""Run for orientation: one knows all channels, one has no limits; with the server rate of joint's best trial."""
POINTS: dict[str, tuple[str, ...]] = {
    "policy.v": ("100", "10000"),
    "world.bandwidth_hz": ("2.5e5", "4e6"),
    "fleet.budget_scale": ("0.3", "3"),
    "world.deadline_s": ("4", "25"),
    "partition.alpha": ("0.15", "10"),  # 0.1 leaves a device of seeds 0 and 1 with 10 samples
    "world.interference_margin_db": ("0", "13"),
    "learning.method": ("sum",),
}
"""Settings that sensitivity changes, one at a time; the margin is what makes uploads fail."""
SENSITIVE = ("joint", "no-switching", "traditional")
SUMS = ("scheduled", "delivered", "energy_compute_j", "energy_transmit_j")
"""Columns that are sums over a run's rounds."""


def cell_of(task: str, policy: str, setting: str, seed: int, point: str = "", rounds: int | None = None) -> Cell:
    """One run of a preset."""
    given = [f"policy.name={policy}", f"seed={seed}", *setting.split(), *point.split()]
    given += [] if rounds is None else [f"rounds={rounds}"]
    config = override(read_config(task), [f"--{pair}" for pair in given])
    key = {"task": task, "point": point, "policy": policy, "setting": setting, "seed": seed, "rounds": config.rounds}
    return Cell(key, config)


def trials() -> Iterator[Cell]:
    """The grid of every policy."""
    for policy, settings in TRIALS.items():
        for setting in settings:
            yield cell_of("sst2", policy, setting, TUNE_SEED, rounds=TUNE_ROUNDS)


def best_settings(tried: Sequence[Row]) -> dict[str, str]:
    """The best trial of every policy all of whose trials have run; the earlier of equals."""
    best: dict[str, str] = {}
    for policy, settings in TRIALS.items():
        accuracy = {row["setting"]: float(row["accuracy"]) for row in tried if row["policy"] == policy}
        if set(settings) <= set(accuracy):
            best[policy] = max(settings, key=lambda setting: accuracy[setting])
    if "joint" in best:
        best |= dict.fromkeys(UNTUNED, _common(best["joint"]))
    return best


def _common(setting: str) -> str:
    """What of a setting is not the policy's own."""
    return " ".join(pair for pair in setting.split() if not pair.startswith("policy."))


def compared(tasks: Sequence[str], seeds: int, best: Mapping[str, str]) -> Iterator[Cell]:
    """The comparison, seed by seed."""
    for seed in range(seeds):
        for task in tasks:
            for policy, setting in best.items():
                yield cell_of(task, policy, setting, seed)


def changed(seeds: int, best: Mapping[str, str]) -> Iterator[Cell]:
    """The preset itself, and every setting that is changed, seed by seed."""
    points = ["", *(f"{key}={value}" for key, values in POINTS.items() for value in values)]
    for seed in range(seeds):
        for point in points:
            for policy in ("joint",) if point.startswith("policy.v") else SENSITIVE:
                yield cell_of("sst2", policy, best[policy], seed, point, TUNE_ROUNDS)


def told(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row holds; `path` is ROUNDS:ACCURACY:ENERGY after every evaluation on the dev subset [J]."""
    spent = 0.0
    path: list[str] = []
    for row in rounds:
        spent += row["energy_compute_j"] + row["energy_transmit_j"]
        if row["accuracy"] is not None:
            path.append(f"{row['t'] + 1}:{row['accuracy']:.4f}:{spent:.1f}")
    total = {name: round(sum(row[name] for row in rounds), 1) for name in SUMS}
    certificates = [row["certificate"] for row in rounds if row["certificate"] is not None]
    return {
        "accuracy": summary["accuracy"],
        **total,
        "budget_j": round(summary["budget_j"], 1),
        "max_overspend_ratio": round(summary["max_overspend_ratio"], 4),
        "bound": summary["bound"],
        "worst_certificate": max(certificates) if certificates else None,
        "modules": " ".join(map(str, summary["module_histogram"])),
        "path": " ".join(path),
        "wall_s": round(summary["wall_s"], 1),
        "device": device_of("auto").type,
    }


def main() -> None:
    """Run what is not done yet."""
    parser = options(argparse.ArgumentParser(description=__doc__.splitlines()[0]), "runs/policies")
    parser.add_argument("study", choices=("tune", "compare", "sensitivity"))
    parser.add_argument("--tasks", nargs="+", choices=("sst2", "qnli"), default=["sst2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows")
    given = parser.parse_args()
    if given.data_dir is None:
        raise SystemExit("--data-dir GLUE is needed; python -m benchmarks.results shows the rows")
    best = best_settings(read(given.out / "tune.csv"))
    if given.study != "tune" and not set(TRIALS) <= set(best):
        raise SystemExit(f"{given.out / 'tune.csv'} lacks trials; run `tune` first")
    match given.study:
        case "tune":
            plan = trials()
        case "compare":
            plan = compared(given.tasks, given.seeds, best)
        case _:
            plan = changed(given.seeds, best)
    carry_out(plan, given.out / f"{given.study}.csv", place_of(given), told)


if __name__ == "__main__":
    main()
