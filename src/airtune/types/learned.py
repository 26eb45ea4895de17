"""Nouns of learning: what devices are given, what comes back and at what cost, and what the controller remembers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from airtune.types.basic import BoolK, FloatK, FloatM, IntK, freeze
from airtune.types.cell import Decision, Observation, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What one delivered upload tells about the constants of the bound, by nested increment, §7."""

    device: int
    module: int
    """1…M."""
    energy: FloatM
    """Squared norm of the coordinates in module j and not in module j − 1 of a gradient at θ_t; 0 beyond the module."""
    noise: FloatM | None
    """Unbiased estimate of what mini-batch noise adds to `energy`; None if the device cannot tell."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One delivered upload."""

    device: int
    module: int
    """1…M."""
    weight: float
    """ω_k."""
    delta: Mapping[str, Any]
    """Name → tensor: change of the module's slice of the global adapter and of the task head."""
    loss: float | None
    """Mean training loss over the local steps; None under differential privacy, where it is not sent."""
    report: Report | None = None
    """What the estimates of the constants are made of; None from a fleet that does not report."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a fleet of real devices tells of one of them in a round."""

    lost: str | None
    """Why its upload does not count, in words; None if it does."""
    energy_source: str
    """What the energy of its computing is from: rapl, battery, or computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a round did: who delivered, at what cost, and the delivered updates (consumed once)."""

    scheduled: BoolK
    delivered: BoolK
    compute_j: FloatK
    transmit_j: FloatK
    tokens: FloatK
    """Tokens processed by each scheduled device."""
    updates: Iterable[Update]
    notes: Mapping[int, Note] | None = None
    """What else there is to say of each scheduled device; None from a fleet that has nothing to say."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def energy_j(self) -> FloatK:
        """E_k(t) = E_cmp + E_up [J]."""
        return self.compute_j + self.transmit_j


@dataclass(frozen=True, slots=True, eq=False)
class Offer:
    """What the learning method asks of the radio in a round, known before the decision."""

    payload_bit: FloatM
    """Upload of each module [bit]."""
    downlink_bit: FloatM
    """Download of each module [bit]."""
    largest: IntK | None = None
    """Largest module, 1…M, that each device may train; None for no limit."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """What a device computes with in a round, name → tensor."""

    start: Mapping[str, Any]
    """What it trains and uploads the change of."""
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What of its module it holds still."""
    rest: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What lies beyond its module: other components, changes of the frozen weights."""
    pruning: int | None = None
    """Module that training is to make suffice, by a penalty on what lies beyond it; None for no penalty."""


Lessons: TypeAlias = Callable[[int, int], Lesson]
"""Device and module (1…M) → lesson."""


@runtime_checkable
class Fleet(Protocol):
    """Where decisions are carried out."""

    def execute(self, lessons: Lessons, decision: Decision, problem: Problem, observation: Observation) -> Outcome: ...


@dataclass(frozen=True, slots=True, eq=False)
class Estimates:
    """What was heard about the constants of the bound, as sums that forget; part of the checkpoint, §7.

    A value heard s rounds ago weighs λ^s. Made and read by `theory.estimates`.
    """

    level: FloatK
    """Sum of each device's samples of Γ_k²: energy less noise over the captured share; a sample may be negative."""
    gross: FloatK
    """The same without the noise taken off."""
    heard: FloatK
    """Number of these samples."""
    inner: FloatM
    """Sum over the updates larger than module m of their energy less noise within module m; unused for M."""
    outer: FloatM
    """The same within module m + 1."""
    larger: FloatM
    """Number of these updates."""
    noise: FloatM
    """Sum of the reported noise of each nested increment."""
    reported: FloatM
    """Number of these reports."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What the controller remembers between rounds; part of the checkpoint."""

    queue_j: FloatK
    """Z_k, (13)."""
    spent_j: FloatK
    """Σ E_k so far."""
    bound: float
    """(9) so far, with Φ_t by (10)."""
    bound_tight: float
    """(9) so far, with Φ'_t by (12)."""
    estimates: Estimates
    """Of the constants, §7."""
    price: float | None = None
    """λ of the last round [J²/Hz]; None if its solver gave none."""

    def __post_init__(self) -> None:
        freeze(self)
