"""Accuracy against ε: central and local differential privacy at several noise multipliers, everything else the same.

    python -m benchmarks.study_privacy --data-dir GLUE --threads 1

Runs are those of experiments/privacy.toml. Options and resuming: `benchmarks.cells`. Without `--data-dir` it prints the
table of the rows.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.config import PrivacyConfig
from airtune.settings import read_config
from benchmarks.cells import Cell, Row, carry_out, interval, options, place_of, read

BASE = Path(__file__).parents[1] / "experiments" / "privacy.toml"
CLIP_NORM = 0.1
POINTS: tuple[tuple[str, float | None], ...] = (
    ("none", None),
    ("central", 1.0),
    ("local", 1.0),
    ("central", 0.25),
    ("central", 4.0),
    ("central", 0.5),
    ("central", 2.0),
)
"""Mechanism and z."""


def cells(seeds: int) -> Iterator[Cell]:
    """Every run, seed by seed."""
    base = read_config(str(BASE))
    for seed in range(seeds):
        for mechanism, multiplier in POINTS:
            privacy = PrivacyConfig()
            if multiplier is not None:
                privacy = PrivacyConfig(mechanism=mechanism, clip_norm=CLIP_NORM, noise_multiplier=multiplier)
            key = {"mechanism": mechanism, "noise_multiplier": "" if multiplier is None else multiplier, "seed": seed}
            yield Cell(key, dataclasses.replace(base, seed=seed, privacy=privacy))


def told(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the row of a run holds."""
    delivered = sum(row["delivered"] for row in rounds)
    return {
        "accuracy": summary["accuracy"],
        "samples": summary["accuracy_samples"],
        "epsilon": summary.get("epsilon", ""),
        "rounds": summary["rounds"],
        "delivered": delivered,
        "wall_s": round(summary["wall_s"], 1),
    }


def table(rows: Sequence[Row]) -> str:
    """The runs in Markdown, least noise first."""
    found: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        found.setdefault((row["mechanism"], float(row["noise_multiplier"] or 0.0)), []).append(row)
    lines = ["| mechanism | z | ε | accuracy [%] | seeds |", "|---|---|---|---|---|"]
    order = ("none", "central", "local")
    for mechanism, multiplier in sorted(found, key=lambda point: (order.index(point[0]), point[1])):
        mine = found[mechanism, multiplier]
        epsilon = f"{max(float(row['epsilon']) for row in mine):.3g}" if multiplier else "∞"
        accuracy = interval([float(row["accuracy"]) for row in mine])
        lines.append(f"| {mechanism} | {multiplier:g} | {epsilon} | {accuracy} | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is not done yet, then print the table."""
    parser = options(argparse.ArgumentParser(description=__doc__.splitlines()[0]), "runs/privacy")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/privacy/rows.csv"))
    given = parser.parse_args()
    if given.data_dir is not None:
        carry_out(cells(given.seeds), given.out, place_of(given), told)
    print(table(read(given.out)))


if __name__ == "__main__":
    main()
