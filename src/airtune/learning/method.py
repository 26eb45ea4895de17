"""What a federated LoRA method is: what devices receive and train, what they send, and how the server combines it.

Every method is one class of `methods/`, and its docstring says all of that, with its source, and what becomes of a lost
upload. A device's model is what it computed with: beyond its module that is the global adapter under
`learning.context = "whole"`, nothing under "slice"; so are its factors padded where a method combines whole models.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.config import ModulesConfig
from airtune.learning.aggregate import renormalised_mean
from airtune.learning.lora import Adapters, Family
from airtune.learning.server import ServerState, is_merged
from airtune.learning.workload import payload_bits
from airtune.types import Lesson, Offer, Update


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """What a round's updates come to."""

    change: Adapters
    """Δ of the tensors of θ that move; the server's optimiser takes it from here."""
    kept: Adapters = field(default_factory=dict[str, Tensor])
    """What the method remembers anew, by names of its own."""
    share: Adapters = field(default_factory=dict[str, Tensor])
    """Of components that only some devices train, their share of the delivered weight, broadcastable; 1 if not here."""


def by_component(adapters: Mapping[str, Tensor], updates: Iterable[Update]) -> Combined:
    """Renormalised mean of each component, with its share of the delivered weight."""
    change, share = renormalised_mean(adapters, updates)
    return Combined(change, share=share)


@runtime_checkable
class Method(Protocol):
    """A federated LoRA method; free of state: what it remembers is in `ServerState.kept`."""

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 as the method needs it, and what it remembers at first, from the family's initial adapter."""
        ...

    def offer(self, t: int, server: ServerState) -> Offer | None:
        """What is sent up and down in round t; None for the sizes of the modules."""
        ...

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """What a device with module m = 1…M computes with and trains in round t."""
        ...

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """The change that the delivered updates make, taken up one at a time; at least one is delivered."""
        ...

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The adapters that are judged: one, or those of the devices where each keeps a part of its own."""
        ...


@dataclass(frozen=True, slots=True)
class Nest:
    """The nested family as methods use it: slices, padding, and bits on the air."""

    family: Family
    sizes: ModulesConfig
    whole: bool
    """Whether a device computes with the whole global adapter, of which it trains its slice."""

    def lesson(self, adapters: Mapping[str, Tensor], module: int) -> Lesson:
        """The slice to train, the rest of θ and all that was merged into the frozen weights."""
        rest = self.family.rest(adapters, module) if self.whole else {}
        merged = {name: tensor for name, tensor in adapters.items() if is_merged(name)}
        return Lesson(start=self.family.slice(adapters, module), rest=rest | merged)

    def model(self, adapters: Mapping[str, Tensor], update: Update) -> Adapters:
        """θ_k [R components each]: what device k computed with at the end, its slice trained, padded beyond it."""
        trained = self.family.slice(adapters, update.module)
        model: Adapters = {}
        for name, tensor in adapters.items():
            if is_merged(name):
                continue
            model[name] = tensor.clone() if self.whole else torch.zeros_like(tensor)
            if name in trained:
                place = tuple(slice(0, size) for size in trained[name].shape)
                model[name][place] = trained[name] + update.delta.get(name, 0.0)
        return model

    def counts(self, factor: Literal["lora_A", "lora_B"] | None = None) -> NDArray[np.int64]:
        """Parameters of each module, shape M: with the task head, of both factors or of one alone."""
        modules = range(1, len(self.family.ranks) + 1)
        return np.array([self.family.parameters(module, factor) for module in modules], dtype=np.int64)

    def offer(self, up: NDArray[np.int64], down: NDArray[np.int64], extra: int = 0) -> Offer:
        """Bits from parameters up and down for each module; a whole adapter comes down where devices compute with it.

        Args:
            up: parameters sent up, shape M.
            down: of the slice that comes down, shape M.
            extra: parameters that come down to everybody besides.
        """
        down = np.full_like(down, down[-1]) if self.whole else down
        return Offer(payload_bits(self.sizes, up), payload_bits(self.sizes, down + extra))


def matrices_of(adapters: Mapping[str, Tensor]) -> list[str]:
    """Names of the adapted matrices."""
    return [name.removesuffix(".lora_A") for name in adapters if name.endswith(".lora_A")]


def judged(adapters: Mapping[str, Tensor], server: ServerState) -> tuple[Adapters, ...]:
    """The one adapter that most methods have."""
    del server
    return (dict(adapters),)
