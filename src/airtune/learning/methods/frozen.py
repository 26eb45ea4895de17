"""Methods that train one factor at a time, so that the mean of the products is the product of the means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from airtune.learning.lora import Adapters
from airtune.learning.method import Combined, Nest, by_component, judged
from airtune.learning.server import ServerState
from airtune.types import Lesson, Offer, Update


@dataclass(frozen=True, slots=True)
class FactorMethod:
    """One factor is trained in a round and the other held still.

    - `ffa`: FFA-LoRA (Sun et al., ICLR 2024): A stays as it was drawn, B is trained in every round.
    - `rolora`: RoLoRA (Chen et al., arXiv 2409.02346): B in even rounds, A in odd ones.

    Means are taken over those who delivered a component, weighted by ω_k; the other factor being the same everywhere,
    they are exact. Up: the trained factor's slice and the head. Down: `ffa`: the same (A follows from the seed);
    `rolora`: the factor that was trained in the round before, and the head, as if devices that sit out listened too:
    under `fleet.active` or `availability` below 1 what the absent lack is left out. A device of a small module receives
    the first components. A lost upload takes no part in the mean.
    """

    nest: Nest
    turns: Literal["ffa", "rolora"]

    def start(self, adapters: Adapters) -> tuple[Adapters, Adapters]:
        """θ_0 as it is."""
        return adapters, {}

    def offer(self, t: int, server: ServerState) -> Offer:
        """One factor each way."""
        return self.nest.offer(self.nest.counts(self._factor(t)), self.nest.counts(self._factor(t - 1)))

    def lesson(self, t: int, adapters: Adapters, server: ServerState, device: int, module: int) -> Lesson:
        """The slice, one factor of it to be trained."""
        lesson, factor = self.nest.lesson(adapters, module), self._factor(t)
        held = {name for name in lesson.start if name.endswith((".lora_A", ".lora_B")) and not name.endswith(factor)}
        start = {name: tensor for name, tensor in lesson.start.items() if name not in held}
        return Lesson(start, {name: lesson.start[name] for name in held}, lesson.rest)

    def combine(self, t: int, adapters: Adapters, server: ServerState, updates: Iterable[Update]) -> Combined:
        """Mean of the trained factor and of the head."""
        held = "lora_A" if self._factor(t) == "lora_B" else "lora_B"
        moving = {name: tensor for name, tensor in adapters.items() if not name.endswith(held)}
        return by_component(moving, updates)

    def models(self, adapters: Adapters, server: ServerState) -> tuple[Adapters, ...]:
        """The global adapter."""
        return judged(adapters, server)

    def _factor(self, t: int) -> Literal["lora_A", "lora_B"]:
        """Which factor round t trains."""
        return "lora_A" if self.turns == "rolora" and t % 2 else "lora_B"
