"""Which answers count as updates. One pure function; whatever the bytes, it returns and never raises."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from airtune.config import LearningConfig
from airtune.deploy.messages import Answer, answer_of, part_of
from airtune.deploy.wire import Malformed
from airtune.learning.engine import Rates
from airtune.learning.lora import Adapters
from airtune.learning.meter import Reading

OVERHEAD_BYTE = 65_536
"""Room for an answer's header beside its tensors."""
ADAM_STEP = 3.17
"""Most that an Adam step moves an entry, in learning rates: (1 − β₁) / √(1 − β₂) (Kingma and Ba, 2015, §2.1)."""
SLACK = 1.01
"""Rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What an answer to a task must be."""

    t: int
    device: int
    module: int
    """1…M, or 0 where only a report was asked for."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors of the update; empty where none was asked for."""
    norm_max: float
    """Norm that no honest update exceeds, `largest_change`."""
    modules: int
    """M."""
    measured: bool = False
    """Whether a reading of the gradient is asked for."""
    model: str | None = None
    """SHA-256 that the device's frozen weights must have; None for any."""

    @property
    def byte_max(self) -> int:
        """Largest answer [byte]."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values()) + 16 * self.modules + OVERHEAD_BYTE


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """An answer that is what it must be."""

    answer: Answer
    delta: Adapters
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer that does not count."""

    reason: str
    """In words; first what kind of fault it is."""
    answer: Answer | None = None
    """What the device said, where that much could be read."""


def examine(blob: bytes, expected: Expected) -> Accepted | Refused:
    """Accept an answer, or say why not: oversized, malformed, foreign, wrongly shaped, not finite, too large."""
    if len(blob) > expected.byte_max:
        return Refused(f"oversized: {len(blob)} bytes, at most {expected.byte_max} are right")
    try:
        answer, tensors = answer_of(blob)
    except Malformed as fault:
        return Refused(f"malformed: {fault}")
    if answer.kind == "failure":
        return Refused(f"device: {answer.reason}", answer)
    fault = _foreign(answer, expected) or _unfit(tensors, expected)
    if fault is not None:
        return Refused(fault, answer)
    reading = _reading(tensors) if expected.measured and expected.module else None
    return Accepted(answer, part_of(tensors, "delta/"), reading)


def largest_change(config: LearningConfig, rates: Rates, start: Mapping[str, Tensor]) -> float:
    """Norm that the change of a slice cannot exceed over the local steps, whatever the data.

    Gradients are clipped to `clip_norm`, so a step of SGD moves by at most rate · (clip_norm + decay · ‖θ‖); one of
    AdamW moves an entry by at most `ADAM_STEP` · rate, and by decay · rate of itself.

    Args:
        config: local optimiser, steps, clipping.
        rates: of the round.
        start: what is trained.
    """
    rate = max(rates.adapter, rates.head)
    size = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in start.values()))
    count = sum(tensor.numel() for tensor in start.values())
    step = config.clip_norm if config.optimizer == "sgd" else ADAM_STEP * math.sqrt(count)
    change = 0.0
    for _ in range(config.local_steps):
        change += rate * (step + config.weight_decay * (size + change))
    return SLACK * change


def _foreign(answer: Answer, expected: Expected) -> str | None:
    """Whether the answer is to another task, or of another model."""
    kind = "update" if expected.module else "report"
    wants = (kind, expected.t, expected.module)
    if (answer.kind, answer.t, answer.module) != wants or answer.device not in (expected.device, -1):
        return (
            f"foreign: {answer.kind} of round {answer.t}, device {answer.device}, module {answer.module} instead of "
            f"{kind} of round {expected.t}, device {expected.device}, module {expected.module}"
        )
    if answer.standing is None:
        return "malformed: the device says nothing of itself"
    if expected.model is not None and answer.standing.model != expected.model:
        return f"foreign: the device's model is {answer.standing.model[:12]}, the server's {expected.model[:12]}"
    return None


def _unfit(tensors: Mapping[str, Tensor], expected: Expected) -> str | None:
    """Whether the tensors are not those of the module's slice, or cannot be what honest training made."""
    names = {f"delta/{name}" for name in expected.shapes}
    reading = {"reading/energy", "reading/noise"} if expected.measured and expected.module else set[str]()
    if strange := sorted(tensors.keys() - names - reading):
        return f"wrongly shaped: it has {strange[0][:100]}, which was not asked for"
    if missing := sorted(names - tensors.keys()):
        return f"wrongly shaped: it lacks {missing[0]}"
    for name, shape in expected.shapes.items():
        delta = tensors[f"delta/{name}"]
        if delta.dtype != torch.float32:
            return f"wrongly shaped: {name} is {delta.dtype}, not torch.float32"
        if tuple(delta.shape) != shape:
            return f"wrongly shaped: {name} is {tuple(delta.shape)}, not {shape}"
        if not bool(delta.isfinite().all()):
            return f"not finite: {name}"
    for name in sorted(reading & tensors.keys()):
        found = tensors[name]
        if found.dtype != torch.float64 or tuple(found.shape) != (expected.modules,):
            return (
                f"wrongly shaped: {name} is {found.dtype} {tuple(found.shape)}, not torch.float64 ({expected.modules},)"
            )
        if not bool((found.isfinite() & (found >= 0)).all()):
            return f"not finite: {name} is no energy"
    if reading and "reading/energy" not in tensors:
        return "wrongly shaped: it lacks reading/energy"
    norm = math.sqrt(sum(float(tensors[f"delta/{name}"].double().square().sum()) for name in expected.shapes))
    if norm > expected.norm_max:
        return f"too large: norm {norm:.3g}, no honest update exceeds {expected.norm_max:.3g}"
    return None


def _reading(tensors: Mapping[str, Tensor]) -> Reading:
    noise = tensors.get("reading/noise")
    return Reading(tensors["reading/energy"].numpy(), None if noise is None else noise.numpy())
