"""The last transformer layer for the pooled tokens only: S rows instead of N after its keys and values.

A classifier reads one token per sequence, so the last layer's queries, attention output, feed-forward and norms matter
for that token alone. Logits and gradients are those of the whole layer up to rounding. Two structures are known: layers
that normalise after each sum (BERT, RoBERTa) and layers that normalise before (Llama, Mistral, Qwen2). The device
model's F_m (`workload`) does not change: a device is modelled as running the plain layers.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class Rows(Protocol):
    """What pruning needs of a packed batch."""

    @property
    def rows(self) -> Tensor:
        """[S × L] index into the N tokens."""
        ...

    @property
    def keep(self) -> Tensor | None:
        """[S × 1 × 1 × L] true at real tokens; None if all are."""
        ...


def pooled_attention(
    query: Tensor, key: Tensor, value: Tensor, batch: Rows, place: Tensor, scale: float, window: int | None
) -> Tensor:
    """Attention of each sequence's pooled token over its own sequence.

    Args:
        query: [S × heads × d].
        key: [N × key heads × d].
        value: like `key`.
        batch: the packed batch.
        place: [S] position of the pooled token in its sequence, the first or the last.
        scale: factor of the scores.
        window: tokens less than it apart are seen; None for all.

    Returns:
        [S × heads·d].
    """
    size, longest = batch.rows.shape

    def unfold(x: Tensor) -> Tensor:
        rows = functional.embedding(batch.rows, x.reshape(x.shape[0], -1))
        return rows.view(size, longest, x.shape[1], x.shape[2]).transpose(1, 2)

    mask = batch.keep
    if window is not None and longest > window:
        near = ((torch.arange(longest, device=place.device)[None, :] - place[:, None]).abs() < window)[:, None, None, :]
        mask = near if mask is None else near & mask
    out = functional.scaled_dot_product_attention(
        query[:, :, None, :],
        unfold(key),
        unfold(value),
        attn_mask=mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.reshape(size, -1)


class PostNorm(nn.Module):
    """A BERT-like last layer that maps [1 × N × H] to the pooled tokens [1 × S × H].

    Args:
        layer: the layer, with `attention.self`, `attention.output` and `feed_forward_chunk`.
        current: gives the batch, the index [S] of its pooled tokens and their positions [S].
    """

    def __init__(self, layer: Any, current: Callable[[], tuple[Rows, Tensor, Tensor]]) -> None:
        super().__init__()
        self.layer = layer
        self.current = current

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Pooled tokens of the current batch; masks and caches of the call are not used."""
        batch, index, place = self.current()
        own = self.layer.attention.self
        pooled = hidden_states.index_select(1, index)
        split = (-1, own.num_attention_heads, own.attention_head_size)
        out = pooled_attention(
            own.query(pooled).view(split),
            own.key(hidden_states).view(split),
            own.value(hidden_states).view(split),
            batch,
            place,
            own.scaling,
            None,
        )
        return self.layer.feed_forward_chunk(self.layer.attention.output(out[None], pooled))


class PreNorm(nn.Module):
    """A Llama-like last layer that maps [1 × N × H] to the pooled tokens [1 × S × H].

    Args:
        layer: the layer, with `self_attn`, `mlp` and two norms.
        current: gives the batch, the index [S] of its pooled tokens and their positions [S].
    """

    def __init__(self, layer: Any, current: Callable[[], tuple[Rows, Tensor, Tensor]]) -> None:
        super().__init__()
        self.layer = layer
        self.current = current

    def forward(self, hidden_states: Tensor, *_: Any, position_embeddings: tuple[Tensor, Tensor], **__: Any) -> Tensor:
        """Pooled tokens of the current batch; masks and caches of the call are not used."""
        batch, index, place = self.current()
        own = self.layer.self_attn
        normed = self.layer.input_layernorm(hidden_states)
        split = (1, -1, own.config.num_key_value_heads, own.head_dim)
        key = own.k_proj(normed).view(split).transpose(1, 2)
        value = own.v_proj(normed).view(split)
        query = own.q_proj(normed.index_select(1, index)).view(1, len(index), -1, own.head_dim).transpose(1, 2)
        cos, sin = position_embeddings
        _, key = apply_rotary_pos_emb(key, key, cos, sin)
        query, _ = apply_rotary_pos_emb(query, query, cos.index_select(1, index), sin.index_select(1, index))
        window = getattr(own, "sliding_window", None) or getattr(own.config, "sliding_window", None)
        out = pooled_attention(
            query[0].transpose(0, 1), key[0].transpose(0, 1), value[0], batch, place, own.scaling, window
        )
        hidden = hidden_states.index_select(1, index) + own.o_proj(out[None])
        return hidden + self.layer.mlp(self.layer.post_attention_layernorm(hidden))


def last_layer(backbone: Any) -> tuple[nn.ModuleList, type[PostNorm] | type[PreNorm]] | None:
    """The backbone's layers and what prunes the last of them; None if its structure is not known."""
    layers = getattr(getattr(backbone, "encoder", backbone), "layer", None) or getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or getattr(backbone.config, "is_decoder", False):
        return None
    last: Any = layers[-1]
    if hasattr(last, "feed_forward_chunk") and hasattr(getattr(last, "attention", None), "self"):
        return layers, PostNorm
    needed = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
    return (layers, PreNorm) if all(hasattr(last, name) for name in needed) else None


def embeddings_of(backbone: Any) -> str | None:
    """Name of the module whose output enters the first layer; None if there is none of a known name."""
    return next((name for name in ("embeddings", "embed_tokens") if hasattr(backbone, name)), None)


def is_causal(model: Any) -> bool:
    """Whether tokens attend only to earlier ones, so that the last token is the pooled one."""
    return any(bool(getattr(child, "is_causal", False)) for child in model.modules())
