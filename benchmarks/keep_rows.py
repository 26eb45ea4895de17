"""Copy the rows of finished runs to where they can be committed: no checkpoints, no adapters, no paths of a machine.

    python -m benchmarks.keep_rows runs/sst2 experiments/results/sst2

What is kept is enough for `airtune show experiments/results/sst2/*`: tables and plots of the comparison.
"""

import argparse
import json
import shutil
import tomllib
from pathlib import Path

import tomli_w

ROWS = ("run.json", "rounds.jsonl", "timings.jsonl", "summary.json")


def keep(run: Path, out: Path) -> None:
    """Copy one finished run."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ROWS:
        shutil.copyfile(run / name, out / name)
    config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    (out / "config.toml").write_text(
        tomli_w.dumps({key: value for key, value in config.items() if key not in ("out", "data_dir")}), encoding="utf-8"
    )
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    for part in ("model", "data"):
        environment[part].pop("source", None)
        environment[part].pop("description", None)
    (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Copy every finished run of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of run folders, as `airtune compare --out` leaves it")
    parser.add_argument("out", type=Path, help="folder to copy to")
    asked = parser.parse_args()
    finished = sorted(path.parent for path in asked.runs.glob("*/summary.json"))
    for run in finished:
        keep(run, asked.out / run.name)
    print(f"kept {len(finished)} runs in {asked.out}")


if __name__ == "__main__":
    main()
