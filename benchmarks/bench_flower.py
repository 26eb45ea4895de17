"""Time and memory of a federation: airtune against Flower's simulation engine with a plain PEFT client.

Flower needs older releases of packaging, rich and typer than airtune pins, so it runs in an environment of its own:

    python3 -m venv .venv-flower
    .venv-flower/bin/pip install -c benchmarks/flower-constraints.txt 'flwr[simulation]' .
    .venv-flower/bin/python -m benchmarks.bench_flower

Both sides have the same start, shares, batches and AdamW, and end with the same adapter; each repetition of a side is a
process of its own. "rounds": seconds per round after the first. "all": the whole process, with imports, model and
actors. "cpu": processor seconds of the process tree. "peak": proportional set size of the tree, ten times a second.
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

SIDES = ("airtune-1x2", "airtune-2x1", "flower-1x2", "flower-2x1")
"""Who, and processes × torch threads of each."""
LARGEST_DIFFERENCE = 1e-3
"""Between the changes of the adapter that the sides make, relative to their norm."""


def tree(pid: int) -> dict[int, tuple[int, int]]:
    """Proportional set size [byte] and processor time [ticks] of a process and those that it started."""
    found: dict[int, tuple[int, int]] = {}
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        byte = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        found[pid] = (byte, int(stat[11]) + int(stat[12]))
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found |= tree(int(child))
    except (OSError, StopIteration):
        pass
    return found


def one(side: str, place: Path, given: argparse.Namespace) -> None:
    """One repetition, in this process."""
    from benchmarks.flower_sides import airtune_rounds, flower_rounds

    name, _, shape = side.partition("-")
    count, threads = map(int, shape.split("x"))
    torch.set_num_threads(threads)
    if name == "airtune":
        adapters, clock = airtune_rounds(place, given.devices, given.steps, given.rounds, count)
    else:
        adapters, clock = flower_rounds(place, given.devices, given.steps, given.rounds, count, threads)
    save_file({key: tensor.contiguous() for key, tensor in adapters.items()}, place / f"{side}.safetensors")
    (place / f"{side}.json").write_text(json.dumps(list(np.diff(clock))))


def watched(side: str, place: Path, given: argparse.Namespace) -> dict[str, float]:
    """Run one repetition in a process of its own and watch it."""
    paths = [str(Path.cwd()), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    threads = side[-1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-m", "benchmarks.bench_flower", *sys.argv[1:], "--side", side, str(place)]
    began, peak, ticks = time.perf_counter(), 0, dict[int, int]()
    with (place / f"{side}.log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while child.poll() is None:
            now = tree(child.pid)
            peak = max(peak, sum(byte for byte, _ in now.values()))
            ticks |= {pid: tick for pid, (_, tick) in now.items()}
            time.sleep(0.1)
    if child.returncode:
        raise SystemExit(f"{side}: " + " | ".join((place / f"{side}.log").read_text().strip().splitlines()[-3:]))
    rounds = json.loads((place / f"{side}.json").read_text())
    if len(rounds) < given.rounds:
        raise SystemExit(f"{side}: ended after {len(rounds)} of {given.rounds} rounds; Flower tells why in its log")
    return {
        "round_s": float(np.mean(rounds[1:])),
        "all_s": time.perf_counter() - began,
        "cpu_s": sum(ticks.values()) / os.sysconf("SC_CLK_TCK"),
        "peak_mb": peak / 1e6,
    }


def prepare(place: Path, given: argparse.Namespace) -> None:
    """Tokens and the initial adapter, for both."""
    from benchmarks.bench_tokens import MODULES
    from benchmarks.workbench import workbench

    bench = workbench(given.data_dir, None, MODULES)
    t = bench.tokens
    np.savez(place / "tokens.npz", ids=t.ids, type_ids=np.asarray(t.type_ids), offsets=t.offsets, label=t.label)
    save_file(dict(bench.family.slice(bench.family.initial(0), 1)), place / "start.safetensors")
    print(bench.facts.rpartition(",")[0], f"; {given.devices} devices, {given.rounds} rounds, {given.steps} steps")


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
        prepare(place, given)
        rows: dict[str, list[dict[str, float]]] = {side: [] for side in given.sides}
        for repetition in range(given.repetitions):
            for side in given.sides if repetition % 2 == 0 else reversed(given.sides):
                rows[side].append(watched(side, place, given))
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
    """Median and range of every side, and what the best of Flower takes over the best of airtune."""
    heads = {"round_s": "s/round", "all_s": "s in all", "cpu_s": "CPU s", "peak_mb": "peak MB"}
    print(f"{'processes x threads':20}" + "".join(f"{head:>26}" for head in heads.values()))
    for side, found in rows.items():
        cells = [[row[key] for row in found] for key in heads]
        print(f"{side:20}" + "".join(f"{f'{median(c):.2f} ({min(c):.2f}-{max(c):.2f})':>26}" for c in cells))
    best: dict[str, list[float]] = {}
    for name in ("airtune", "flower"):
        mine = [found for side, found in rows.items() if side.startswith(name)]
        best[name] = [min((median(row[key] for row in found) for found in mine), default=0.0) for key in heads]
    if all(map(all, best.values())):
        ratios = [theirs / ours for ours, theirs in zip(best["airtune"], best["flower"], strict=True)]
        print(f"{'best over best':20}" + "".join(f"{ratio:26.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
