"""The server's step: from the aggregated change of a round to the next global adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from airtune.config import LearningConfig
from airtune.learning.lora import Adapters

EPSILON = 1e-8
YOGI_EPSILON = 1e-3
"""τ of FedYogi, which keeps its uncorrected v from vanishing (Reddi et al. 2021 use 1e-3)."""


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """What the server keeps between rounds besides θ itself."""

    momentum: Adapters
    """Running mean of the changes."""
    square: Adapters
    """Running mean of their squares; stays zero for the plain mean."""
    average: Adapters
    """Running average of θ, the adapter that is evaluated and exported."""
    steps: Mapping[str, int]
    """Rounds in which each tensor was given a change."""
    kept: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What the method remembers by names of its own: devices' last updates, personal factors, sizes."""


def first_server(adapters: Mapping[str, Tensor], kept: Mapping[str, Tensor] | None = None) -> ServerState:
    """The server before the first round, with what the method starts from."""
    moved = {name: tensor for name, tensor in adapters.items() if not is_merged(name)}
    return ServerState(
        momentum={name: torch.zeros_like(tensor) for name, tensor in moved.items()},
        square={name: torch.zeros_like(tensor) for name, tensor in moved.items()},
        average={name: tensor.clone() for name, tensor in adapters.items()},
        steps=dict.fromkeys(moved, 0),
        kept=kept or {},
    )


def is_merged(name: str) -> bool:
    """Whether a tensor is a change of a frozen weight, which is added as it is and knows no momentum."""
    return name.endswith(".merged")


def server_step(
    adapters: Mapping[str, Tensor],
    server: ServerState,
    change: Mapping[str, Tensor],
    config: LearningConfig,
    schedule: float,
    share: Mapping[str, Tensor] | None = None,
) -> tuple[Adapters, ServerState]:
    """Move θ along the aggregated change Δ; the running average follows.

    - mean: m ← β₁ m + (1−β₁) Δ, θ ← θ + rate · m, undecayed; rate 1 and β₁ = 0 is plain averaging (FedAvg).
    - adam: m, v ← running means of cΔ and Δ², θ ← θ + rate · schedule · m̂ / (√v̂ + ε) (FedAdam, Reddi et al. 2021, with
      Adam's bias correction). The size of the local steps cancels, so few deliveries do not mean small steps. The
      share c of a component that few of those who deliver train does not cancel: else a group of few devices would move
      what it alone trains as fast as all others move the rest against it (docs/theory.md §2).
    - block: adam with one v for each tensor, the running mean of its mean square (as in Adam-mini, Zhang et al. 2024).
      Entries without a signal then stay where they are instead of walking at random; with few devices a round that
      is most of them.

    - yogi: adam with v ← v − (1−β₂) sign(v − Δ²) Δ² and no bias correction of it (FedYogi, Reddi et al. 2021).

    A tensor that `change` lacks (the factor whose turn it is not) stays as it is, with its momentum. A change of a
    frozen weight is added as it is.

    Args:
        adapters: θ_t.
        server: momentum, squares and average so far.
        change: Δ, from a method.
        config: `server_optimizer` and its dials.
        schedule: factor of this round's rates, 1 at the start.
        share: c of each component, broadcastable to Δ; 1 for tensors that it lacks. Of no effect under mean.

    Returns:
        θ_{t+1} and the server's state.
    """
    moved, momentum, square = dict(adapters), dict(server.momentum), dict(server.square)
    steps = {name: count + (name in change) for name, count in server.steps.items()}
    for name, delta in change.items():
        if is_merged(name):
            moved[name] = adapters[name] + delta
            continue
        scaled = delta if config.server_optimizer == "mean" or not share else delta * share.get(name, 1.0)
        momentum[name] = config.server_momentum * server.momentum[name] + (1.0 - config.server_momentum) * scaled
        square[name] = _square(server.square[name], delta, config)
        moved[name] = adapters[name] + _move(momentum[name], square[name], steps[name], config, schedule)
    decay = config.average
    average = {name: decay * server.average[name] + (1.0 - decay) * moved[name] for name in adapters}
    return moved, ServerState(momentum, square, average, steps, server.kept)


def _square(square: Tensor, delta: Tensor, config: LearningConfig) -> Tensor:
    """v after a round with change Δ."""
    second = config.server_memory
    match config.server_optimizer:
        case "mean":
            return square
        case "adam":
            return second * square + (1.0 - second) * delta**2
        case "block":
            return second * square + (1.0 - second) * (delta**2).mean().expand_as(delta)
        case "yogi":
            return square - (1.0 - second) * torch.sign(square - delta**2) * delta**2


def _move(momentum: Tensor, square: Tensor, steps: int, config: LearningConfig, schedule: float) -> Tensor:
    """θ_{t+1} − θ_t of one tensor."""
    if config.server_optimizer == "mean":
        return config.server_rate * momentum
    rate = config.server_rate * schedule / (1.0 - config.server_momentum**steps)
    if config.server_optimizer == "yogi":
        return rate * momentum / (square.sqrt() + YOGI_EPSILON)
    return rate * momentum / ((square / (1.0 - config.server_memory**steps)).sqrt() + EPSILON)
