"""What stands in for lost uploads before updates are combined.

Deliveries are not missing at random: the far lose more, and a mean over those delivered leans towards the near.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from airtune.config import LearningConfig
from airtune.learning.lora import Adapters
from airtune.types import Decision, FloatK, Outcome, Update

PREFIX = "last/"
"""Before the names of what is remembered of devices' last updates."""
NOTHING = torch.empty(0)
"""In place of what the update before had and the last one, of a smaller module, has not."""


def compensated(
    config: LearningConfig,
    updates: Iterable[Update],
    decision: Decision,
    outcome: Outcome,
    kept: Mapping[str, Tensor],
    anew: Adapters,
) -> Iterator[Update]:
    """The updates to combine, one at a time.

    - renormalise: those delivered, as they are.
    - inverse: those delivered at weight ω_k / π_k, at most `inverse_cap` · ω_k: inverse-probability weighting (Horvitz
      and Thompson, 1952, under a method that sums; Hájek's ratio under one that takes means). π_k is the predicted (6).
    - carry: those delivered, then the last delivered update of each device that sent and was not heard, at ω_k, as it
      was then (after MIFA, Gu et al., NeurIPS 2021, which does so for all that are absent).

    Args:
        config: `lost` and `inverse_cap`.
        updates: those delivered.
        decision: success probabilities π_k.
        outcome: who sent and who delivered.
        kept: what is remembered of earlier rounds.
        anew: where what is to be remembered of this one is put.
    """
    match config.lost:
        case "renormalise":
            yield from updates
        case "inverse":
            chance = chances(config, decision)
            for update in updates:
                yield replace(update, weight=update.weight / float(chance[update.device]))
        case "carry":
            last = _last(kept)
            for update in updates:
                old = last.get(update.device, {})
                anew.update({_key(update.device, name): NOTHING for name in old.keys() - update.delta.keys()})
                anew.update({_key(update.device, name): tensor for name, tensor in update.delta.items()})
                anew[_key(update.device, "")] = torch.tensor([update.module, update.weight], dtype=torch.float64)
                yield update
            for device in map(int, np.flatnonzero(outcome.scheduled & ~outcome.delivered)):
                if device in last:
                    module, weight = last[device].pop("").tolist()
                    yield Update(device, int(module), weight, last[device], 0.0)


def chances(config: LearningConfig, decision: Decision) -> FloatK:
    """By what a delivered update's ω_k is divided: max(π_k, 1 / `inverse_cap`) under "inverse", else 1; shape K."""
    if config.lost != "inverse":
        return np.ones_like(decision.success_probability)
    return np.maximum(decision.success_probability, 1.0 / config.inverse_cap)


def _last(kept: Mapping[str, Tensor]) -> dict[int, Adapters]:
    """The last delivered update of each device that ever delivered one; under "" its module and weight."""
    last: dict[int, Adapters] = {}
    for key, tensor in kept.items():
        if key.startswith(PREFIX) and tensor.numel():
            device, name = key.removeprefix(PREFIX).split("/", 1)
            last.setdefault(int(device), {})[name] = tensor
    return last


def _key(device: int, name: str) -> str:
    return f"{PREFIX}{device}/{name}"
