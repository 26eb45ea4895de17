"""A method whose devices keep a factor of their own: FedSA-LoRA."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from airtune.learning.aggregate import renormalised_mean
from airtune.learning.lora import Adapters, add_scaled
from airtune.learning.method import Combined, Nest
from airtune.learning.server import ServerState
from airtune.types import Lesson, Offer, Update


@dataclass(frozen=True, slots=True)
class FedSa:
    """FedSA-LoRA (Guo et al., ICLR 2025): A is shared, B stays with its device.

    A and the head are means over those who delivered a component, weighted by ω_k. Up: the slice of A, and the head.
    Down: the same, or all of A under context "whole". A device of a small module receives the first rows of A and
    trains the matching columns of its own B. A device whose upload is lost keeps A, B and head of before the round: B
    follows A only when the server has acknowledged it. Simulation keeps the B of every device that ever delivered.

    Judged is the mean device: each dev sample by the model of one of the devices that ever delivered, in turn. B of the
    global adapter, which is exported, is the mean of theirs: no device runs it.
    """

    nest: Nest

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 as it is; B of an adapter that the run starts from is every device's first."""
        return adapters, {f"first/{name}": b for name, b in adapters.items() if name.endswith(".lora_B") and b.any()}

    def offer(self, t: int, server: ServerState) -> Offer:
        """A and head each way."""
        return self.nest.offer(self.nest.counts("lora_A"), self.nest.counts("lora_A"))

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The shared slice of A and the device's own B."""
        return self.nest.lesson(self._model(adapters, server, device), module)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """Mean of A and head; each device's B as it trained it."""
        kept: Adapters = {}

        def seen() -> Iterable[Update]:
            for update in updates:
                own = {name: tensor for name, tensor in update.delta.items() if name.endswith(".lora_B")}
                model = self._model(adapters, server, update.device)
                trained = {name: model[name].clone() for name in model if name.endswith(".lora_B")}
                add_scaled(trained, own.items(), 1.0)
                kept.update({_key(update.device, name): tensor for name, tensor in trained.items()})
                yield replace(update, delta={name: tensor for name, tensor in update.delta.items() if name not in own})

        shared = {name: tensor for name, tensor in adapters.items() if not name.endswith(".lora_B")}
        change, share = renormalised_mean(shared, seen())
        everyone = self.models(adapters, replace(server, kept={**server.kept, **kept}))
        for name in adapters.keys() - shared.keys():
            mean = sum((model[name] for model in everyone[1:]), everyone[0][name]) / len(everyone)
            change[name] = mean - adapters[name]
        return Combined(change, kept, share)

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The model of every device that ever delivered; the global adapter before any did."""
        devices = sorted({int(name.split("/")[1]) for name in server.kept if name.startswith("own/")})
        return tuple(self._model(adapters, server, device) for device in devices) or (dict(adapters),)

    def _model(self, adapters: Mapping[str, Tensor], server: ServerState, device: int) -> Adapters:
        """A and head as shared, B as the device has it: zero, or the start's, before its first delivery."""

        def own(name: str, tensor: Tensor) -> Tensor:
            return server.kept.get(_key(device, name), server.kept.get(f"first/{name}", 0.0 * tensor))

        return {name: own(name, tensor) if name.endswith(".lora_B") else tensor for name, tensor in adapters.items()}


def _key(device: int, name: str) -> str:
    return f"own/{device}/{name}"
