"""Time and memory of one local step for every (rank, depth): back-propagation stops below the lowest adapted layer.

Every pair runs in a process of its own, so that its peak memory is its own: the most that one step adds to the resident
set. Beside them stand the modelled FLOPs and activations that decisions are made with.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from airtune.config import ModulesConfig
from airtune.learning.engine import rates_at
from benchmarks.workbench import BATCH, LEARNING, Workbench, batches, options, workbench

RATES = rates_at(LEARNING, 0, 1)
RANKS, DEPTHS = (2, 16), (1, 2, 3, 4, 6)
PAGE_BYTE = resource.getpagesize()


def resident_byte() -> int:
    """Resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTE


def forget_peak() -> None:
    """Start the kernel's record of the largest resident set anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_byte() -> int:
    """Largest resident set since `forget_peak`."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def step(bench: Workbench, seed: int) -> int:
    """One local step of the whole module; returns its tokens."""
    adapters = bench.family.initial(0)
    return bench.engine.train(adapters, bench.tokens, batches(bench.tokens, 1, seed), RATES).tokens


def measure(given: argparse.Namespace) -> None:
    """One pair, in this process; prints a line of JSON."""
    bench = workbench(given.data_dir, given.threads, ModulesConfig(ranks=(given.rank,), depths=(given.depth,)))
    shortest = bench.tokens.lengths.argsort()[:1]
    bench.engine.train(bench.family.initial(0), bench.tokens, [shortest], RATES)  # loads what is lazy
    before = resident_byte()
    forget_peak()
    step(bench, 0)
    added = peak_byte() - before
    times: list[float] = []
    for seed in range(1, given.repetitions + 1):
        begin = time.perf_counter()
        tokens = step(bench, seed)
        times.append((time.perf_counter() - begin) / tokens)
    frozen = 4 * sum(parameter.numel() for parameter in bench.plain.parameters())
    row = {
        "facts": bench.facts,
        "time_s_per_token": median(times),
        "added_byte": added,
        "flop_per_token": float(bench.modules.flop_per_token[0]),
        "modelled_byte": float(bench.modules.memory_byte[0]) - frozen,
    }
    print(json.dumps(row))


def main() -> None:
    """Every pair in turn, as a table."""
    parser = options(str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--rank", type=int, help="with --depth: this pair alone, as JSON")
    parser.add_argument("--depth", type=int)
    given = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("bench_depth reads peak memory from /proc, which only Linux has")
    if given.rank is not None and given.depth is not None:
        measure(given)
        return
    pairs = [(rank, depth) for rank in RANKS for depth in DEPTHS]
    rows: dict[tuple[int, int], dict[str, float]] = {}
    for rank, depth in pairs:
        command = [sys.executable, "-m", "benchmarks.bench_depth", *sys.argv[1:], f"--rank={rank}", f"--depth={depth}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"rank {rank}, depth {depth}: {done.stderr.strip().splitlines()[-1]}")
        rows[rank, depth] = json.loads(done.stdout.splitlines()[-1])
    whole = rows[pairs[-1]]
    print(f"{whole['facts']}; shares are of rank {RANKS[-1]}, depth {DEPTHS[-1]}; a step holds {BATCH} samples")
    print(f"{'rank':>4}{'depth':>6}{'ms/ktoken':>11}{'time':>7}{'FLOP':>7}{'peak MB':>9}{'modelled MB':>13}")
    for (rank, depth), row in rows.items():
        time_share = row["time_s_per_token"] / whole["time_s_per_token"]
        flop_share = row["flop_per_token"] / whole["flop_per_token"]
        print(
            f"{rank:4}{depth:6}{1e6 * row['time_s_per_token']:11.1f}{time_share:7.2f}{flop_share:7.2f}"
            f"{row['added_byte'] / 1e6:9.1f}{row['modelled_byte'] / 1e6:13.1f}"
        )


if __name__ == "__main__":
    main()
