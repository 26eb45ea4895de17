"""How samples become batches (`Batcher`), and the padded way, which every model takes: little padding by sorting."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.data import TokenSet
from airtune.types import AirtuneError


@runtime_checkable
class Batcher(Protocol):
    """Lays samples out and runs the classifier on them."""

    layout: str

    def logits(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """Class scores [S × classes] of the samples `index`."""
        ...


def _ensure_padding(model: Any) -> None:
    """Give a decoder that knows no padding token its end token for one: its head refuses batches without."""
    config = model.config.get_text_config()
    if config.pad_token_id is not None:
        return
    end = config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    if end is None:
        raise AirtuneError("model.name: it has no pad_token_id and no eos_token_id; set one in its config.json")
    config.pad_token_id = end


class Bucketer:
    """Runs a classifier on padded batches, split into chunks of similar length so that little is padding."""

    layout = "bucketed"
    chunk = 8

    def __init__(self, model: Any) -> None:
        _ensure_padding(model)
        self.model = model
        self.pad = model.config.get_text_config().pad_token_id

    def logits(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """Class scores [S × classes] of the samples `index`."""
        lengths = tokens.offsets[index + 1] - tokens.offsets[index]
        order = np.argsort(lengths, kind="stable")
        chunks = np.split(order, range(self.chunk, len(order), self.chunk))
        scores = torch.cat([self._padded(tokens, index[chunk]) for chunk in chunks])
        return scores[torch.from_numpy(np.argsort(order, kind="stable")).to(scores.device)]

    def _padded(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        lengths = tokens.offsets[index + 1] - tokens.offsets[index]
        real = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
        source = np.concatenate([np.arange(*map(int, tokens.offsets[i : i + 2])) for i in index])
        ids = np.full(real.shape, self.pad, dtype=np.int64)
        ids[real] = tokens.ids[source]
        options: dict[str, Tensor] = {}
        if tokens.type_ids is not None:
            types = np.zeros(real.shape, dtype=np.int64)
            types[real] = tokens.type_ids[source]
            options["token_type_ids"] = torch.from_numpy(types).to(self.model.device)
        mask = torch.from_numpy(real.astype(np.int64)).to(self.model.device)
        return self.model(input_ids=torch.from_numpy(ids).to(mask.device), attention_mask=mask, **options).logits
