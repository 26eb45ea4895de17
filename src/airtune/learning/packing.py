"""Sequences back to back: no padding in any linear layer, attention within each sequence only.

A packed batch is one row of N tokens. Hugging Face models call a registered attention function; ours gathers the
sequences into rows as long as the longest, several short ones to a row, for the attention product alone, and scatters
the result back. `batcher_of` compares logits with the plain padded model once, so a model that this does not suit is
found out before training, and padded batches of similar length are used instead.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.utils import logging

from airtune.learning.attending import attend, attends
from airtune.learning.bucketing import Batcher, Bucketer
from airtune.learning.data import TokenSet
from airtune.learning.lora import NestedLinear
from airtune.learning.packed import Packed, pack
from airtune.learning.prefix import Prefix
from airtune.learning.pruning import embeddings_of, is_causal, last_layer
from airtune.types import AirtuneError

ATTENTION = "airtune_packed"
TOLERANCE = 1e-4
"""Largest difference between packed and padded logits, relative to the largest logit."""
FAILURES = (TypeError, ValueError, RuntimeError, KeyError, AttributeError, IndexError)
"""What a model raises that is not of the structure expected."""


_current = SimpleNamespace(batch=None)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of one packed row: [1 × heads × N × d] to [1 × N × heads × d]."""
    batch: Packed = _current.batch
    size, longest = batch.cells.shape
    causal, window = bool(getattr(module, "is_causal", False)), options.get("sliding_window")
    if attends(query, value, longest):
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return attend(query[0], key[0], value[0], batch.start, scale, causal, window).transpose(0, 1)[None], None

    def unfold(x: Tensor) -> Tensor:
        flat = x[0].transpose(0, 1).reshape(x.shape[2], -1)
        cells = functional.embedding(batch.cells, flat)
        return cells.view(size, longest, x.shape[1], x.shape[3]).transpose(1, 2)

    mask, causal = _mask(batch, causal, window)
    out = functional.scaled_dot_product_attention(
        unfold(query),
        unfold(key),
        unfold(value),
        attn_mask=mask,
        is_causal=causal,
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    flat = out.transpose(1, 2).reshape(size * longest, -1)
    return flat[batch.back].view(1, -1, query.shape[1], query.shape[3]), None


def _mask(batch: Packed, causal: bool, window: int | None) -> tuple[Tensor | None, bool]:
    """Which cells each cell sees, [R × 1 × L × L] or broadcastable to it, and whether attention is causal besides.

    With a window, tokens less than it apart are seen. Every cell sees itself: one that sees nothing would give NaN.
    """
    longest = batch.cells.shape[1]
    if window is None or longest <= window:
        if batch.seen is None or not causal:
            return batch.seen, causal
        return batch.seen.tril(), False
    place = torch.arange(longest, device=batch.cells.device)
    near = (place[:, None] - place[None, :]).abs() < window
    near = near.tril() if causal else near
    return near if batch.seen is None else near & batch.seen, False


class PackedBackbone(nn.Module):
    """Stands in for a classifier's backbone: runs it on the packed row, hands the pooled tokens on as [S × 1 × H].

    The classifier's own head then works on them unchanged, whatever it is.
    """

    def __init__(self, backbone: nn.Module, causal: bool, position_offset: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.causal = causal
        self.position_offset = position_offset
        self._whole: tuple[nn.ModuleList, nn.Module] | None = None

    def prune(self) -> bool:
        """Run the last layer for the pooled tokens only; returns whether its structure is known."""
        known = last_layer(self.backbone)
        if known is not None:
            layers, kind = known
            self._whole = layers, layers[-1]
            layers[-1] = kind(layers[-1], self._pooling)
        return known is not None

    def restore(self) -> None:
        """Run the whole last layer again."""
        if self._whole is not None:
            layers, last = self._whole
            layers[-1] = last
        self._whole = None

    @property
    def pruned(self) -> bool:
        """Whether the last layer runs for the pooled tokens only."""
        return self._whole is not None

    @property
    def layers(self) -> nn.ModuleList | None:
        """The backbone's layers; None if its structure is not known."""
        if self._whole is not None:
            return self._whole[0]
        known = last_layer(self.backbone)
        return None if known is None else known[0]

    def _pooling(self) -> tuple[Packed, Tensor, Tensor]:
        """The current batch, the index of its pooled tokens and their positions."""
        batch: Packed = _current.batch
        index = batch.last if self.causal else batch.first
        return batch, index, batch.position[0, index]

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Backbone on the current packed batch; arguments are those of the head's call and are not used."""
        batch: Packed = _current.batch
        options: dict[str, Any] = {"use_cache": False} if self.causal else {}
        if batch.type_ids is not None and not self.causal:
            options["token_type_ids"] = batch.type_ids
        out = self.backbone(input_ids=batch.input_ids, position_ids=batch.position + self.position_offset, **options)
        hidden = out.last_hidden_state[0]
        if batch.read is not None:
            return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden[batch.read][None])
        chosen = hidden if self.pruned else hidden[batch.last if self.causal else batch.first]
        pooled = chosen[:, None, :]
        pooler = getattr(self.backbone, "pooler", None)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=pooled, pooler_output=None if pooler is None else pooler(pooled)
        )


def _set_attention(model: Any, name: str) -> None:
    """Make a model compute attention by the registered function `name`; raises ValueError if it insists on its own."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model.set_attn_implementation(name)
    finally:
        logging.set_verbosity(verbosity)
    if model.config._attn_implementation != name:
        raise ValueError("its attention function cannot be replaced")


class Packer:
    """Runs a classifier on packed batches. The model is changed in place: its backbone is wrapped.

    Args:
        model: Hugging Face sequence-classification model that takes `position_ids`.
    """

    layout = "packed"
    prunes = True
    """Whether the last layer may run for the pooled tokens only."""

    def __init__(self, model: Any) -> None:
        AttentionInterface.register(ATTENTION, _attention)
        _set_attention(model, ATTENTION)
        prefix = model.base_model_prefix
        backbone = getattr(model, prefix)
        self.model = model
        pad = model.config.get_text_config().pad_token_id
        self.marker = 1 if pad == 0 else 0  # any token that is not padding: heads of decoders look for the last one
        embeddings = getattr(backbone, "embeddings", None)
        padding_idx = getattr(embeddings, "padding_idx", None)
        roberta = "roberta" in type(embeddings).__name__.lower()
        offset = int(padding_idx) + 1 if roberta and padding_idx is not None else 0
        self.backbone = PackedBackbone(backbone, is_causal(model), offset)
        setattr(model, prefix, self.backbone)
        self.prefix: Prefix | None = None

    def logits(self, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """Class scores [S × classes] of the samples `index`."""
        with self._laid(tokens, index):
            return self.classify(len(index))

    def pooled(self, tokens: TokenSet, index: NDArray[np.int64]) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """What the backbone hands on to the head."""
        with self._laid(tokens, index):
            return getattr(self.model, self.model.base_model_prefix)()

    @contextmanager
    def _laid(self, tokens: TokenSet, index: NDArray[np.int64], depth: int | None = None) -> Generator[None]:
        """The samples as the current batch, entering at layer `depth`, else at the lowest with anything attached."""
        prefix, rows = self.prefix, None
        if prefix is not None:
            depth = prefix.lowest() if depth is None else depth
            rows = prefix.rows(tokens, index, depth, lambda alone: self._backbone_on(tokens, alone))
        _current.batch = pack(tokens, index).to(self.model.device)
        with nullcontext() if prefix is None or depth is None or rows is None else prefix.entering(depth, rows):
            yield

    def _backbone_on(self, tokens: TokenSet, index: NDArray[np.int64]) -> None:
        _current.batch = pack(tokens, index).to(self.model.device)
        self.backbone()

    def keep_prefix(self, memory_byte: int, installed: Iterable[NestedLinear], sample: TokenSet) -> bool:
        """Compute what is frozen below the adapted layers once per sample, if logits stay; returns whether they do.

        Args:
            memory_byte: bound of what is kept in memory; what is beyond goes to a temporary file.
            installed: the adapted layers, with an adapter attached that changes nothing (B = 0).
            sample: token set whose first samples decide.
        """
        layers, name = self.backbone.layers, embeddings_of(self.backbone.backbone)
        if layers is None or name is None or self.model.dtype != torch.float32:
            return False
        index = _few(sample)
        with torch.no_grad():
            want = self.logits(sample, index)
            bound = TOLERANCE * float(want.abs().max())
            self.prefix = Prefix(self.backbone.backbone, layers, name, installed, memory_byte)
            try:
                same = all(self._enters(sample, index, depth, want, bound) for depth in range(1, len(layers)))
            except FAILURES:
                same = False
        self.prefix = Prefix(self.backbone.backbone, layers, name, installed, memory_byte) if same else None
        return same

    def _enters(self, sample: TokenSet, index: NDArray[np.int64], depth: int, want: Tensor, bound: float) -> bool:
        with self._laid(sample, index, depth):
            return float((self.classify(len(index)) - want).abs().max()) <= bound

    def classify(self, count: int) -> Tensor:
        """Class scores [S × classes] of what the backbone hands on for `count` samples."""
        return self.model(input_ids=torch.full((count, 1), self.marker, device=_current.batch.first.device)).logits


def batcher_of(
    model: Any, packing: str, sample: TokenSet, padded: type[Bucketer] = Bucketer, packed: type[Packer] = Packer
) -> Batcher:
    """Packed batches where they give the padded model's logits on a few samples, else bucketed ones.

    Of the last layer only the pooled tokens are computed, where its structure is known and the logits agree.

    Raises:
        AirtuneError: packing is "packed" and the model's logits differ, or a decoder has nothing to pad with.
    """
    plain = padded(model)
    if packing == "bucketed":
        return plain
    index = _few(sample)
    original, attention = getattr(model, model.base_model_prefix), model.config._attn_implementation
    with torch.no_grad():
        want = plain.logits(sample, index)
        try:
            packer = packed(model)
            difference = float((packer.logits(sample, index) - want).abs().max())
            reason = f"its logits differ by {difference:.2g}"
        except FAILURES as error:
            packer, difference, reason = None, float("inf"), str(error).splitlines()[0]
    bound = TOLERANCE * float(want.abs().max())
    if packer is not None and difference <= bound:
        if packer.prunes:
            _prune(packer, sample, index, want, bound)
        return packer
    setattr(model, model.base_model_prefix, original)
    _set_attention(model, attention)
    if packing == "packed":
        raise AirtuneError(f"learning.packing: this model cannot be packed ({reason}); use auto or bucketed")
    return plain


def _few(sample: TokenSet) -> NDArray[np.int64]:
    """The first samples and the longest one."""
    return np.unique(np.append(np.arange(min(3, len(sample))), sample.lengths.argmax()))


def _prune(packer: Packer, sample: TokenSet, index: NDArray[np.int64], want: Tensor, bound: float) -> None:
    """Prune the last layer if the logits stay within `bound` of those wanted, else leave it whole."""
    try:
        if packer.backbone.prune():
            with torch.no_grad():
                difference = float((packer.logits(sample, index) - want).abs().max())
            if not difference <= bound:
                packer.backbone.restore()
    except FAILURES:
        packer.backbone.restore()
