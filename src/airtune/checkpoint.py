"""A `State` as the checkpoint's tensors and JSON values, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from airtune.learning.lora import Adapters
from airtune.learning.server import ServerState
from airtune.round import State
from airtune.types import AirtuneError, Estimates, Memory

_ESTIMATES = dataclasses.fields(Estimates)


def to_checkpoint(state: State, config_digest: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and JSON values for `RunFolder.save_checkpoint`; the digest tells whose configuration it belongs to."""
    tensors: dict[str, Any] = {f"adapters/{name}": tensor for name, tensor in state.adapters.items()}
    tensors |= {f"momentum/{name}": tensor for name, tensor in state.server.momentum.items()}
    tensors |= {f"square/{name}": tensor for name, tensor in state.server.square.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.server.average.items()}
    tensors |= {f"kept/{name}": tensor for name, tensor in state.server.kept.items()}
    tensors |= {"queue_j": state.memory.queue_j, "spent_j": state.memory.spent_j}
    tensors |= {f"estimates/{field.name}": getattr(state.memory.estimates, field.name) for field in _ESTIMATES}
    memory = {"bound": state.memory.bound, "bound_tight": state.memory.bound_tight, "price": state.memory.price}
    return tensors, {"t": state.t, **memory, "server_steps": dict(state.server.steps), "config": config_digest}


def from_checkpoint(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> State:
    """The state that `RunFolder.load_checkpoint` read; raises AirtuneError for a checkpoint without estimates."""

    def part(prefix: str) -> Adapters:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    learned = part("estimates/")
    if len(learned) != len(_ESTIMATES):
        raise AirtuneError("the checkpoint is of an airtune without estimates of the constants; start the run anew")
    estimates = Estimates(**{name: value.numpy() for name, value in learned.items()})
    bounds = (float(meta["bound"]), float(meta["bound_tight"]))
    price = None if meta["price"] is None else float(meta["price"])
    memory = Memory(tensors["queue_j"].numpy(), tensors["spent_j"].numpy(), *bounds, estimates, price)
    server = ServerState(part("momentum/"), part("square/"), part("average/"), meta["server_steps"], part("kept/"))
    return State(int(meta["t"]), part("adapters/"), server, memory)
