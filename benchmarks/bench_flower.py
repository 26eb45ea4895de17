"""Time and memory of a federation: airtune against Flower's simulation engine with a plain PEFT client.

Flower needs older releases of packaging, rich and typer than airtune pins, so it runs in an environment of its own:

    python3 -m venv .venv-flower
    .venv-flower/bin/pip install -c benchmarks/flower-constraints.txt 'flwr[simulation]' .
    .venv-flower/bin/python -m benchmarks.bench_flower

Both sides have the same start, shares, batches and AdamW, at full depth, and end with the same adapter; sides take
turns, and each repetition is a process of its own. A round is one after the first. Start-up is what comes before: from
the command to the end of the first round, less a mean later round: imports, actors or workers, and the model in each.
CPU: processor seconds of the process tree. Peak: proportional set size of the tree, once a second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.processes import Watch

SIDES = ("airtune-1x2", "airtune-2x1", "flower-1x2", "flower-2x1")
"""Who, and processes × torch threads of each."""
LARGEST_DIFFERENCE = 1e-3
"""Between the changes of the adapter that the sides make, relative to their norm."""


HEADS = {
    "round_s": "s/round",
    "round_cpu_s": "CPU s/round",
    "tokens_s": "tokens/s",
    "start_s": "start-up s",
    "all_s": "s in all",
    "all_cpu_s": "CPU s in all",
    "peak_mb": "peak MB",
}


def figures_of(marks: list[list[float]], began_s: float, tokens: list[int]) -> dict[str, float]:
    """What one repetition took, as far as its marks tell.

    Args:
        marks: clock and processor time [s] when the first of R ≥ 2 rounds began and when each round ended.
        began_s: the clock when the process was started.
        tokens: real tokens trained in each round.
    """
    later = len(marks) - 2
    if later < 1 or len(tokens) != later + 1:
        raise SystemExit(f"a side told of {len(marks) - 1} rounds where {len(tokens)} ≥ 2 were to be run")
    (first, first_cpu), (last, last_cpu) = marks[1], marks[-1]
    round_s = (last - first) / later
    return {
        "round_s": round_s,
        "round_cpu_s": (last_cpu - first_cpu) / later,
        "tokens_s": sum(tokens[1:]) / (last - first),
        "start_s": first - began_s - round_s,
    }


def one(side: str, place: Path, given: argparse.Namespace) -> None:
    """One repetition, in this process."""
    from benchmarks.flower_sides import airtune_rounds, flower_rounds

    name, _, shape = side.partition("-")
    count, threads = map(int, shape.split("x"))
    torch.set_num_threads(threads)
    if name == "airtune":
        adapters, marks = airtune_rounds(place, given.devices, given.steps, given.rounds, count)
    else:
        adapters, marks = flower_rounds(place, given.devices, given.steps, given.rounds, count, threads)
    save_file({key: tensor.contiguous() for key, tensor in adapters.items()}, place / f"{side}.safetensors")
    (place / f"{side}.json").write_text(json.dumps(marks))


def watched(side: str, place: Path, tokens: list[int]) -> dict[str, float]:
    """Run one repetition in a process of its own and watch it."""
    paths = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": side[-1]}
    command = [sys.executable, "-m", "benchmarks.bench_flower", *sys.argv[1:], "--side", side, str(place)]
    began = time.monotonic()
    with (place / f"{side}.log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        watch = Watch(child.pid, 1.0)
        child.wait()
        ended = time.monotonic()
        watch.end()
    if child.returncode:
        raise SystemExit(f"{side}: " + " | ".join((place / f"{side}.log").read_text().strip().splitlines()[-3:]))
    figures = figures_of(json.loads((place / f"{side}.json").read_text()), began, tokens)
    return figures | {"all_s": ended - began, "all_cpu_s": watch.cpu_s, "peak_mb": watch.peak_byte / 1e6}


def prepare(place: Path, given: argparse.Namespace) -> list[int]:
    """Tokens and the initial adapter, for both; returns the real tokens of each round."""
    from benchmarks.bench_tokens import MODULES
    from benchmarks.flower_sides import steps_of
    from benchmarks.workbench import workbench

    bench = workbench(given.data_dir, None, MODULES)
    t = bench.tokens
    np.savez(place / "tokens.npz", ids=t.ids, type_ids=np.asarray(t.type_ids), offsets=t.offsets, label=t.label)
    save_file(dict(bench.family.initial(0)), place / "start.safetensors")
    rounds = [
        [steps_of(t, given.devices, given.steps, r, k) for k in range(given.devices)] for r in range(given.rounds)
    ]
    tokens = [int(t.lengths[np.concatenate([x for steps in round for x in steps])].sum()) for round in rounds]
    print(f"{bench.facts.rpartition(',')[0]}; {given.devices} devices of {given.steps} steps, {given.rounds} rounds "
          f"of {np.mean(tokens):.0f} tokens")  # fmt: skip
    return tokens


def main() -> None:
    """Alternate the sides, check that they end alike, print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with GLUE's SST-2; default: rotten-tomatoes from PyPI")
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if find_spec("flwr") is None or find_spec("ray") is None:
        print("no Flower here; it needs an environment of its own, as its pins contradict airtune's: see the docstring")
        return
    if given.side:
        one(given.side[0], Path(given.side[1]), given)
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        tokens = prepare(place, given)
        rows: dict[str, list[dict[str, float]]] = {side: [] for side in given.sides}
        for repetition in range(given.repetitions):
            for side in given.sides if repetition % 2 == 0 else reversed(given.sides):
                rows[side].append(watched(side, place, tokens))
                print(side, {k: round(v, 2) for k, v in rows[side][-1].items()}, f"load {os.getloadavg()[0]:.1f}",
                      flush=True)  # fmt: skip
        refuse_difference(place, given.sides)
        table(rows)


def refuse_difference(place: Path, sides: list[str]) -> None:
    """Stop unless all sides moved the adapter alike; their speeds could not be compared."""
    start = load_file(place / "start.safetensors")
    ends = {side: load_file(place / f"{side}.safetensors") for side in sides}
    moves = {
        side: torch.cat([(end[key] - start[key]).flatten() for key in sorted(start)]) for side, end in ends.items()
    }
    first = moves[sides[0]]
    apart = {side: float((move - first).norm() / first.norm()) for side, move in moves.items()}
    print("changes of the adapter differ by " + ", ".join(f"{x:.1e}" for x in apart.values()) + " of their norm")
    if max(apart.values()) > LARGEST_DIFFERENCE:
        raise SystemExit("the sides do not do the same; their speeds cannot be compared")


def table(rows: dict[str, list[dict[str, float]]]) -> None:
    """Median and range of every side, and of the fastest of Flower over the fastest of airtune, pair by pair."""
    print(f"{'processes x threads':20}" + "".join(f"{head:>25}" for head in HEADS.values()))
    for side, found in rows.items():
        print(f"{side:20}" + "".join(cell([row[key] for row in found]) for key in HEADS))
    best: list[list[dict[str, float]]] = []
    for name in ("airtune", "flower"):
        mine = [found for side, found in rows.items() if side.startswith(name)]
        best.append(min(mine, key=lambda found: median(row["round_s"] for row in found), default=[]))
    pairs = list(zip(*best, strict=False))
    if pairs:
        print(f"{'best over best':20}" + "".join(cell([b[key] / a[key] for a, b in pairs]) for key in HEADS))


def cell(values: list[float]) -> str:
    """Median, least and most."""
    return f"{f'{median(values):.4g} ({min(values):.4g}-{max(values):.4g})':>25}"


if __name__ == "__main__":
    main()
