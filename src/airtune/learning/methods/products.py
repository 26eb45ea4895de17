"""Averages of the products BA rather than of the factors: the mean product, FLoRA, FedEx-LoRA."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from airtune.learning.aggregate import padded_mean
from airtune.learning.factors import Stack, balanced_factors
from airtune.learning.lora import Adapters
from airtune.learning.method import Combined, Nest, judged, matrices_of
from airtune.learning.server import ServerState, is_merged
from airtune.types import Lesson, Offer, Update


def mean_product(nest: Nest, adapters: Adapters, updates: Iterable[Update]) -> Adapters:
    """The change to the R greatest singular components of the mean product Σ p_k B_k A_k, and to the mean of the heads.

    p_k = ω_k over the weight delivered. From stacked factors, by QR and a small SVD. A's rows keep their mean norm.
    """
    names, weight = matrices_of(adapters), 0.0
    heads = {name: adapters[name] for name, _ in nest.family.head}
    stacks = {name: Stack.empty(len(adapters[f"{name}.lora_B"]), adapters[f"{name}.lora_A"].shape[1]) for name in names}
    total = {name: torch.zeros_like(tensor) for name, tensor in heads.items()}
    for update in updates:
        weight += update.weight
        model = nest.model(adapters, update)
        for name in names:
            stacks[name].add(model[f"{name}.lora_B"], model[f"{name}.lora_A"], update.weight)
        for name in heads:
            total[name] += update.weight * update.delta[name]
    change = {name: tensor / weight for name, tensor in total.items()}
    for name in names:
        a, b = adapters[f"{name}.lora_A"], adapters[f"{name}.lora_B"]
        stack = stacks[name]
        if not bool(stack.b.any()):
            continue
        size = float(a.double().norm()) / len(a) ** 0.5
        new_b, new_a = balanced_factors(stack.b / weight, stack.a, len(a), size)
        change[f"{name}.lora_A"], change[f"{name}.lora_B"] = new_a.to(a.dtype) - a, new_b.to(b.dtype) - b
    return change


@dataclass(frozen=True, slots=True)
class Flora:
    """FLoRA (Wang et al., NeurIPS 2024): the updates are stacked, so their mean product is exact, and merged into W.

    W ← W + Σ p_k (α/R) B_k A_k, p_k = ω_k over the weight delivered; then every device starts from a fresh A and B = 0.
    Stacking multiplies each pair by p_k once, and by the scale α/r with which it was trained: the family has one scale,
    α/R, for every module. (An implementation that trains with α/r_k and merges with another scale is wrong by their
    ratio.)

    Up: the slice of A and B, and the head. Down: the head and all the pairs delivered in the round before, or the dense
    change where that is smaller; fresh factors follow from the seed. Counted as if devices that sit out listened
    too: under `fleet.active` or `availability` below 1 what the absent lack is left out. A device of a small module
    starts from the first fresh components; it carries all that was merged. A lost upload is not in the stack. An
    adapter that the run starts from is merged before round 0, and comes down in it.
    """

    nest: Nest
    seed: int

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 and no change of the frozen weights; (α/R) B A of an adapter that the run starts from is merged first."""
        start, rows = adapters | _unmerged(adapters), dict[str, int]()
        for name in matrices_of(adapters):
            a, b = adapters[f"{name}.lora_A"], adapters[f"{name}.lora_B"]
            if rank := int(b.any(dim=0).sum()):
                rows[name] = rank
                start[f"{name}.merged"] = self.nest.family.scale * (b @ a)
                start[f"{name}.lora_B"] = torch.zeros_like(b)
        if rows:
            fresh = self.nest.family.initial(self.seed)
            start |= {f"{name}.lora_A": fresh[f"{name}.lora_A"] for name in rows}
        return start, {"merged_parameters": _parameters(adapters, rows)}

    def offer(self, t: int, server: ServerState) -> Offer:
        """d_m up; the head and last round's stack down."""
        head = np.full_like(self.nest.counts(), self.nest.family.head_parameters)
        return self.nest.offer(self.nest.counts(), head, int(server.kept["merged_parameters"]))

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The slice of fresh factors over the merged weights."""
        return self.nest.lesson(adapters, module)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """The stacked products merged, the mean of the heads, fresh A."""
        family, weight, names = self.nest.family, 0.0, matrices_of(adapters)
        total = {name: torch.zeros_like(tensor) for name, tensor in _unmerged(adapters).items()}
        total |= {name: torch.zeros_like(adapters[name]) for name, _ in family.head}
        rows = dict.fromkeys(names, 0)
        for update in updates:
            weight += update.weight
            trained = family.slice(adapters, update.module)
            for name in matrices_of(trained):
                a, b = (trained[f"{name}.{x}"] + update.delta[f"{name}.{x}"] for x in ("lora_A", "lora_B"))
                total[f"{name}.merged"] += (update.weight * family.scale) * (b @ a)
                rows[name] += len(a)
            for name, _ in family.head:
                total[name] += update.weight * update.delta[name]
        change = {name: tensor / weight for name, tensor in total.items()}
        fresh = family.initial(self.seed, t + 1)
        change |= {f"{name}.lora_A": fresh[f"{name}.lora_A"] - adapters[f"{name}.lora_A"] for name in names}
        return Combined(change, {"merged_parameters": _parameters(adapters, rows)})

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter with what was merged."""
        return judged(adapters, server)


@dataclass(frozen=True, slots=True)
class FedEx:
    """FedEx-LoRA (Singhal et al., ACL 2025): FedIT's means of A and B, and what they miss merged into W.

    W ← W + (α/R) (Σ p_k B_k A_k − B̄ Ā), p_k = ω_k over the weight delivered, with models padded as for FedIT.

    Up: the slice of A and B, and the head. Down: the means, and the residual of the round before by factors of its
    rank, or dense where that is smaller. For each matrix that rank is at most Σ r_k − min r_k over those who delivered,
    r_k = 0 where a device does not hold it: what they miss is Σ p_k (b_k − b̄)(a_k − ā)ᵀ of each component, those
    without it counting as one point (θ, or 0 under context "slice"), and n points span n − 1 differences. Counted as if
    devices that sit out listened too: under `fleet.active` or `availability` below 1 what the absent lack is left out.
    A device of a small module receives the first components of the means and the whole residual. A lost upload takes no
    part in means or residual.
    """

    nest: Nest

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 and no change of the frozen weights."""
        return adapters | _unmerged(adapters), {"merged_parameters": torch.tensor(0)}

    def offer(self, t: int, server: ServerState) -> Offer:
        """d_m up; d_m, or d_M, and last round's residual down."""
        return self.nest.offer(self.nest.counts(), self.nest.counts(), int(server.kept["merged_parameters"]))

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The slice over the merged weights."""
        return self.nest.lesson(adapters, module)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """The means, and the mean product less their product."""
        products = {name: torch.zeros_like(tensor) for name, tensor in _unmerged(adapters).items()}
        names, weights = matrices_of(adapters), list[float]()
        ranks = {name: list[int]() for name in names}

        def seen() -> Iterable[Update]:
            for update in updates:
                weights.append(update.weight)
                model = self.nest.model(adapters, update)
                for name in names:
                    product = model[f"{name}.lora_B"] @ model[f"{name}.lora_A"]
                    products[f"{name}.merged"] += update.weight * product
                    ranks[name].append(len(update.delta.get(f"{name}.lora_A", ())))
                yield update

        plain = {name: tensor for name, tensor in adapters.items() if not is_merged(name)}
        change = padded_mean(plain, seen(), self.nest.whole)
        for name in names:
            a, b = (adapters[f"{name}.{x}"] + change[f"{name}.{x}"] for x in ("lora_A", "lora_B"))
            change[f"{name}.merged"] = self.nest.family.scale * (products[f"{name}.merged"] / sum(weights) - b @ a)
        rows = {name: sum(held) - min(held) for name, held in ranks.items()}
        return Combined(change, {"merged_parameters": _parameters(adapters, rows)})

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter with what was merged."""
        return judged(adapters, server)


def _unmerged(adapters: Adapters) -> Adapters:
    """A zero change of every adapted matrix."""
    return {
        f"{name}.merged": adapters[f"{name}.lora_A"].new_zeros(
            len(adapters[f"{name}.lora_B"]), adapters[f"{name}.lora_A"].shape[1]
        )
        for name in matrices_of(adapters)
    }


def _parameters(adapters: Adapters, rows: dict[str, int]) -> Tensor:
    """Parameters of a change of the frozen weights, as `rows` pairs of vectors or dense, whichever is less."""
    shapes = {name: (len(adapters[f"{name}.lora_B"]), adapters[f"{name}.lora_A"].shape[1]) for name in rows}
    return torch.tensor(sum(min(tall * wide, rows[name] * (tall + wide)) for name, (tall, wide) in shapes.items()))
