"""Where the tokens of a packed batch lie: back to back for linear layers, in rows of whole sequences for attention."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.data import TokenSet


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One packed batch of S sequences and N tokens."""

    input_ids: Tensor
    """[1 × N]"""
    type_ids: Tensor | None
    """[1 × N]"""
    position: Tensor
    """[1 × N], from 0 in each sequence."""
    rows: Tensor
    """[S × L] index into the N tokens, padding pointing at the sequence's first token."""
    keep: Tensor | None
    """[S × 1 × 1 × L] true at real tokens; None if all sequences have the same length."""
    cells: Tensor
    """[R × L] index into the N tokens, R ≤ S rows filled with whole sequences; a cell left over points at token 0."""
    seen: Tensor | None
    """[R × 1 × L × L] true where both cells are of one sequence or both left over; None if sequences fill the rows."""
    back: Tensor
    """[N] index into the R·L cells."""
    first: Tensor
    """[S] index of each sequence's first token."""
    last: Tensor
    """[S] index of each sequence's last token."""
    start: NDArray[np.int64]
    """[S + 1] index of each sequence's first token, and N; never on a device."""
    read: Tensor | None = None
    """[P] index of the tokens before each response token; None where the samples have no responses."""

    def to(self, device: torch.device) -> "Packed":
        """The batch on another device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value: Any = getattr(self, field.name)
            moved[field.name] = value.to(device) if isinstance(value, Tensor) else value
        return Packed(**moved)


def pack(tokens: TokenSet, index: NDArray[np.int64]) -> Packed:
    """Lay the samples `index` back to back."""
    lengths = (tokens.offsets[index + 1] - tokens.offsets[index]).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total, longest = int(starts[-1]), int(lengths.max())
    position = np.arange(total) - np.repeat(starts[:-1], lengths)
    source = np.repeat(tokens.offsets[index], lengths) + position
    column = np.arange(longest)
    real = column[None, :] < lengths[:, None]
    rows = np.where(real, starts[:-1, None] + column[None, :], starts[:-1, None])
    begin = _placed(lengths, longest)
    back = np.repeat(begin, lengths) + position
    cells = np.zeros((int(begin.max()) // longest + 1, longest), dtype=np.int64)
    owner = np.full(cells.shape, -1)
    cells.flat[back], owner.flat[back] = np.arange(total), np.repeat(np.arange(len(index)), lengths)
    return Packed(
        input_ids=torch.from_numpy(tokens.ids[source].astype(np.int64))[None],
        type_ids=None if tokens.type_ids is None else torch.from_numpy(tokens.type_ids[source].astype(np.int64))[None],
        position=torch.from_numpy(position)[None],
        rows=torch.from_numpy(rows),
        keep=None if real.all() else torch.from_numpy(real)[:, None, None, :],
        cells=torch.from_numpy(cells),
        seen=None if real.all() else torch.from_numpy(owner[:, None, :, None] == owner[:, None, None, :]),
        back=torch.from_numpy(back),
        first=torch.from_numpy(starts[:-1].copy()),
        last=torch.from_numpy(starts[1:] - 1),
        start=starts,
        read=None if tokens.response is None else torch.from_numpy(_before_responses(tokens, index, starts)),
    )


def _placed(lengths: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """First cell of each sequence in rows of `longest` cells, counted row after row.

    The longest come first, each in the first row that has room for it.
    """
    free = np.full(len(lengths), longest)
    begin = np.empty(len(lengths), dtype=np.int64)
    for i in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(free >= lengths[i]))
        begin[i] = (row + 1) * longest - free[row]
        free[row] -= lengths[i]
    return begin


def _before_responses(tokens: TokenSet, index: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where, in the packed row, the token before each response token lies."""
    shift = starts[:-1] - tokens.offsets[index] - 1
    return tokens.responses(index) + np.repeat(shift, tokens.response_lengths[index])
