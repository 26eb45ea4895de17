"""The server's step: from the aggregated change of a round to the next global adapter."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from airtune.config import LearningConfig
from airtune.learning.lora import Adapters

EPSILON = 1e-8


@dataclass(frozen=True, slots=True, eq=False)
class ServerState:
    """What the server keeps between rounds besides θ itself."""

    momentum: Adapters
    """Running mean of the changes."""
    square: Adapters
    """Running mean of their squares; stays zero for the plain mean."""
    average: Adapters
    """Running average of θ, the adapter that is evaluated and exported."""
    steps: int
    """Rounds in which anything was delivered."""


def first_server(adapters: Mapping[str, Tensor]) -> ServerState:
    """The server before the first round."""
    return ServerState(
        momentum={name: torch.zeros_like(tensor) for name, tensor in adapters.items()},
        square={name: torch.zeros_like(tensor) for name, tensor in adapters.items()},
        average={name: tensor.clone() for name, tensor in adapters.items()},
        steps=0,
    )


def server_step(
    adapters: Mapping[str, Tensor],
    server: ServerState,
    change: Mapping[str, Tensor],
    config: LearningConfig,
    schedule: float,
) -> tuple[Adapters, ServerState]:
    """Move θ along the aggregated change Δ; the running average follows.

    - mean: m ← β₁ m + (1−β₁) Δ, θ ← θ + rate · m, undecayed; rate 1 and β₁ = 0 is plain averaging (FedAvg).
    - adam: m, v ← running means of Δ and Δ², θ ← θ + rate · schedule · m̂ / (√v̂ + ε) (FedAdam, Reddi et al. 2021, with
      Adam's bias correction). The size of the local steps cancels, so few deliveries do not mean small steps.
    - block: adam with one v for each tensor, the running mean of its mean square (as in Adam-mini, Zhang et al. 2024).
      Entries without a signal then stay where they are instead of walking at random; with few devices a round that
      is most of them.

    Args:
        adapters: θ_t.
        server: momentum, squares and average so far.
        change: Δ, from an aggregator.
        config: `server_optimizer` and its dials.
        schedule: factor of this round's rates, 1 at the start.

    Returns:
        θ_{t+1} and the server's state.
    """
    steps = server.steps + 1
    first, second = config.server_momentum, config.server_memory
    momentum = {name: first * server.momentum[name] + (1.0 - first) * change[name] for name in adapters}
    square = server.square
    match config.server_optimizer:
        case "mean":
            moves = {name: config.server_rate * tensor for name, tensor in momentum.items()}
        case "adam" | "block":
            whole = config.server_optimizer == "block"
            power = {name: _square(change[name], whole) for name in adapters}
            square = {name: second * server.square[name] + (1.0 - second) * power[name] for name in adapters}
            rate = config.server_rate * schedule / (1.0 - first**steps)
            scale = {name: (square[name] / (1.0 - second**steps)).sqrt() + EPSILON for name in adapters}
            moves = {name: rate * momentum[name] / scale[name] for name in adapters}
    moved = {name: adapters[name] + moves[name] for name in adapters}
    decay = config.average
    average = {name: decay * server.average[name] + (1.0 - decay) * moved[name] for name in adapters}
    return moved, ServerState(momentum, square, average, steps)


def _square(tensor: Tensor, whole: bool) -> Tensor:
    """Squares of the entries, or their mean everywhere."""
    square = tensor**2
    return square.mean().expand_as(square) if whole else square
