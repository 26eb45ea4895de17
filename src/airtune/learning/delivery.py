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
from airtune.types import Decision, Outcome, Update


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
            for update in updates:
                chance = max(float(decision.success_probability[update.device]), 1.0 / config.inverse_cap)
                yield replace(update, weight=update.weight / chance)
        case "carry":
            for update in updates:
                anew.update({_key(update.device, name): tensor for name, tensor in update.delta.items()})
                anew[_key(update.device, "")] = torch.tensor([update.module, update.weight], dtype=torch.float64)
                yield update
            yield from _last(np.flatnonzero(outcome.scheduled & ~outcome.delivered).tolist(), kept)


def _last(devices: Iterable[int], kept: Mapping[str, Tensor]) -> Iterator[Update]:
    """The last delivered update of each of the devices that ever delivered one."""
    for device in devices:
        if _key(device, "") in kept:
            prefix, facts = _key(device, ""), kept[_key(device, "")]
            delta = {
                name.removeprefix(prefix): x for name, x in kept.items() if name.startswith(prefix) and name != prefix
            }
            yield Update(device, int(facts[0]), float(facts[1]), delta, 0.0)


def _key(device: int, name: str) -> str:
    return f"last/{device}/{name}"
