"""Settings of local fine-tuning and aggregation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from airtune.config.values import STRICT, Count, NonNegative, Positive, Rate

MethodName = Literal["nested", "sum", "fedit", "hetlora", "flexlora", "flora", "fedex", "ffa", "fedsa", "rolora"]
"""Federated LoRA methods, `LearningConfig.method`."""

UNCARRIED = ("flexlora", "flora", "rolora", "fedsa", "hetlora")
"""Methods to which an update of an earlier round is of other factors (flexlora, flora), of the other factor (rolora),
added to a device's own B once more (fedsa), or a reason to prune again (hetlora)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LearningConfig:
    """Local fine-tuning and aggregation."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Local optimiser; its state starts afresh in every round."""
    rate: Rate = 0.1
    """Local learning rate of the adapter; about 0.002 for adamw."""
    head_rate: Rate = 0.1
    """Local learning rate of the task head."""
    weight_decay: NonNegative = 0.0
    context: Literal["whole", "slice"] = "whole"
    """What a device computes with: the whole global adapter, of which it trains its slice, or the slice alone."""
    local_steps: Count = 4
    """E, optimiser steps per device and round."""
    batch_size: Count = 16
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rates, local and the server's, fall over the rounds."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    """First rounds over which the rates rise linearly."""
    final_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """The rates fall to this fraction by the last round (cosine, linear)."""
    proximal: NonNegative = 0.0
    """μ of FedProx: weight of (μ/2)‖θ − θ_t‖² in the local loss."""
    balanced_batches: bool = True
    """Draw every class equally often, as far as a device's samples of it last; a device with fewer than
    local_steps · batch_size samples draws with repeats and unbalanced."""
    prior_correction: bool = True
    """Add the log label frequencies of a device's batches to the logits while training (removes the pull of what
    skew is left)."""
    method: MethodName = "nested"
    """How updates become the next adapter, docs/methods.md. nested: mean of each component over those who delivered
    it; sum: (8). flexlora, flora, fedex and fedsa need server_optimizer mean, server_rate 1, server_momentum 0 and
    average 0."""
    lost: Literal["renormalise", "inverse", "carry"] = "renormalise"
    """What stands in for a lost upload: renormalise: those delivered count for all; inverse: they weigh 1/π, the chance
    they had, at most `inverse_cap`; carry: the device's last delivered update (not with basis energy, flexlora,
    flora, rolora, fedsa and hetlora)."""
    inverse_cap: Annotated[float, Field(ge=1)] = 5.0
    """Largest 1/π under lost = inverse."""
    prune_weight: NonNegative = 5e-3
    """Weight of HetLoRA's penalty on what the next smaller module does without; 0 for none, and no device prunes."""
    server_optimizer: Literal["adam", "yogi", "block", "mean"] = "adam"
    """What the server does with the aggregated change: adam is FedAdam, yogi FedYogi, block adam with one step size for
    each tensor, mean with rate 1 and momentum 0 FedAvg."""
    server_rate: Rate = 4e-3
    """Server step; 1 for plain averaging."""
    server_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β₁ of the server."""
    server_memory: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """β₂ of the server's adam and block."""
    basis: Literal["fixed", "energy"] = "fixed"
    """fixed: rank components as they were initialised and trained; energy: after every round each adapted matrix is
    rewritten in its singular vectors, greatest first, its function unchanged."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.7
    """Decay of the running average of the global adapter that is evaluated and exported; 0 for none."""
    packing: Literal["auto", "packed", "bucketed"] = "auto"
    """packed: sequences back to back; bucketed: padded, sorted by length; auto: packed where it is exact."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: cuda where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: training passes run in autocast; adapters, optimiser and evaluation stay in fp32."""
    prefix_cache_byte: Annotated[int, Field(ge=0)] = 0
    """Memory of each process for hidden states below the lowest adapted layer, computed once per sample [bytes]; larger
    ones go to a temporary file. 0: none are kept. Of use where samples are seen often and modules are not of full
    depth (context slice, or a family of less depth than the model)."""
    stack: Count = 1
    """Devices of one module trained in one pass; 1 on a CPU, more keep a GPU busy at the price of as much more memory.
    Not with several `workers`. Devices that report on their gradient (`constants.source` estimated) train one by
    one."""

    @model_validator(mode="after")
    def _plain_server(self) -> "LearningConfig":
        plain = (self.server_optimizer, self.server_rate, self.server_momentum, self.average) == ("mean", 1.0, 0.0, 0.0)
        if self.method in ("flexlora", "flora", "fedex", "fedsa") and not plain:
            raise ValueError(
                f"method {self.method} replaces the adapter: set server_optimizer mean, server_rate 1, server_momentum "
                "0 and average 0"
            )
        if self.lost == "carry":
            if self.method in UNCARRIED:
                raise ValueError(
                    f"lost carry: an update of an earlier round does not fit method {self.method}; use renormalise or "
                    "inverse"
                )
            if self.basis == "energy":
                raise ValueError("lost carry: updates are kept in the basis of their round; use basis fixed")
        if self.basis == "energy" and self.method not in ("nested", "sum", "fedit", "hetlora"):
            raise ValueError(f"basis energy: method {self.method} does not allow another basis; use fixed")
        return self
