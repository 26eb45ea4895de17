"""What a device can tell of its gradient at θ_t from the first local step that it takes anyway, §7.

The first batch runs as two halves whose gradients add up to the batch's: no second backward pass. Their difference
tells the batch's noise. Both are taken where the device starts, so neither local drift nor the local optimiser nor
clipping enters; the spread of the later steps does not serve, because a step on one batch changes the gradient of the
next.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.lora import Family


def halves(index: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """A batch in two, every other sample; undivided if it has but one."""
    return [index[0::2], index[1::2]] if len(index) > 1 else [index]


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Of the first batch's gradient, by nested increment."""

    energy: NDArray[np.float64]
    """Its squared norm, shape M; 0 beyond the module."""
    noise: NDArray[np.float64] | None
    """Unbiased estimate of what mini-batch noise adds to `energy`, shape M; None from a batch of one."""


class Meter:
    """Energy and noise of the first batch's gradient by nested increment.

    With n_A and n_B samples and mean gradients g_A and g_B, ‖g_A − g_B‖² n_A n_B / n² is unbiased for the variance of
    the batch's mean gradient if the samples are independent, also within strata that both halves share alike.

    Args:
        family: the nested family.
        part: the slice, leaves that gradients add up in.
        parts: the batch's halves.
    """

    def __init__(self, family: Family, part: Mapping[str, Tensor], parts: list[NDArray[np.int64]]) -> None:
        self._modules = len(family.ranks)
        self._increment = {name: family.increments(name, tensor) for name, tensor in part.items()}
        self._part = part
        self._share = len(parts[0]) / sum(map(len, parts))
        self._noted: list[dict[str, Tensor]] = []

    def note(self) -> None:
        """Take note of the gradient as it stands in the leaves, after each half."""
        self._noted.append(self._gradient())

    def read(self) -> Reading:
        """Energy of the whole batch's gradient and its noise; no noise from one sample."""
        first, whole = self._noted[0], self._noted[-1]
        energy = self._energy(whole)
        if len(self._noted) == 1:
            return Reading(energy, None)
        a = self._share
        apart = {name: first[name] / a - (whole[name] - first[name]) / (1.0 - a) for name in whole}
        return Reading(energy, a * (1.0 - a) * self._energy(apart))

    def _gradient(self) -> dict[str, Tensor]:
        return {name: leaf.grad.clone() for name, leaf in self._part.items() if leaf.grad is not None}

    def _energy(self, gradient: Mapping[str, Tensor]) -> NDArray[np.float64]:
        total = np.zeros(self._modules)
        for name, tensor in gradient.items():
            dims = {"lora_A": 1, "lora_B": 0}.get(name.rsplit(".", 1)[-1])
            square = tensor.double().square()
            component = square.sum().reshape(1) if dims is None else square.sum(dims)
            total += np.bincount(self._increment[name], component.cpu().numpy(), minlength=self._modules)
        return total
