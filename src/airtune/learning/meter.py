"""What a device can tell of its pseudo-gradient's energy and noise from the local steps that it takes anyway, §8."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.lora import Family


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of one round."""

    adapter: float
    head: float
    server: float
    """Factor of the server's step."""


class Meter:
    """Squared norms, by nested increment, of what the local optimiser moves per step and in all, over its rate.

    With SGD without decay a step over its rate is the (clipped) gradient, and the mean over the E steps the
    pseudo-gradient ĝ. Were the steps' gradients independent with one mean, Σ_e ‖g_e − ĝ‖² / (E (E − 1)) would be
    unbiased for the variance of ĝ; what the gradient drifts within the E steps is counted as noise besides. With AdamW
    a step is what Adam makes of the gradient: then the numbers describe updates, and their noise too little, for its
    steps share moments.

    Args:
        family: the nested family.
        part: the slice before the first step, its leaves.
        rates: this round's learning rates.
    """

    def __init__(self, family: Family, part: Mapping[str, Tensor], rates: Rates) -> None:
        self._modules = len(family.ranks)
        head = {name for name, _ in family.head}
        self._rate = {name: rates.head if name in head else rates.adapter for name in part}
        self._increment = {name: family.increments(name, tensor) for name, tensor in part.items()}
        self._before = _copy(part)
        self._square = np.zeros(self._modules)
        self._steps = 0

    def step(self, part: Mapping[str, Tensor]) -> None:
        """Take note of one step; `part` is the slice after it."""
        after = _copy(part)
        self._square += self._energy({name: after[name] - self._before[name] for name in after})
        self._before = after
        self._steps += 1

    def read(self, delta: Mapping[str, Tensor]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Energy of the pseudo-gradient and an unbiased estimate of its noise, shape M each; no noise from one step."""
        count = self._steps
        energy = self._energy(delta) / count**2
        if count < 2:
            return energy, None
        return energy, np.maximum(self._square - count * energy, 0.0) / (count * (count - 1))

    def _energy(self, moved: Mapping[str, Tensor]) -> NDArray[np.float64]:
        total = np.zeros(self._modules)
        for name, tensor in moved.items():
            dims = {"lora_A": 1, "lora_B": 0}.get(name.rsplit(".", 1)[-1])
            square = (tensor / self._rate[name]).square()
            component = square.sum().reshape(1) if dims is None else square.sum(dims)
            total += np.bincount(self._increment[name], component.double().numpy(), minlength=self._modules)
        return total


def _copy(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: tensor.detach().clone() for name, tensor in part.items()}
