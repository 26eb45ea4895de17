"""Weighted means of updates, component by component. Uploads that are lost simply do not appear."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from airtune.learning.lora import Adapters, add_scaled
from airtune.types import Update

TINY = 1e-30
"""Instead of a weight of nothing."""


def weighted_sum(adapters: Mapping[str, Tensor], updates: Iterable[Update]) -> Adapters:
    """Reference aggregation Σ_k ω_k s_k Π_{m_k} g_k as a change of θ, (8).

    Args:
        adapters: global adapter θ, for its shapes.
        updates: delivered updates with weight ω_k; a lost one counts as zero.
    """
    change = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}
    for update in updates:
        add_scaled(change, update.delta.items(), update.weight)
    return change


def renormalised_mean(adapters: Mapping[str, Tensor], updates: Iterable[Update]) -> tuple[Adapters, Adapters]:
    """Component-wise mean over the devices that delivered the component, weighted by ω_k.

    A component that nobody delivered has change 0; a server with momentum may still move it. Updates are added as they
    come; none is held.

    Returns:
        The mean, and the share of the delivered weight that covers each component, broadcastable to it: exactly 1 where
        every delivered update has the component.
    """
    total, mass, _ = _summed(adapters, updates)
    mean = {name: torch.where(mass[name] > 0, total[name] / mass[name].clamp_min(TINY), 0.0) for name in total}
    most = max((float(covered.max()) for covered in mass.values()), default=0.0)  # every update has the head
    return mean, {name: covered / max(most, TINY) for name, covered in mass.items()}


def padded_mean(adapters: Mapping[str, Tensor], updates: Iterable[Update], whole: bool) -> Adapters:
    """Mean of the devices' whole models, weighted by ω_k, as a change of θ; updates are added as they come.

    Args:
        adapters: global adapter θ.
        updates: delivered updates, weight ω_k.
        whole: whether a model beyond its module is θ (a component that a device lacks stays for its part) or zero (it
            shrinks).
    """
    total, mass, weight = _summed(adapters, updates)
    mean = {name: tensor / max(weight, TINY) for name, tensor in total.items()}
    if whole or not weight:
        return mean
    return {name: mean[name] - adapters[name] * (1.0 - mass[name] / weight) for name in mean}


def _summed(adapters: Mapping[str, Tensor], updates: Iterable[Update]) -> tuple[Adapters, Adapters, float]:
    """Σ ω_k g_k, the weight that covers each component (broadcastable to the tensor), and the weight of all."""
    total = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}
    mass = {name: tensor.new_zeros(_component_shape(name, tensor)) for name, tensor in adapters.items()}
    weight = 0.0
    for update in updates:
        weight += update.weight
        add_scaled(total, update.delta.items(), update.weight)
        for name, tensor in update.delta.items():
            covered = mass[name]
            if name.endswith(".lora_A"):
                covered[: tensor.shape[0]] += update.weight
            elif name.endswith(".lora_B"):
                covered[:, : tensor.shape[1]] += update.weight
            else:
                covered += update.weight
    return total, mass, weight


def _component_shape(name: str, tensor: Tensor) -> tuple[int, ...]:
    """Shape of the per-component mass, broadcastable to the tensor: one number per rank component."""
    if name.endswith(".lora_A"):
        return (tensor.shape[0], 1)
    if name.endswith(".lora_B"):
        return (1, tensor.shape[1])
    return (1,) * tensor.dim()
