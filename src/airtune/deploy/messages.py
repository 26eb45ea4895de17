"""What server and devices tell each other: tasks one way, answers with what a device says of itself the other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from airtune.deploy.wire import Malformed, pack, unpack
from airtune.learning.lora import Adapters
from airtune.learning.meter import Reading
from airtune.types import Lesson

PROTOCOL = 1
"""Number of the messages that this airtune speaks; another is refused."""
STRICT = ConfigDict(extra="forbid", strict=True)
Finite = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False, strict=False)]
Above = Annotated[float, Field(ge=1e-3, le=1e18, allow_inf_nan=False, strict=False)]
"""Numbers that formulas can be computed with: no device's say makes one overflow."""
Text = Annotated[str, Field(max_length=400)]


@checked(frozen=True, kw_only=True, config=STRICT)
class Limits:
    """What the controller gave a device for a round's upload."""

    power_w: Finite
    """Transmit power p [W]."""
    bandwidth_hz: Finite
    """Share b of the band [Hz]."""
    uplink_s: Finite
    """Time for the upload τ_up [s]."""
    rate_bit_per_s: Finite
    """S / τ_up [bit/s], the rate that the decision counts on."""


@checked(frozen=True, kw_only=True, config=STRICT)
class Standing:
    """What a device says of itself before a round; None is what it cannot tell."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    t: Annotated[int, Field(ge=0)]
    """The round that it speaks of."""
    kind: Text
    """Device class, a name from `physics.devices.CLASSES`."""
    samples: Annotated[int, Field(ge=1, le=10**9)]
    """Training samples n_k."""
    tokens: Above
    """Tokens N_k that it will process in round t if it is scheduled."""
    model: Text
    """SHA-256 of the frozen model's weights."""
    memory_byte: Above | None = None
    """Memory that training may use [byte]."""
    flop_per_s: Above | None = None
    """Speed of its last training [FLOP/s]."""
    compute_power_w: Above | None = None
    """Power measured during it [W]."""
    uplink_bit_per_s: Above | None = None
    """Throughput to the server [bit/s]."""
    links_lost: Annotated[int, Field(ge=0)] = 0
    """How often the process that talks to the server has ended and been started again."""
    battery: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=False)] | None = None
    """State of charge."""


@checked(frozen=True, kw_only=True, config=STRICT)
class Answer:
    """What comes back for a task, but for the tensors."""

    protocol: Literal[1]
    kind: Literal["update", "report", "failure"]
    t: int
    device: int
    module: int
    """1…M of an update, 0 of what is none."""
    standing: Standing | None = None
    """Of the next round, or of this one in a report; a failure may lack it."""
    loss: Annotated[float, Field(allow_inf_nan=False, strict=False)] | None = None
    """Mean training loss over the local steps; None under differential privacy, and of what is no update."""
    compute_j: Finite | None = None
    """Measured energy of the training [J]; None where the platform measures none."""
    energy_source: Literal["rapl", "battery", "computed"] = "computed"
    reason: Text | None = None
    """Why it failed."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What a device is asked: to train a module, or to tell of itself."""

    t: int
    device: int
    """The device's number; −1 where the server does not know it yet."""
    setup: Mapping[str, Any]
    """The run's configuration as plain values."""
    module: int = 0
    """1…M, or 0: nothing to train."""
    limits: Limits | None = None
    lesson: Lesson | None = None

    def blob(self) -> bytes:
        """The task as it is sent."""
        lesson = self.lesson or Lesson({})
        parts = {"start": lesson.start, "fixed": lesson.fixed, "rest": lesson.rest}
        tensors = {f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
        values = {"protocol": PROTOCOL, "t": self.t, "device": self.device, "setup": self.setup, "module": self.module}
        limits = None if self.limits is None else TypeAdapter(Limits).dump_python(self.limits)
        return pack(values | {"pruning": lesson.pruning, "limits": limits}, tensors)

    @classmethod
    def of(cls, blob: bytes) -> "Task":
        """The task in a blob; raises Malformed."""
        values, tensors = unpack(blob)
        if values.get("protocol") != PROTOCOL:
            raise Malformed(f"a task of protocol {values.get('protocol')}; this airtune speaks {PROTOCOL}")
        try:
            limits = values["limits"] and TypeAdapter(Limits).validate_json(json.dumps(values["limits"]))
            parts = [part_of(tensors, f"{part}/") for part in ("start", "fixed", "rest")]
            lesson = Lesson(*parts, pruning=values["pruning"])
            return cls(values["t"], values["device"], values["setup"], values["module"], limits, lesson)
        except (KeyError, ValidationError) as error:
            raise Malformed(f"not a task: {error}") from None


def answer_blob(values: Mapping[str, Any], delta: Mapping[str, Tensor], reading: Reading | None = None) -> bytes:
    """An answer as it is sent: the values of `Answer`, and of an update its tensors."""
    tensors = {f"delta/{name}": tensor for name, tensor in delta.items()}
    if reading is not None:
        tensors["reading/energy"] = torch.from_numpy(np.array(reading.energy, dtype=np.float64))
        if reading.noise is not None:
            tensors["reading/noise"] = torch.from_numpy(np.array(reading.noise, dtype=np.float64))
    return pack({"protocol": PROTOCOL, **values}, tensors)


def answer_of(blob: bytes) -> tuple[Answer, Adapters]:
    """The answer in a blob and all its tensors; raises Malformed."""
    values, tensors = unpack(blob)
    try:
        return TypeAdapter(Answer).validate_json(json.dumps(values)), tensors
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Malformed(f"{where}: {first['msg'][:120]}") from None


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> Adapters:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
