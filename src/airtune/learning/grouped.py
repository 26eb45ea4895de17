"""Products with one matrix per device over the rows of many devices, back to back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows of D devices back to back, n_d rows of device d and N in all; made by `groups_of`."""

    sizes: tuple[int, ...]
    """n_1 … n_D."""
    place: Tensor | None
    """[N] index of each row in the D·L rows that devices of L = max n_d rows would have; None for equal n_d."""

    def spread(self, x: Tensor) -> Tensor:
        """Rows [N × in] by device [D × L × in], zeros below a device's last."""
        shape = (len(self.sizes), max(self.sizes), x.shape[-1])
        if self.place is None:
            return x.reshape(shape)
        return x.new_zeros(shape[0] * shape[1], shape[2]).index_copy(0, self.place, x).view(shape)

    def collect(self, y: Tensor) -> Tensor:
        """Rows by device [D × L × out] back to back [N × out]."""
        flat = y.reshape(-1, y.shape[-1])
        return flat if self.place is None else flat.index_select(0, self.place)

    def product(self, x: Tensor, *weights: Tensor) -> Tensor:
        """x_d W_dᵀ V_dᵀ … of each device d, in turn.

        Args:
            x: [N × in].
            weights: stacks [D × out × in]; each takes what the one before it gives.
        """
        y = self.spread(x)
        for weight in weights:
            y = torch.bmm(y, weight.transpose(1, 2))
        return self.collect(y)

    def repeat(self, values: Tensor) -> Tensor:
        """One row per device [D × …] as one per row [N × …]."""
        counts = torch.tensor(self.sizes, device=values.device)
        return values.repeat_interleave(counts, dim=0, output_size=sum(self.sizes))


def groups_of(sizes: Sequence[int], device: torch.device) -> Groups:
    """Groups of these sizes, their index on `device`."""
    longest = max(sizes)
    if min(sizes) == longest:
        return Groups(tuple(sizes), None)
    place = np.concatenate([np.arange(size) + d * longest for d, size in enumerate(sizes)])
    return Groups(tuple(sizes), torch.from_numpy(place).to(device))
