"""What a module costs to train: parameters, payload, FLOPs per token and peak memory, from the model itself.

The model's structure is probed once per module by one short forward pass: which linear layers run, on how many rows,
and whether a gradient flows into them. Everything above the lowest adapted layer needs the gradient of its input;
nothing below it needs any, and no frozen weight ever needs its own.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from airtune.config import ModulesConfig
from airtune.learning.lora import Family, NestedLinear, attach, layer_index
from airtune.types import Modules

PROBE_TOKENS = 16
"""Fewer than `products.LEAST_ROWS`: adapted layers then run their frozen layer as a module, which is seen."""
FLOAT_BYTE = 4
FLASH_BACKWARD = 2.5
"""FLOPs of attention's backward pass over its forward pass: five matrix products, one recomputed, against two."""
TRANSIENT_ROWS = 4
"""Widest activations alive at once besides those saved for the backward pass."""


@dataclass(slots=True)
class _Linear:
    in_features: int
    out_features: int
    rows_per_token: float
    layer: int | None
    input_gradient: bool


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Cost of training one module."""

    forward_flop_per_token: float
    backward_flop_per_token: float
    saved_byte_per_token: float
    """Activations kept for the backward pass."""
    widest: int
    """Largest number of features of any activation."""

    @property
    def flop_per_token(self) -> float:
        """F_m [FLOP/token]."""
        return self.forward_flop_per_token + self.backward_flop_per_token


def workload(
    model: Any,
    family: Family,
    installed: Mapping[str, NestedLinear],
    module: int,
    length: float,
    whole: bool = False,
    head_share: float = 1.0,
) -> Workload:
    """FLOPs and saved bytes per token of training module m on sequences of `length` tokens.

    Args:
        model: classifier with adapted layers installed, not yet packed.
        family: its nested family.
        installed: its adapted layers.
        module: 1…M.
        length: mean sequence length [tokens], for the attention products and the per-sequence head.
        whole: the device computes with the whole global adapter, not with its slice alone.
        head_share: share of the tokens that layers outside the numbered ones run on: a language model's head runs on
            responses alone.
    """
    linears, saved = _probe(model, family, installed, module, whole)
    forward = backward = 0.0
    attention_layers: dict[int, bool] = {}
    for linear in linears:
        rows = linear.rows_per_token if linear.rows_per_token >= 1.0 else 1.0 / length
        rows *= head_share if linear.layer is None else 1.0
        product = 2.0 * linear.in_features * linear.out_features * rows
        forward += product
        backward += product * linear.input_gradient
        if linear.layer is not None:
            attention_layers[linear.layer] = attention_layers.get(linear.layer, False) or linear.input_gradient
    head = sum(2.0 * int(np.prod(shape)) / length for _, shape in family.head if len(shape) > 1)
    backward += head
    rank = family.ranks[module - 1]
    lowest = family.layers - family.depths[module - 1]
    for matrix in family.members(module):
        pair = 2.0 * rank * (matrix.in_features + matrix.out_features)
        forward += pair
        backward += pair + 2.0 * rank * matrix.out_features  # factors' own gradients; gradient of the low-rank input
        backward += 2.0 * rank * matrix.in_features * (matrix.layer > lowest)
    for name, beyond in family.rest(family.initial(0), module).items() if whole else ():
        product = 2.0 * beyond.numel()
        forward += product
        backward += product * ((layer_index(name) or 0) > lowest)  # gradient of the input, never of the frozen factors
    attention = 4.0 * length * _attention_width(model)
    forward += attention * len(attention_layers)
    backward += FLASH_BACKWARD * attention * sum(attention_layers.values())
    widest = max(_width(linear, head_share) for linear in linears if linear.rows_per_token >= 1.0)
    return Workload(forward, backward, saved, widest)


def _width(linear: _Linear, head_share: float) -> int:
    """Features of its widest side; of a head that runs on a share of the tokens, that share of its outputs."""
    out = linear.out_features
    return max(linear.in_features, out if linear.layer is not None else math.ceil(out * head_share))


def modules_of(
    model: Any,
    family: Family,
    installed: Mapping[str, NestedLinear],
    config: ModulesConfig,
    length: float,
    batch_tokens: float,
    whole: bool = False,
    head_share: float = 1.0,
) -> Modules:
    """The family's table of costs, M rows.

    Args:
        model: classifier with adapted layers installed, not yet packed.
        family: its nested family.
        installed: its adapted layers.
        config: bits per parameter and overhead of an upload.
        length: mean sequence length [tokens].
        batch_tokens: tokens of one local step, whose activations are in memory at once.
        whole: devices compute with the whole global adapter, not with their slice alone.
        head_share: as in `workload`.
    """
    count = range(1, len(family.ranks) + 1)
    loads = [workload(model, family, installed, module, length, whole, head_share) for module in count]
    parameters = np.array([family.parameters(module) for module in count], dtype=np.int64)
    frozen = sum(parameter.numel() for parameter in model.parameters())
    context = [_beyond(family, module) if whole else 0 for module in count]
    activations = [
        (load.saved_byte_per_token + TRANSIENT_ROWS * FLOAT_BYTE * load.widest) * batch_tokens for load in loads
    ]
    payload_bit = payload_bits(config, parameters)
    return Modules(
        rank=np.array(family.ranks, dtype=np.int64),
        depth=np.array(family.depths, dtype=np.int64),
        parameters=parameters,
        payload_bit=payload_bit,
        downlink_bit=np.full_like(payload_bit, payload_bit[-1]) if whole else payload_bit,
        flop_per_token=np.array([load.flop_per_token for load in loads]),
        # frozen weights; the adapter beyond the module; the module, its gradient and two moments; activations
        memory_byte=FLOAT_BYTE * (frozen + np.array(context) + 4.0 * parameters.astype(np.float64))
        + np.array(activations),
    )


def payload_bits(config: ModulesConfig, parameters: NDArray[np.int64]) -> NDArray[np.float64]:
    """S = q · parameters + overhead [bit]."""
    return config.bits_per_parameter * parameters.astype(np.float64) + config.overhead_bit


def _beyond(family: Family, module: int) -> int:
    """Parameters of the whole global adapter that module m does not train: d_M − d_m."""
    return family.parameters(len(family.ranks)) - family.parameters(module)


def _attention_width(model: Any) -> int:
    """Heads × head width: what the two attention products of a layer run over."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _probe(
    model: Any, family: Family, installed: Mapping[str, NestedLinear], module: int, whole: bool
) -> tuple[list[_Linear], float]:
    """Every linear layer that one short sequence runs through, and the bytes saved per token for the backward pass."""
    part = {name: tensor.clone().requires_grad_() for name, tensor in family.slice(family.initial(0), module).items()}
    rest = family.rest(family.initial(0), module) if whole else None
    attach(model, installed, family, part, rest)
    linears: list[_Linear] = []
    handles: list[Any] = []
    for name, child in model.named_modules():
        if isinstance(child, nn.Linear):

            def record(linear: nn.Linear, inputs: tuple[Tensor, ...], name: str = name) -> None:
                x = inputs[0]
                rows = x.numel() // x.shape[-1] / PROBE_TOKENS
                inner = layer_index(name)
                linears.append(_Linear(linear.in_features, linear.out_features, rows, inner, x.requires_grad))

            handles.append(child.register_forward_pre_hook(record))
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    weights |= {tensor.untyped_storage().data_ptr() for tensor in (*part.values(), *(rest or {}).values())}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a step that saved its own result would keep itself, and the model, alive

    ids = torch.full((1, PROBE_TOKENS), 1 if model.config.get_text_config().pad_token_id == 0 else 0)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids).logits
    del logits
    for handle in handles:
        handle.remove()
    return linears, sum(saved.values()) / PROBE_TOKENS
