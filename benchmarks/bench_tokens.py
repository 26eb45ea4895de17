"""Tokens trained per second on CPU: packed engine against a plain padded PEFT loop, at full and at half depth.

All sides train rank 16 on query and value and the head, with AdamW and clipping, without dropout, on the same batches.
Half depth is the top three of six layers; there the engine starts from hidden states that it kept. Only real tokens
count. Repetitions go through all sides in turn, so that whatever else the machine does hits all of them. With one
thread, times are seconds of the processor, in which waiting for a core does not count; with more, of the clock.
"""

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from airtune.config import ModulesConfig
from airtune.learning.data import TokenSet
from airtune.learning.engine import Trained, rates_at
from airtune.learning.packing import Packer
from airtune.learning.products import available, product
from benchmarks.workbench import LEARNING, Workbench, batches, options, workbench

RANK, LAYERS, HALF = 16, 6, 3
MODULES = ModulesConfig(ranks=(RANK, RANK), depths=(HALF, LAYERS))
RATES = rates_at(LEARNING, 0, 1)
CACHE_BYTE = 1 << 30
SCORED = 512
GEMM_SIZES = (256, 384, 512, 1024, 2048)


class PaddedPeft:
    """The loop that everybody writes: PEFT model, batches padded to their longest sample, AdamW, clipping."""

    def __init__(self, plain: Any, start: Mapping[str, Tensor], depth: int) -> None:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            r=RANK,
            lora_alpha=int(MODULES.alpha),
            target_modules=list(MODULES.targets),
            modules_to_save=["classifier"],
            layers_to_transform=list(range(LAYERS - depth, LAYERS)),
            layers_pattern="layer",
            lora_dropout=0.0,
            task_type=TaskType.SEQ_CLS,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.model: Any = get_peft_model(plain, config).eval()
        self.pad = plain.config.pad_token_id
        self.trained: dict[str, Any] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                own = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
                self.trained[own.replace(".default.weight", "")] = parameter
        if self.trained.keys() != start.keys():
            raise SystemExit(f"PEFT trains other tensors: {sorted(self.trained.keys() ^ start.keys())}")
        self.start = start

    def reset(self) -> None:
        """Back to the initial adapter."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.start[name])

    def train(self, tokens: TokenSet, steps: Sequence[NDArray[np.int64]]) -> float:
        """One optimiser step per batch; returns the mean loss."""
        head = [parameter for name, parameter in self.trained.items() if "lora" not in name]
        adapter = [parameter for name, parameter in self.trained.items() if "lora" in name]
        groups = [{"params": adapter, "lr": RATES.adapter}, {"params": head, "lr": RATES.head}]
        optimizer = torch.optim.AdamW(groups, weight_decay=LEARNING.weight_decay)
        losses: list[float] = []
        for index in steps:
            loss = functional.cross_entropy(
                self.model(**self.padded(tokens, index)).logits,
                torch.from_numpy(tokens.label[index]).to(self.model.device),
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*adapter, *head], LEARNING.clip_norm)
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def padded(self, tokens: TokenSet, index: NDArray[np.int64]) -> dict[str, Tensor]:
        """The batch as Transformers' DataCollatorWithPadding lays it out."""
        longest = int(tokens.lengths[index].max())
        ids = np.full((len(index), longest), self.pad, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for row, i in enumerate(index):
            span = tokens.span(int(i))
            length = span.stop - span.start
            ids[row, :length], mask[row, :length] = tokens.ids[span], 1
            if tokens.type_ids is not None:
                types[row, :length] = tokens.type_ids[span]
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: torch.from_numpy(array).to(self.model.device) for name, array in named.items()}


class Sides:
    """What is compared: the engine and the PEFT loop at full and at half depth, by name.

    Args:
        bench: engine with kept prefixes.
    """

    def __init__(self, bench: Workbench) -> None:
        batcher = bench.engine.batcher
        if not isinstance(batcher, Packer) or batcher.prefix is None:
            raise SystemExit("the engine keeps no hidden states of this model")
        self.batcher, self.prefix = batcher, batcher.prefix
        self.engine, self.tokens = bench.engine, bench.tokens
        theta = bench.family.initial(0)
        self.start = {depth: bench.family.slice(theta, module) for module, depth in ((1, HALF), (2, LAYERS))}
        self.peft = {depth: PaddedPeft(copy.deepcopy(bench.plain), self.start[depth], depth) for depth in self.start}
        self.all: dict[str, Callable[[Sequence[NDArray[np.int64]]], Trained | float]] = {
            "engine": lambda steps: self.ours(steps, LAYERS, False),
            "peft": lambda steps: self.peft[LAYERS].train(self.tokens, steps),
            "engine-half": lambda steps: self.ours(steps, HALF, False),
            "engine-half-kept": lambda steps: self.ours(steps, HALF, True),
            "peft-half": lambda steps: self.peft[HALF].train(self.tokens, steps),
        }

    def ours(self, steps: Sequence[NDArray[np.int64]], depth: int, kept: bool) -> Trained:
        """The engine's training, from kept hidden states or not."""
        self.batcher.prefix = self.prefix if kept else None
        return self.engine.train(self.start[depth], self.tokens, steps, RATES)

    def scores(self, kept: bool) -> NDArray[np.float32]:
        """Class scores of the first samples with the adapter of half depth."""
        self.batcher.prefix = self.prefix if kept else None
        return self.engine.logits(self.start[HALF], self.tokens, np.arange(SCORED))

    def reset(self) -> None:
        """Both PEFT models back to the initial adapter."""
        for loop in self.peft.values():
            loop.reset()

    def check(self, steps: Sequence[NDArray[np.int64]]) -> None:
        """Refuse to time what does not do the same."""
        for depth, kept in ((LAYERS, False), (HALF, False), (HALF, True)):
            self.reset()
            ours, theirs = self.ours(steps, depth, kept), self.peft[depth].train(self.tokens, steps)
            change = torch.cat([x.flatten() for x in ours.delta.values()])
            trained, start = self.peft[depth].trained, self.start[depth]
            other = torch.cat([(trained[name].detach() - start[name]).flatten() for name in ours.delta])
            apart = float((change - other).norm() / change.norm())
            print(
                f"depth {depth}{', kept states' * kept}: losses {ours.loss:.6f} and {theirs:.6f}, changes differ by "
                f"{apart:.1e} of their norm"
            )
            if abs(ours.loss - theirs) > 1e-3 * theirs or apart > 1e-3:
                raise SystemExit("the two loops do not do the same; their speeds cannot be compared")

    def flop_per_token(self, steps: Sequence[NDArray[np.int64]]) -> float:
        """FLOPs that the engine executes in matrix products of linear layers, per real token, at full depth.

        Forward and backward, frozen and low-rank; not attention's own products, nor anything element by element.
        """
        with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
            trained = self.ours(steps, LAYERS, False)
        counted = counter.get_flop_counts()["Global"]
        linear = ("mm", "addmm", "addmm_", "bmm", "_linear_pointwise")
        products = sum(n for op, n in counted.items() if str(op).rsplit(".", 1)[-1] in linear)
        return products / trained.tokens


def linear_flop(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of x [N × in] by weight [out × in], from their shapes."""
    return 2 * x[0] * x[1] * weight[0]


def addmm_flop(_: Sequence[int], a: Sequence[int], b: Sequence[int], **__: Any) -> int:
    """FLOPs of a [N × in] by b [in × out], added in place, from their shapes."""
    return 2 * a[0] * a[1] * b[1]


PRODUCTS = {torch.ops.mkldnn._linear_pointwise: linear_flop, torch.ops.aten.addmm_: addmm_flop}
"""Products that torch's counter does not know."""


def gemm_rate(clock: Callable[[], float], multiply: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Best rate of square fp32 matrix products over some sizes [FLOP/s]."""
    best = 0.0
    for size in GEMM_SIZES:
        a, b = torch.randn(size, size), torch.randn(size, size)
        multiply(a, b)
        count = max(int(2e9 / (2 * size**3)), 1)
        begin = clock()
        for _ in range(count):
            multiply(a, b)
        best = max(best, count * 2 * size**3 / (clock() - begin))
    return best


def line(label: str, values: Sequence[float], digits: int = 0) -> None:
    """Median, least and most."""
    print(f"{label:46}{median(values):10.{digits}f}{min(values):8.{digits}f}{max(values):8.{digits}f}")


LABELS = {
    "engine": "airtune, packed",
    "peft": "plain PEFT loop, padded",
    "engine-half": "airtune, half depth",
    "engine-half-kept": "airtune, half depth, prefix kept",
    "peft-half": "plain PEFT loop, half depth",
}
MULTIPLY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch.mm": torch.mm}
"""What multiplies square matrices, by name."""
if available():
    MULTIPLY["oneDNN"] = product
RATIOS = (
    ("engine", "peft"),
    ("engine-half", "peft-half"),
    ("engine-half-kept", "peft-half"),
    ("engine-half-kept", "peft"),
    ("engine-half-kept", "engine-half"),
)


def main() -> None:
    """Check that all do the same, then time them."""
    parser = options(str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--steps", type=int, default=LEARNING.local_steps, help="optimiser steps per repetition")
    given = parser.parse_args()
    bench = workbench(given.data_dir, given.threads, MODULES, CACHE_BYTE)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    sides, tokens = Sides(bench), bench.tokens
    print(f"{bench.facts}, {'processor' if clock is time.process_time else 'wall-clock'} time")

    sides.check(batches(tokens, given.steps, 0))  # also warms all up
    flop = sides.flop_per_token(batches(tokens, given.steps, 0))
    spent: dict[str, float] = {}
    for name, kept in (("plain", False), ("filling", True), ("kept", True)):
        begin = clock()
        sides.scores(kept)
        spent[name] = clock() - begin
    rates: dict[str, list[float]] = {name: [] for name in sides.all}
    padding: list[float] = []
    rates_of: dict[str, list[float]] = {name: [] for name in MULTIPLY}
    for repetition in range(1, given.repetitions + 1):
        steps = batches(tokens, given.steps, repetition)
        real = int(sum(tokens.lengths[index].sum() for index in steps))
        padding.append(1.0 - real / sum(int(tokens.lengths[index].max()) * len(index) for index in steps))
        sides.ours(steps, HALF, True)  # their states are kept from here on
        sides.reset()
        for name in list(sides.all)[:: 1 if repetition % 2 else -1]:
            begin = clock()
            sides.all[name](steps)
            rates[name].append(real / (clock() - begin))
        for name, multiply in MULTIPLY.items():
            rates_of[name].append(gemm_rate(clock, multiply))
    print(f"{'tokens/s':46}{'median':>10}{'least':>8}{'most':>8}")
    for name, label in LABELS.items():
        line(f"{name}: {label}", rates[name])
    print("ratio, repetition by repetition")
    for one, other in RATIOS:
        line(f"  {one} / {other}", [a / b for a, b in zip(rates[one], rates[other], strict=True)], 2)
    for name, peaks in rates_of.items():
        line(f"square fp32 products, {name} [GFLOP/s]", [peak / 1e9 for peak in peaks], 1)
        share = [100 * flop * rate / peak for rate, peak in zip(rates["engine"], peaks, strict=True)]
        line("  airtune, packed: share of it [%]", share, 1)
    print(f"it executes {flop / 1e6:.1f} MFLOP per token in linear layers; attention and all else are not counted")
    print(
        f"scores of {SCORED} samples at half depth: {spent['plain']:.1f} s, {spent['filling']:.1f} s while states "
        f"are first kept, {spent['kept']:.1f} s from kept states"
    )
    print(f"padding is {100 * np.mean(padding):.0f} % of the padded batches")


if __name__ == "__main__":
    main()
