"""Tokens trained per second: many devices in one pass against device by device, on whatever device there is.

Every device trains rank 16 on query and value of all layers and the head, with AdamW and clipping, from one global
adapter. Repetitions alternate between the sides.
"""

import time
from dataclasses import replace
from statistics import median

import torch

from airtune.config import ModulesConfig
from airtune.learning.engine import Trained, rates_at
from airtune.learning.pupil import Pupil
from airtune.learning.stacked import train_stack
from benchmarks.workbench import LEARNING, batches, options, workbench

MODULES = ModulesConfig(ranks=(16,), depths=(6,))
RATES = rates_at(LEARNING, 0, 1)
TOLERANCE = {"fp32": 1e-3, "bf16": 0.2}
"""Largest difference of two updates that count as the same, as a share of their norm."""


def difference(first: list[Trained], other: list[Trained]) -> float:
    """Largest difference of a device's two updates, as a share of its norm."""
    shares: list[float] = []
    for ours, theirs in zip(first, other, strict=True):
        a, b = (torch.cat([one.delta[name].flatten() for name in ours.delta]) for one in (ours, theirs))
        shares.append(float((a - b).norm() / b.norm()))
    return max(shares)


def main() -> None:
    """Check that both do the same, then time them."""
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
    jobs = [Pupil(start, batches(tokens, given.steps, device), RATES) for device in range(given.devices)]
    real = int(sum(tokens.lengths[index].sum() for job in jobs for index in job.batches))
    name = torch.cuda.get_device_name() if engine.device.type == "cuda" else "CPU"
    print(f"{bench.facts}; {name}, {given.precision}, {given.devices} devices of {given.steps} steps, {real} tokens")

    def run(stack: int | None) -> list[Trained]:
        if stack is None:
            return [job.train(engine, tokens) for job in jobs]
        cuts = [jobs[first : first + stack] for first in range(0, len(jobs), stack)]
        return [trained for cut in cuts for trained in train_stack(engine, tokens, cut)]

    alone = run(None)  # also warms up
    sides: list[int | None] = [None, *given.stacks]
    apart: dict[int | None, float] = {side: difference(run(side), alone) for side in sides}
    if max(apart.values()) > TOLERANCE[given.precision]:
        raise SystemExit(f"the updates differ by {max(apart.values()):.1e} of their norm; speeds cannot be compared")
    rates: dict[int | None, list[float]] = {side: [] for side in sides}
    for repetition in range(given.repetitions):
        for side in sides if repetition % 2 else sides[::-1]:
            begin = time.perf_counter()
            run(side)  # updates return to the CPU, so the device is done
            rates[side].append(real / (time.perf_counter() - begin))
    print(f"{'':20}{'tokens/s':>10}{'least':>8}{'most':>8}{'ratio':>8}{'updates differ by':>20}")
    for side in sides:
        label = "device by device" if side is None else f"stack of {side}"
        ratio = median(a / b for a, b in zip(rates[side], rates[None], strict=True))
        least, most = min(rates[side]), max(rates[side])
        print(f"{label:20}{median(rates[side]):10.0f}{least:8.0f}{most:8.0f}{ratio:8.2f}{apart[side]:20.1e}")


if __name__ == "__main__":
    main()
