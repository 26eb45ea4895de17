"""Next-token logits of the responses alone: the head never runs on the prompt, packed or padded."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.bucketing import Bucketer
from airtune.learning.data import TokenSet
from airtune.learning.packing import Packer


class LanguagePacker(Packer):
    """Runs a causal language model on packed batches; `logits` is [P × V], a row for each response token."""

    prunes = False

    def classify(self, count: int) -> Tensor:
        """Logits [P × V] of what the backbone hands on."""
        return super().classify(count)[0]


class LanguageBucketer(Bucketer):
    """Runs a causal language model on padded batches, sample order kept; `logits` is [P × V]."""

    def logits(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """Logits [P × V] of the response tokens of the samples `index`, each read at the token before it."""
        chunks = np.split(index, range(self.chunk, len(index), self.chunk))
        return torch.cat([self._responses(tokens, chunk) for chunk in chunks])

    def _responses(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        logits: Any = self._padded(tokens, index)
        ends, counts = tokens.lengths[index], tokens.response_lengths[index]
        rows = [logits[i, end - count - 1 : end - 1] for i, (end, count) in enumerate(zip(ends, counts, strict=True))]
        return torch.cat(rows)
