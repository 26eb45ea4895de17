"""Tokens trained per second: packed engine against a plain padded PEFT loop on the same batches and the same model.

Both sides train rank 16 on query and value of every layer and the head, with AdamW and clipping, without dropout. Only
real tokens count. Repetitions alternate between the two, so that whatever else the machine does hits both.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from airtune.config import ModulesConfig
from airtune.learning.data import TokenSet
from airtune.learning.engine import rates_at
from benchmarks.workbench import LEARNING, batches, options, workbench

RANK, LAYERS = 16, 6
MODULES = ModulesConfig(ranks=(RANK,), depths=(LAYERS,))
RATES = rates_at(LEARNING, 0, 1)


class PaddedPeft:
    """The loop that everybody writes: PEFT model, batches padded to their longest sample, AdamW, clipping."""

    def __init__(self, plain: Any, start: Mapping[str, Tensor]) -> None:
        from peft import LoraConfig, TaskType, get_peft_model

        config = LoraConfig(
            r=RANK,
            lora_alpha=int(MODULES.alpha),
            target_modules=list(MODULES.targets),
            modules_to_save=["classifier"],
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
                self.model(**self.padded(tokens, index)).logits, torch.from_numpy(tokens.label[index])
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
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "token_type_ids": torch.from_numpy(types),
        }


def main() -> None:
    """Check that both do the same, then time them."""
    parser = options(str(__doc__).splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--steps", type=int, default=LEARNING.local_steps, help="optimiser steps per repetition")
    given = parser.parse_args()
    bench = workbench(given.data_dir, given.threads, MODULES)
    engine, tokens = bench.engine, bench.tokens
    start = bench.family.slice(bench.family.initial(0), 1)
    peft = PaddedPeft(bench.plain, start)
    print(bench.facts)

    steps = batches(tokens, given.steps, 0)  # also warms both up
    peft.reset()
    ours, theirs = engine.train(start, tokens, steps, RATES), peft.train(tokens, steps)
    change = torch.cat([x.flatten() for x in ours.delta.values()])
    other = torch.cat([(peft.trained[name].detach() - start[name]).flatten() for name in ours.delta])
    difference = float((change - other).norm() / change.norm())
    print(f"same updates: losses {ours.loss:.6f} and {theirs:.6f}, changes differ by {difference:.1e} of their norm")
    if abs(ours.loss - theirs) > 1e-3 * theirs or difference > 1e-3:
        raise SystemExit("the two loops do not do the same; their speeds cannot be compared")

    rates: dict[str, list[float]] = {"engine": [], "peft": []}
    padding: list[float] = []
    for repetition in range(1, given.repetitions + 1):
        steps = batches(tokens, given.steps, repetition)
        real = int(sum(tokens.lengths[index].sum() for index in steps))
        padding.append(1.0 - real / sum(int(tokens.lengths[index].max()) * len(index) for index in steps))
        peft.reset()
        for name in ("engine", "peft") if repetition % 2 else ("peft", "engine"):
            begin = time.perf_counter()
            if name == "engine":
                engine.train(start, tokens, steps, RATES)
            else:
                peft.train(tokens, steps)
            rates[name].append(real / (time.perf_counter() - begin))
    ratios = [a / b for a, b in zip(rates["engine"], rates["peft"], strict=True)]
    print(f"{'':28}{'tokens/s':>10}{'least':>8}{'most':>8}")
    for name, label in (("engine", f"airtune, {engine.layout}"), ("peft", "plain PEFT loop, padded")):
        print(f"{label:28}{median(rates[name]):10.0f}{min(rates[name]):8.0f}{max(rates[name]):8.0f}")
    print(f"{'ratio, pair by pair':28}{median(ratios):10.2f}{min(ratios):8.2f}{max(ratios):8.2f}")
    print(f"padding is {100 * np.mean(padding):.0f} % of the padded batches")


if __name__ == "__main__":
    main()
