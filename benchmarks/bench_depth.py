"""Time and memory of one local step for every (rank, depth): back-propagation stops below the lowest adapted layer.

Times are taken side by side in one process; peak memory, the most that one step adds to the resident set, in a process
for each pair. Beside them stand the modelled FLOPs and bytes that decisions are made with.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from torch import Tensor

from airtune.config import ModulesConfig
from airtune.learning.engine import rates_at
from benchmarks.workbench import LEARNING, Workbench, batches, options, workbench

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


def memory(given: argparse.Namespace) -> None:
    """One pair, in this process; prints a line of JSON."""
    bench = workbench(given.data_dir, given.threads, ModulesConfig(ranks=(given.rank,), depths=(given.depth,)))
    adapters = bench.family.initial(0)
    shortest = bench.tokens.lengths.argsort()[:1]
    bench.engine.train(adapters, bench.tokens, [shortest], RATES)  # loads what is loaded at first use
    before = resident_byte()
    forget_peak()
    bench.engine.train(adapters, bench.tokens, batches(bench.tokens, 1, 0), RATES)
    frozen = 4 * sum(parameter.numel() for parameter in bench.plain.parameters())
    row = {
        "added_byte": peak_byte() - before,
        "flop_per_token": float(bench.modules.flop_per_token[0]),
        "modelled_byte": float(bench.modules.memory_byte[0]) - frozen,
    }
    print(json.dumps(row))


def memory_of(pair: tuple[int, int]) -> dict[str, float]:
    """The same for one pair, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_depth", *sys.argv[1:], f"--rank={pair[0]}", f"--depth={pair[1]}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"rank {pair[0]}, depth {pair[1]}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def cut(part: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The first components of a slice."""
    return {
        name: tensor[:rank] if name.endswith(".lora_A") else tensor[:, :rank] if name.endswith(".lora_B") else tensor
        for name, tensor in part.items()
    }


def times(bench: Workbench, repetitions: int) -> dict[tuple[int, int], list[float]]:
    """Seconds per token of each pair: all pairs in turn on the same batch, back and forth."""
    adapters = bench.family.initial(0)
    parts = {
        (rank, depth): cut(bench.family.slice(adapters, module), rank)
        for rank in RANKS
        for module, depth in enumerate(DEPTHS, 1)
    }
    spent: dict[tuple[int, int], list[float]] = {pair: [] for pair in parts}
    for repetition in range(repetitions + 1):  # the first warms up
        steps = batches(bench.tokens, 1, repetition)
        for pair, part in list(parts.items())[:: 1 if repetition % 2 else -1]:
            begin = time.perf_counter()
            tokens = bench.engine.train(part, bench.tokens, steps, RATES).tokens
            if repetition:
                spent[pair].append((time.perf_counter() - begin) / tokens)
    return spent


def main() -> None:
    """Every pair in turn, as a table."""
    parser = options(str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--rank", type=int, help="with --depth: memory of this pair alone, as JSON")
    parser.add_argument("--depth", type=int)
    given = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("bench_depth reads peak memory from /proc, which only Linux has")
    if given.rank is not None and given.depth is not None:
        memory(given)
        return
    family = ModulesConfig(ranks=(RANKS[-1],) * len(DEPTHS), depths=DEPTHS)
    bench = workbench(given.data_dir, given.threads, family)
    spent = times(bench, given.repetitions)
    rows = {pair: memory_of(pair) for pair in spent}
    whole = RANKS[-1], DEPTHS[-1]
    print(f"{bench.facts}; shares are of rank {whole[0]}, depth {whole[1]}, side by side; a step is one batch")
    print(f"{'rank':>4}{'depth':>6}{'ms/ktoken':>11}{'time':>7}{'FLOP':>7}{'peak MB':>9}{'modelled MB':>13}")
    for (rank, depth), row in rows.items():
        pairs = zip(spent[rank, depth], spent[whole], strict=True)
        time_share = median(own / other for own, other in pairs)
        flop_share = row["flop_per_token"] / rows[whole]["flop_per_token"]
        print(
            f"{rank:4}{depth:6}{1e6 * median(spent[rank, depth]):11.1f}{time_share:7.2f}{flop_share:7.2f}"
            f"{row['added_byte'] / 1e6:9.1f}{row['modelled_byte'] / 1e6:13.1f}"
        )


if __name__ == "__main__":
    main()
