"""Local steps of many devices at once: one forward and backward pass over the one frozen model.

The devices' samples lie back to back in one packed batch. Frozen layers see one long row; the low-rank products and the
linear layers of the head take one matrix per device (`grouped`). Each device's loss depends on its own tensors alone,
so the gradient of the sum of losses is each device's own gradient, and optimisers that act element by element move
every device as `Engine.train` would.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Trained, pull
from airtune.learning.grouped import Groups, groups_of
from airtune.learning.lora import Adapters, attach, same_tensors
from airtune.learning.packing import Packer
from airtune.learning.pupil import Pupil
from airtune.types import AirtuneError


def fits(first: Pupil, other: Pupil) -> bool:
    """Whether two jobs can share a stack: tensors of equal shapes, as many steps, equal rates and rest.

    None that prunes or measures can.
    """
    return (
        not any(one.pruning is not None or one.measure for one in (first, other))
        and first.rates == other.rates
        and _shapes(first.start) == _shapes(other.start)
        and _shapes(first.fixed or {}) == _shapes(other.fixed or {})
        and (first.prior is None) == (other.prior is None)
        and len(first.batches) == len(other.batches)
        and same_tensors(first.rest or {}, other.rest or {})
    )


def train_stack(engine: Engine, tokens: TokenSet, jobs: Sequence[Pupil]) -> list[Trained]:
    """Train the jobs in lock-step, each with the result that `Engine.train` has for it.

    Args:
        engine: packed engine; its model is left with the stack attached.
        tokens: the samples of all jobs.
        jobs: D jobs that fit one another.

    Raises:
        AirtuneError: a loss is not finite, jobs do not fit one another, or the model is not packed.
    """
    if not all(fits(jobs[0], job) for job in jobs[1:]):
        raise AirtuneError(
            "a stack's devices must train one module with as many steps and the same rest of the adapter"
        )
    batcher = engine.batcher
    if not isinstance(batcher, Packer):
        raise AirtuneError("learning.stack: only packed models train many devices in one pass; use 1")
    part = {name: leaf.requires_grad_() for name, leaf in _stack([job.start for job in jobs], engine.device).items()}
    before = {name: leaf.detach().clone() for name, leaf in part.items()}
    fixed = _stack([job.fixed or {} for job in jobs], engine.device)
    prior = None if jobs[0].prior is None else torch.stack([p for job in jobs if (p := job.prior) is not None])
    optimizer = engine.optimizer(part, jobs[0].rates)
    losses: list[list[float]] = []
    with _heads(engine, {**fixed, **part}) as heads:
        attach(engine.model, engine.installed, engine.family, {**fixed, **part}, engine.placed(jobs[0].rest or {}))
        for step in range(len(jobs[0].batches)):
            optimizer.zero_grad(set_to_none=True)
            loss = _loss(engine, batcher, heads, tokens, [job.batches[step] for job in jobs], prior)
            loss.sum().backward()
            losses.append(loss.tolist())
            engine.refuse_divergence(losses[-1])
            if engine.config.proximal > 0.0:
                pull(part, before, engine.config.proximal)
            clip_each(part, engine.config.clip_norm)
            optimizer.step()
    after = {name: leaf.detach().cpu() for name, leaf in part.items()}
    return [
        Trained(
            {name: after[name][d] - tensor for name, tensor in job.start.items()},
            float(np.mean([step[d] for step in losses])),
            sum(int(tokens.lengths[index].sum()) for index in job.batches),
        )
        for d, job in enumerate(jobs)
    ]


def clip_each(part: Mapping[str, Tensor], most: float) -> None:
    """Scale each device's gradient down to the norm `most`, in place; leaves are stacks [D × …]."""
    gradients = [leaf.grad for leaf in part.values() if leaf.grad is not None]
    norm = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients]).norm(dim=0)
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))


def _loss(
    engine: Engine,
    batcher: Packer,
    heads: "Heads",
    tokens: TokenSet,
    indices: list[NDArray[np.int64]],
    prior: Tensor | None,
) -> Tensor:
    """Mean cross-entropy of each device's samples, shape D."""
    samples = groups_of([len(index) for index in indices], engine.device)
    words = groups_of([int(tokens.lengths[index].sum()) for index in indices], engine.device)
    for nested in engine.installed.values():
        nested.groups = (words, samples)  # a pruned last layer has a row per sample
    index = np.concatenate(indices)
    with engine.autocast():
        scores = heads.logits(batcher, tokens, index, samples)
    logits = scores.float() if scores.dtype == torch.bfloat16 else scores
    if prior is not None:
        logits = logits + samples.repeat(prior.to(engine.device))
    each = functional.cross_entropy(logits, torch.from_numpy(tokens.label[index]).to(engine.device), reduction="none")
    return torch.stack([own.mean() for own in each.split(list(samples.sizes))])


class HeadLinear(nn.Module):
    """A linear layer of the head with one weight [D × out × in] and bias [D × out] per device."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.groups: Groups | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map the samples [S × in] or [S × 1 × in] of all devices."""
        if self.groups is None:
            raise RuntimeError("a stacked head needs the sizes of its devices' batches")
        y = self.groups.product(x.reshape(-1, x.shape[-1]), self.weight)
        if self.bias is not None:
            y = y + self.groups.repeat(self.bias)
        return y.view(*x.shape[:-1], -1)


class Heads:
    """The devices' heads: at once if they are linear layers, else the model's own head device by device.

    Args:
        model: the classifier, its backbone packed.
        tensors: the head's tensors, stacks [D × …].
        linear: its stacked layers; None if it has parameters of another kind.
    """

    def __init__(self, model: Any, tensors: Mapping[str, Tensor], linear: Sequence[HeadLinear] | None) -> None:
        self.model = model
        self.tensors = tensors
        self.linear = linear

    def logits(self, batcher: Packer, tokens: TokenSet, index: NDArray[np.int64], samples: Groups) -> Tensor:
        """Class scores [S × classes]."""
        if self.linear is not None:
            for layer in self.linear:
                layer.groups = samples
            return batcher.logits(tokens, index)
        prefix = self.model.base_model_prefix
        backbone = getattr(self.model, prefix)
        out = batcher.pooled(tokens, index)
        cuts = list(samples.sizes)
        hidden = cast(Tensor, out.last_hidden_state).split(cuts)
        pooled = None if out.pooler_output is None else out.pooler_output.split(cuts)
        scores: list[Tensor] = []
        try:
            for d, size in enumerate(cuts):
                for name, stack in self.tensors.items():
                    owner, last = name.rsplit(".", 1)
                    setattr(self.model.get_submodule(owner), last, stack[d])
                setattr(self.model, prefix, Given(hidden[d], None if pooled is None else pooled[d]))
                scores.append(batcher.classify(size))
        finally:
            setattr(self.model, prefix, backbone)
        return torch.cat(scores)


class Given(nn.Module):
    """Stands in for a backbone whose output is known."""

    def __init__(self, hidden: Tensor, pooled: Tensor | None) -> None:
        super().__init__()
        self.out = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)  # pyright: ignore[reportArgumentType]

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """What was given."""
        return self.out


@contextmanager
def _heads(engine: Engine, part: Mapping[str, Tensor]) -> Generator[Heads]:
    """Stacked layers in place of the head's linear ones, and the model as it was afterwards."""
    model = engine.model
    tensors = {name: part[name] for name, _ in engine.family.head}
    owners = {owner: model.get_submodule(owner) for owner in dict.fromkeys(name.rsplit(".", 1)[0] for name in tensors)}
    linear: list[HeadLinear] | None = None
    try:
        if all(isinstance(module, nn.Linear) for module in owners.values()):
            linear = []
            for owner in owners:
                linear.append(HeadLinear(tensors[f"{owner}.weight"], tensors.get(f"{owner}.bias")))
                model.set_submodule(owner, linear[-1])
        yield Heads(model, tensors, linear)
    finally:
        for owner, module in owners.items():
            model.set_submodule(owner, module)
        for nested in engine.installed.values():
            nested.groups = ()


def _stack(parts: Sequence[Mapping[str, Tensor]], device: torch.device) -> Adapters:
    return {name: torch.stack([part[name].detach() for part in parts]).to(device) for name in parts[0]}


def _shapes(part: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in part.items()}
