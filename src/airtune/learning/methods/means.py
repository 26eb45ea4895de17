"""Methods that hand out means as one A and B: renormalised nested mean, (8), FedIT, FlexLoRA, HetLoRA."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from airtune.learning.aggregate import padded_mean, weighted_sum
from airtune.learning.lora import Adapters, tail_norm
from airtune.learning.method import Combined, Nest, by_component, judged, matrices_of
from airtune.learning.methods.products import mean_product
from airtune.learning.server import ServerState
from airtune.types import Lesson, Offer, Update


@dataclass(frozen=True, slots=True)
class PlainMethod:
    """A mean of whatever tensors θ has, without a family behind it, as the testbed has it.

    Sends the modules' own sizes; a device starts from all of θ.
    """

    mean: Literal["sum", "renormalised"] = "sum"

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 as it is."""
        return adapters, {}

    def offer(self, t: int, server: ServerState) -> Offer | None:
        """The modules' own sizes."""
        return None

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """All of θ."""
        return Lesson(start=adapters)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """Σ ω_k s_k g_k, (8), or the mean of each entry over those who delivered."""
        return Combined(weighted_sum(adapters, updates)) if self.mean == "sum" else by_component(adapters, updates)

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter."""
        return judged(adapters, server)


@dataclass(frozen=True, slots=True)
class MeanMethod:
    """Means over nested slices.

    - `nested` (the default, ours): every component is the mean over the devices that delivered it, weighted by ω_k; an
      adaptive server moves it by its share of the delivered weight (`server_step`).
    - `sum`: (8); what is lost, or beyond a device's module, counts as no change. The bound is proved for this one.
    - `fedit`: FedAvg of LoRA factors (FedIT, Zhang et al., ICASSP 2024): mean of the devices' whole models, zero-padded
      beyond their modules under context "slice". The mean of A times the mean of B is not the mean of BA.
    - `flexlora`: FlexLoRA (Bai et al., NeurIPS 2024): the mean of the products BA of whole models, handed out again as
      its R greatest singular components, in order, so the slice of a small module is the best approximation of its
      rank. What is beyond rank R is lost.

    Up: the slice of A and B, and the head. Down: the slice, or all of θ under context "whole".
    A device of a small module receives the first components of the top layers. A lost upload takes no part in the mean;
    those delivered count for it.
    """

    nest: Nest
    mean: Literal["nested", "sum", "fedit", "flexlora"]

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 as it is."""
        return adapters, {}

    def offer(self, t: int, server: ServerState) -> Offer:
        """d_m up; d_m, or d_M, down."""
        return self.nest.offer(self.nest.counts(), self.nest.counts())

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The slice."""
        return self.nest.lesson(adapters, module)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """The mean."""
        match self.mean:
            case "nested":
                return by_component(adapters, updates)
            case "sum":
                return Combined(weighted_sum(adapters, updates))
            case "fedit":
                return Combined(padded_mean(adapters, updates, self.nest.whole))
            case "flexlora":
                return Combined(mean_product(self.nest, adapters, updates))

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter."""
        return judged(adapters, server)


@dataclass(frozen=True, slots=True)
class HetLora:
    """HetLoRA (Cho et al., EMNLP 2024): models padded to R, weighted by ω_k ‖ΔW_k‖, and devices that prune.

    Padded with zeros, as in the paper, under context "slice"; under the default "whole" with the θ of the round.
    ‖ΔW_k‖² = Σ ‖B_k A_k‖²_F over the device's slice: uploads that carry little count little. Self-pruning: training
    penalises what the next smaller module does without (`tail_norm`), and a device whose tail shrank over its local
    steps trains that smaller module at most from then on. The paper prunes single ranks; here the modules are the
    ranks there are.

    Up and down: as for FedIT. A device of a small module receives the first components. A lost upload neither counts
    nor prunes.
    """

    nest: Nest
    devices: int
    """K."""
    prunes: bool

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0, and the largest module M for every device."""
        return adapters, {"largest": torch.full((self.devices,), len(self.nest.family.ranks))}

    def offer(self, t: int, server: ServerState) -> Offer:
        """d_m up; d_m, or d_M, down; and no module that was pruned."""
        offer = self.nest.offer(self.nest.counts(), self.nest.counts())
        return replace(offer, largest=server.kept["largest"].numpy().astype(np.int64)) if self.prunes else offer

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The slice, with the penalty on what the next smaller module lacks."""
        pruning = module - 1 if self.prunes and module > 1 else None
        return replace(self.nest.lesson(adapters, module), pruning=pruning)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """Sparsity-weighted mean of the padded models, and who prunes."""
        largest = server.kept["largest"].clone()
        seen = self._seen(adapters, updates, largest)
        return Combined(padded_mean(adapters, seen, self.nest.whole), {"largest": largest})

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter."""
        return judged(adapters, server)

    def _seen(self, adapters: Adapters, updates: Iterable[Update], largest: Tensor) -> Iterator[Update]:
        """The updates at their new weights; `largest` is lowered where a device prunes."""
        for update in updates:
            before = self.nest.family.slice(adapters, update.module)
            after = {name: before[name] + tensor for name, tensor in update.delta.items()}
            if self.prunes and update.module > 1:
                tails = (tail_norm(self.nest.family, part, update.module - 1) for part in (after, before))
                if next(tails) < next(tails):
                    largest[update.device] = min(int(largest[update.device]), update.module - 1)
            yield replace(update, weight=update.weight * max(_norm(after), TINY))


TINY = 1e-12
"""Least ‖ΔW_k‖ that weighs an update: with B = 0 all weigh alike."""


def _norm(part: Adapters) -> float:
    """√ Σ ‖BA‖²_F over the matrices of a slice, from the r × r Gram matrices."""
    total = 0.0
    for name in matrices_of(part):
        a, b = part[f"{name}.lora_A"].double(), part[f"{name}.lora_B"].double()
        total += float(((b.t() @ b) * (a @ a.t())).sum())
    return max(total, 0.0) ** 0.5
