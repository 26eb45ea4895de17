"""Local fine-tuning and evaluation over one frozen model, one device at a time, padding-free."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from airtune.config import LearningConfig
from airtune.learning.bucketing import Batcher, Bucketer
from airtune.learning.data import TokenSet
from airtune.learning.language import LanguageBucketer, LanguagePacker
from airtune.learning.lora import Adapters, Family, NestedLinear, attach, tail_norm
from airtune.learning.meter import Meter, Reading, halves
from airtune.learning.objective import Classification, Objective
from airtune.learning.packing import Packer, batcher_of
from airtune.learning.products import freeze_products
from airtune.types import AirtuneError

EVALUATION_TOKENS = 2048
"""Tokens per evaluation batch; larger batches fall out of cache on a CPU."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of one round."""

    adapter: float
    head: float
    server: float
    """Factor of the server's step."""


def rates_at(config: LearningConfig, t: int, rounds: int) -> Rates:
    """Rates of round t: a rise over `warmup_rounds`, then from the configured rates down to `final_rate` of them.

    Args:
        config: rates, `schedule` (cosine, linear; constant stays), `warmup_rounds` and `final_rate`.
        t: round, from 0.
        rounds: T; the last round is T − 1.
    """
    warm = config.warmup_rounds
    if t < warm:
        factor = (t + 1) / (warm + 1)
    else:
        progress = (t - warm) / max(rounds - 1 - warm, 1)
        match config.schedule:
            case "cosine":
                left = 0.5 * (1.0 + math.cos(math.pi * progress))
            case "linear":
                left = 1.0 - progress
            case "constant":
                left = 1.0
        factor = config.final_rate + (1.0 - config.final_rate) * left
    return Rates(config.rate * factor, config.head_rate * factor, factor)


def log_prior(label: NDArray[np.int64], classes: int) -> Tensor:
    """Log label frequencies of a device, Laplace-smoothed [classes] (balanced softmax, Ren et al. 2020)."""
    counts = np.bincount(label, minlength=classes) + 1.0
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Result of one device's local steps."""

    delta: Adapters
    """Change of the slice and of the head."""
    loss: float
    """Mean over the local steps."""
    tokens: int
    reading: Reading | None = None
    """What was measured of the gradient at the start; None if it was not asked for."""


def pull(part: Mapping[str, Tensor], start: Mapping[str, Tensor], proximal: float) -> None:
    """Add the gradient of (μ/2)‖θ − θ_t‖² to the leaves' (FedProx, Li et al., 2020), in place."""
    with torch.no_grad():
        for name, leaf in part.items():
            if leaf.grad is not None:
                leaf.grad.add_(leaf - start[name].to(leaf.device), alpha=proximal)


def device_of(name: str) -> torch.device:
    """The device that `learning.device` names.

    Raises:
        AirtuneError: cuda is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise AirtuneError("learning.device: torch finds no CUDA device here; use auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


class Engine:
    """Trains slices of a family on token sets and evaluates adapters.

    Args:
        model: Hugging Face classifier, frozen by `lora.install`; changed in place.
        family: the nested family over it.
        installed: its adapted layers.
        config: local optimiser, steps and rates.
        sample: token set whose first samples decide whether the model can be packed.
        objective: what is minimised and judged; None for classes.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        installed: Mapping[str, NestedLinear],
        config: LearningConfig,
        sample: TokenSet,
        objective: Objective | None = None,
    ) -> None:
        self.objective = objective or Classification()
        self.model = model
        self.family = family
        self.installed = installed
        self.config = config
        self.classes = int(model.config.num_labels)
        self.device = device_of(config.device)
        model.to(self.device)
        attach(model, installed, family, self.placed(family.initial(0)))
        freeze_products(getattr(model, model.base_model_prefix))
        self.batcher: Batcher = batcher_of(model, config.packing, sample, *self._batchers)
        if config.prefix_cache_byte and isinstance(self.batcher, Packer):
            self.batcher.keep_prefix(config.prefix_cache_byte, installed.values(), sample)
        if config.stack > 1 and self.objective.kind != "classification":
            raise AirtuneError("learning.stack: only classifiers train many devices in one pass; use 1")
        if config.stack > 1 and self.layout != "packed":
            raise AirtuneError("learning.stack: only packed models train many devices in one pass; use 1")

    @property
    def _batchers(self) -> tuple[type[Bucketer], type[Packer]]:
        return (LanguageBucketer, LanguagePacker) if self.objective.kind == "language" else (Bucketer, Packer)

    @property
    def layout(self) -> str:
        """How sequences are laid out: packed or bucketed."""
        return self.batcher.layout

    @property
    def device_name(self) -> str:
        """What the model runs on: cpu, or the name of the CUDA device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def placed(self, tensors: Mapping[str, Tensor]) -> Adapters:
        """The tensors on the model's device."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def autocast(self) -> torch.autocast:
        """The precision of training passes, as a context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def train(
        self,
        start: Mapping[str, Tensor],
        tokens: TokenSet,
        batches: Sequence[NDArray[np.int64]],
        rates: Rates,
        prior: Tensor | None = None,
        rest: Mapping[str, Tensor] | None = None,
        *,
        fixed: Mapping[str, Tensor] | None = None,
        pruning: int | None = None,
        measure: bool = False,
    ) -> Trained:
        """Run one optimiser step per batch from the slice `start`, with a fresh optimiser state.

        Args:
            start: the module's slice Π_m θ, left unchanged.
            tokens: the samples.
            batches: sample indices of each local step.
            rates: this round's learning rates.
            prior: log label frequencies added to the logits, or None.
            rest: components of θ beyond the slice, present but not trained; None for the slice alone.
            fixed: tensors of the slice that are present but not trained; None for none.
            pruning: module beyond which `prune_weight` · Σ ‖B‖ ‖A‖ is added to the loss; None for no penalty.
            measure: run the first batch as two halves and read the gradient's energy and noise off them.

        Raises:
            AirtuneError: the loss is not finite.
        """
        part = {name: tensor.detach().to(self.device, copy=True).requires_grad_() for name, tensor in start.items()}
        attach(self.model, self.installed, self.family, {**self.placed(fixed or {}), **part}, self.placed(rest or {}))
        optimizer = self.optimizer(part, rates)
        meter = Meter(self.family, part, halves(batches[0])) if measure else None
        losses: list[float] = []
        count = 0
        for index in batches:
            optimizer.zero_grad(set_to_none=True)
            first = meter if not losses else None
            losses.append(self._backward(tokens, [index] if first is None else halves(index), prior, first))
            if pruning is not None and self.config.prune_weight > 0.0:
                tail = tail_norm(self.family, part, pruning)
                if tail.requires_grad:  # while B is zero there is nothing to pull
                    (self.config.prune_weight * tail).backward()
            if self.config.proximal > 0.0:
                pull(part, start, self.config.proximal)
            torch.nn.utils.clip_grad_norm_(part.values(), self.config.clip_norm)
            optimizer.step()
            count += int((tokens.offsets[index + 1] - tokens.offsets[index]).sum())
        delta = {name: part[name].detach().cpu() - start[name] for name in part}
        return Trained(delta, float(np.mean(losses)), count, None if meter is None else meter.read())

    def _backward(
        self, tokens: TokenSet, parts: list[NDArray[np.int64]], prior: Tensor | None, meter: Meter | None
    ) -> float:
        """Add up the gradient of the parts' mean loss in the leaves, noted after each part; returns the loss."""
        sizes, total = [self.objective.size(tokens, index) for index in parts], 0.0
        for index, size in zip(parts, sizes, strict=True):
            loss = self._loss(tokens, index, prior) * (size / sum(sizes))
            loss.backward()
            total += loss.item()
            if meter is not None:
                meter.note()
        return total

    def _loss(self, tokens: TokenSet, index: NDArray[np.int64], prior: Tensor | None) -> Tensor:
        """Mean loss of the samples `index`; raises AirtuneError if it is not finite."""
        with self.autocast():
            scores = self.batcher.logits(tokens, index)
        logits = scores.float() if scores.dtype == torch.bfloat16 else scores
        loss = self.objective.loss(logits, tokens, index, prior)
        self.refuse_divergence([loss.item()])
        return loss

    def refuse_divergence(self, losses: Sequence[float]) -> None:
        """Raise AirtuneError if a loss is not finite."""
        for loss in losses:
            if not math.isfinite(loss):
                raise AirtuneError(
                    f"training diverged: the loss became {loss}; lower learning.rate (now {self.config.rate:g}) "
                    f"or learning.server_rate (now {self.config.server_rate:g})"
                )

    def logits(self, adapters: Mapping[str, Tensor], tokens: TokenSet, index: NDArray[np.int64]) -> NDArray[np.float32]:
        """What is judged of the samples `index` [n × c], of a classifier its logits; in batches of one length."""
        attach(self.model, self.installed, self.family, self.placed(adapters))
        lengths = (tokens.offsets[index + 1] - tokens.offsets[index]).astype(np.int64)
        order = np.argsort(lengths, kind="stable")
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[order]) // EVALUATION_TOKENS)) + 1
        rows: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for chunk in np.split(order, cuts):
                output = self.batcher.logits(tokens, index[chunk])
                rows.append(self.objective.read(output, tokens, index[chunk]).cpu().numpy())
        scores = np.empty((len(index), rows[0].shape[1]), dtype=np.float32)
        scores[order] = np.concatenate(rows)
        return scores

    def accuracy(self, adapters: Mapping[str, Tensor], tokens: TokenSet, index: NDArray[np.int64]) -> float:
        """The judged score of the samples `index`: of a classifier the share classified correctly."""
        return self.objective.judge(self.logits(adapters, tokens, index), tokens, index)

    def optimizer(self, part: Mapping[str, Tensor], rates: Rates) -> torch.optim.Optimizer:
        """A fresh local optimiser over the leaves of a slice."""
        head_names = {name for name, _ in self.family.head}
        groups = [
            {"params": [tensor for name, tensor in part.items() if name not in head_names], "lr": rates.adapter},
            {"params": [tensor for name, tensor in part.items() if name in head_names], "lr": rates.head},
        ]
        decay = self.config.weight_decay
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rates.adapter, weight_decay=decay, foreach=True)
        return torch.optim.AdamW(groups, lr=rates.adapter, weight_decay=decay, foreach=True)
