"""How much of the gradient does each module miss, with and without the energy-ordered basis? δ_m at a run's θ.

    python -m benchmarks.study_capture runs/demo-alternating-s0 --samples 512 --out experiments/results/capture

The gradient of one large batch of training samples at the run's last checkpoint, split by nested increment, in the
basis that the run kept and in the energy-ordered one (the function is the same, so only the split changes). `delta` is
with mini-batch noise taken off as the devices' reports have it, `delta_gross` of the energy as it is.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from airtune.build import learner_of
from airtune.learning.basis import energy_ordered
from airtune.learning.engine import rates_at
from airtune.learning.server import first_server
from airtune.record import RunFolder
from airtune.settings import load


def measure(run: Path, samples: int) -> list[dict[str, Any]]:
    """A row for each basis and module."""
    folder = RunFolder.open(run)
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        raise SystemExit(f"{run} has no finished round")
    config, (tensors, meta) = load(folder.read_config(), str(run)), checkpoint
    learner = learner_of(config)
    kept = {name.removeprefix("adapters/"): x for name, x in tensors.items() if name.startswith("adapters/")}
    index = np.sort(np.random.default_rng(0).choice(len(learner.train), samples, replace=False))
    index = index[np.argsort(learner.train.label[index], kind="stable")]
    rows: list[dict[str, Any]] = []
    for basis, adapters in ((config.learning.basis, kept), ("energy", energy_ordered(kept, first_server(kept))[0])):
        told = learner.engine.train(
            adapters, learner.train, [index], rates_at(config.learning, 0, 1), measure=True
        ).reading
        if told is None or told.noise is None:
            raise SystemExit("--samples must be at least 2")
        gross, net = np.cumsum(told.energy), np.cumsum(told.energy - told.noise)
        for m in range(len(gross)):
            rows.append(
                {
                    "run": run.name,
                    "rounds": meta["t"],
                    "trained": config.learning.basis,
                    "basis": basis,
                    "module": m + 1,
                    "delta": float(1.0 - net[m] / net[-1]),
                    "delta_gross": float(1.0 - gross[m] / gross[-1]),
                    "energy": float(gross[-1]),
                    "noise": float(told.noise.sum()),
                }
            )
    return rows


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/capture"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for run in asked.runs for row in measure(run, asked.samples)]
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows)
    for row in rows:
        print(
            f"{row['run']} after {row['rounds']} rounds, trained {row['trained']}, in basis {row['basis']:6} "
            f"module {row['module']}: δ {row['delta']:.3f}, with noise {row['delta_gross']:.3f} "
            f"(energy {row['energy']:.4g}, noise {row['noise']:.4g})"
        )


if __name__ == "__main__":
    main()
