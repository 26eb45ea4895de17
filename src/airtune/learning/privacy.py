"""Differential privacy of updates: clipped on the device, with Gaussian noise there or in the server's sum.

What is bounded is the update that a device sends in a round: adapter and head as one vector. `learning.accountant` says
what all rounds cost together.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from airtune.config import PrivacyConfig
from airtune.learning.lora import Adapters
from airtune.learning.server import ServerState
from airtune.rng import Stream, generator
from airtune.types import BoolK, FloatK, Update

SENT = "privacy/sent"
"""Name of what is kept of the devices' past: rounds in which each sent, K integers."""


def clipped(delta: Mapping[str, Tensor], norm: float) -> Adapters:
    """g · min(1, C / ‖g‖₂) over all tensors as one vector, as in DP-FedAvg (McMahan et al., ICLR 2018).

    Args:
        delta: g, a device's whole update.
        norm: C.
    """
    length = float(torch.stack([tensor.double().square().sum() for tensor in delta.values()]).sum().sqrt())
    return dict(delta) if length <= norm else {name: (norm / length) * tensor for name, tensor in delta.items()}


def sensitivity(norm: float, weight: float = 1.0) -> float:
    """2 ω C: how far Σ ω_k g_k moves in L2 when one device's data, and with it g_k, are replaced.

    Args:
        norm: C.
        weight: largest ω of those in the sum; 1 for an update on its own.
    """
    return 2.0 * weight * norm


@dataclass(frozen=True, slots=True)
class Guard:
    """The mechanism of a run; there is none where privacy is off."""

    config: PrivacyConfig
    seed: int
    """The run's seed, of no use under noise = "system"."""

    def upload(self, delta: Mapping[str, Tensor], t: int, device: int) -> Adapters:
        """What a device sends for its update g in round t: g clipped, and under "local" with noise in every entry."""
        held = clipped(delta, self.config.clip_norm)
        if self.config.mechanism == "central":
            return held
        noise = self._noise(held, sensitivity(self.config.clip_norm), t, device)
        return {name: tensor + noise[name] for name, tensor in held.items()}

    def largest(self, count: int) -> float:
        """Norm that nothing a device sends exceeds: C, under "local" with its noise but for a chance below e^-18.

        Args:
            count: n, numbers sent. A norm of n standard normals exceeds √n + u with a chance of at most exp(−u²/2).
        """
        spread = self.config.noise_multiplier * sensitivity(self.config.clip_norm)
        noise = 0.0 if self.config.mechanism == "central" else spread * (math.sqrt(count) + 6.0)
        return self.config.clip_norm + noise

    def aggregate(
        self, updates: Iterable[Update], adapters: Mapping[str, Tensor], weight: float, t: int
    ) -> Iterator[Update]:
        """The updates to combine: under "central" such that Σ ω_k g_k has noise in each entry that was delivered.

        One draw for every entry of the sum. It rides on the first update that covers the entry, at 1/ω_k, so that it
        counts once whatever divides the sum afterwards: who delivered which component is no secret.

        Args:
            updates: clipped updates g_k at their weights ω_k.
            adapters: θ, for its shapes.
            weight: largest ω_k among them.
            t: the round.
        """
        if self.config.mechanism == "local":
            yield from updates
            return
        noise = self._noise(adapters, sensitivity(self.config.clip_norm, weight), t)
        for update in updates:
            delta: Adapters = {}
            for name, tensor in update.delta.items():
                place = tuple(slice(0, size) for size in tensor.shape)
                delta[name] = tensor + noise[name][place] / update.weight
                noise[name][place] = 0.0
            yield replace(update, delta=delta)

    def counted(self, server: ServerState, scheduled: BoolK) -> ServerState:
        """The server with one more round counted for each device that sent, delivered or not."""
        before = server.kept.get(SENT, torch.zeros(len(scheduled), dtype=torch.int64))
        return replace(server, kept={**server.kept, SENT: before + torch.from_numpy(scheduled.astype(np.int64))})

    def _noise(self, like: Mapping[str, Tensor], spread: float, t: int, device: int = 0) -> Adapters:
        """Independent N(0, (z · spread)²) for every entry of some tensors, in whatever order they come."""
        names = sorted(like)
        sizes = [like[name].numel() for name in names]
        if self.config.noise == "system":
            draws = secret_normal(sum(sizes))
        else:
            draws = generator(self.seed, Stream.PRIVACY, t, device).standard_normal(sum(sizes))
        flat = torch.from_numpy(self.config.noise_multiplier * spread * draws)
        parts = zip(names, flat.split(sizes), strict=True)
        return {name: part.view(like[name].shape).to(like[name].dtype) for name, part in parts}


def guard_of(config: PrivacyConfig, seed: int) -> Guard | None:
    """The guard of a run, None without privacy."""
    return None if config.mechanism == "none" else Guard(config, seed)


def secret_normal(count: int) -> NDArray[np.float64]:
    """Standard normal draws from the operating system's randomness, by inversion of 52-bit uniforms: 8.2 at most."""
    words = np.frombuffer(os.urandom(8 * count), dtype=np.uint64)
    return ndtri(((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52)


def heaviest(weight: FloatK, chance: FloatK, delivered: BoolK) -> float:
    """Largest ω_k / chance_k among those who delivered, at least one."""
    return float((weight / chance)[delivered].max())
