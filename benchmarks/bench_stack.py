"""Tokens trained per second: many devices in one pass, device by device, and a plain padded PEFT loop, on whatever
device there is.

Every device trains rank 16 on query and value of all layers and the head, with AdamW and clipping, from one global
adapter. Repetitions alternate between the sides. Memory is what a CUDA device held at most beyond the models.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from airtune.config import ModulesConfig
from airtune.learning.data import TokenSet
from airtune.learning.engine import rates_at
from airtune.learning.pupil import Pupil
from airtune.learning.stacked import train_stack
from benchmarks.bench_tokens import LAYERS, RANK, PaddedPeft
from benchmarks.workbench import LEARNING, batches, options, workbench

MODULES = ModulesConfig(ranks=(RANK,), depths=(LAYERS,))
RATES = rates_at(LEARNING, 0, 1)
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}
"""Largest difference of two updates that count as the same, as a share of their norm."""
Changes = Sequence[Mapping[str, Tensor]]
"""The devices' changes of the adapter, on the CPU."""


def difference(first: Changes, other: Changes) -> float:
    """Largest difference of a device's two updates, as a share of its norm."""
    shares: list[float] = []
    for ours, theirs in zip(first, other, strict=True):
        a, b = (torch.cat([one[name].flatten() for name in ours]) for one in (ours, theirs))
        shares.append(float((a - b).norm() / b.norm()))
    return max(shares)


def plain(loop: PaddedPeft, jobs: Sequence[Pupil], tokens: TokenSet) -> Changes:
    """Every device by the plain loop, from the initial adapter."""
    changes = []
    for job in jobs:
        loop.reset()
        loop.train(tokens, job.batches)
        changes.append({name: loop.trained[name].detach().cpu() - job.start[name] for name in job.start})
    return changes


def main() -> None:
    """Check that all do the same, then time them."""
    parser = options(str(__doc__).splitlines()[0])
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--steps", type=int, default=LEARNING.local_steps, help="optimiser steps of a device")
    parser.add_argument("--stacks", type=int, nargs="+", default=[1, 2, 5, 10, 20], help="devices in one pass")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    given = parser.parse_args()
    bench = workbench(given.data_dir, given.threads, MODULES)
    engine, tokens = bench.engine, bench.tokens
    engine.config = replace(engine.config, precision=given.precision)
    start = bench.family.slice(bench.family.initial(0), 1)
    loop = PaddedPeft(bench.plain.to(engine.device), start, LAYERS)
    jobs = [Pupil(start, batches(tokens, given.steps, device), RATES) for device in range(given.devices)]
    real = int(sum(tokens.lengths[index].sum() for job in jobs for index in job.batches))
    print(f"{bench.facts}; {engine.device_name}, {given.precision}, {given.devices} devices of {given.steps} steps, "
          f"{real} tokens")  # fmt: skip

    def stacked(stack: int) -> Changes:
        cuts = [jobs[first : first + stack] for first in range(0, len(jobs), stack)]
        return [trained.delta for cut in cuts for trained in train_stack(engine, tokens, cut)]

    sides: dict[str, Callable[[], Changes]] = {
        "device by device": lambda: [j.train(engine, tokens).delta for j in jobs]
    }
    sides |= {f"stack of {stack}": lambda stack=stack: stacked(stack) for stack in given.stacks}
    if given.precision == "fp32":
        sides["plain PEFT loop"] = lambda: plain(loop, jobs, tokens)
    alone = sides["device by device"]()
    apart: dict[str, float] = {}
    peak: dict[str, float] = {}
    for side, run in sides.items():  # also warms up
        before = _held_anew()
        apart[side] = difference(run(), alone)
        peak[side] = torch.cuda.max_memory_allocated() - before
    if max(apart.values()) > TOLERANCE[given.precision]:
        raise SystemExit(f"the updates differ by {max(apart.values()):.1e} of their norm; speeds cannot be compared")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for repetition in range(given.repetitions):
        for side in list(sides)[:: 1 if repetition % 2 else -1]:
            begin = time.perf_counter()
            sides[side]()  # updates return to the CPU, so the device is done
            rates[side].append(real / (time.perf_counter() - begin))
    print(f"{'':20}{'tokens/s':>10}{'least':>8}{'most':>8}{'ratio':>8}{'updates differ by':>20}{'MB':>8}")
    for side, own in rates.items():
        ratio = median(a / b for a, b in zip(own, rates["device by device"], strict=True))
        memory = f"{peak[side] / 1e6:8.0f}" if engine.device.type == "cuda" else f"{'–':>8}"
        print(f"{side:20}{median(own):10.0f}{min(own):8.0f}{max(own):8.0f}{ratio:8.2f}{apart[side]:20.1e}{memory}")


def _held_anew() -> int:
    """Bytes that tensors hold on the CUDA device, from where the peak counts on; 0 without one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


if __name__ == "__main__":
    main()
