"""Nouns and Protocols of airtune. Imports nothing of ours.

Symbols: K devices, M modules, T rounds. Arrays are NumPy float64 unless stated, SI units, linear scale.
Module index 0 means "sits the round out"; modules count 1…M, so module m owns column m − 1 of a K×M array.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

if TYPE_CHECKING:
    FloatK: TypeAlias = NDArray[np.float64]
    FloatM: TypeAlias = NDArray[np.float64]
    FloatKM: TypeAlias = NDArray[np.float64]
    IntK: TypeAlias = NDArray[np.int64]
    IntM: TypeAlias = NDArray[np.int64]
    BoolK: TypeAlias = NDArray[np.bool_]
    BoolKM: TypeAlias = NDArray[np.bool_]
else:
    FloatK = Float[np.ndarray, " K"]
    FloatM = Float[np.ndarray, " M"]
    FloatKM = Float[np.ndarray, "K M"]
    IntK = Int[np.ndarray, " K"]
    IntM = Int[np.ndarray, " M"]
    BoolK = Bool[np.ndarray, " K"]
    BoolKM = Bool[np.ndarray, "K M"]


AnyFloat: TypeAlias = float | NDArray[np.float64]


class AirtuneError(Exception):
    """A mistake in the input or the surroundings, told in one line; the command line exits with 2."""


def freeze(instance: object) -> None:
    """Make every array field of a frozen dataclass read-only (call from `__post_init__`)."""
    for one in fields(instance):  # pyright: ignore[reportArgumentType]
        value = getattr(instance, one.name)
        if isinstance(value, np.ndarray):
            value.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class Devices:
    """The fleet's fixed properties, K devices, §1."""

    kind: tuple[str, ...]
    """Device class of each device, a name from `physics.devices.CLASSES`."""
    frequency_hz: FloatK
    """Clock f_k [Hz]."""
    flop_per_cycle: FloatK
    """φ_k [FLOP/cycle]."""
    capacitance: FloatK
    """Effective switched capacitance κ_k [F]: the chip draws κ f³ watts at full load."""
    memory_byte: FloatK
    """Memory that training may use [byte]."""
    power_max_w: FloatK
    """Largest transmit power P_k [W]."""
    pa_efficiency: FloatK
    """Power-amplifier efficiency ξ in (0, 1]."""
    circuit_power_w: FloatK
    """Radio circuit power P_circ while transmitting [W]."""
    budget_j: FloatK
    """Long-term energy budget Ē_k [J per round]."""
    samples: IntK
    """Training samples n_k."""
    weight: FloatK
    """Weight ω_k of the device in the global objective; sums to 1."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, eq=False)
class Modules:
    """The nested family of LoRA modules m = 1…M, smallest first, §1."""

    rank: IntM
    depth: IntM
    parameters: IntM
    """d_m, adapter and task head."""
    payload_bit: FloatM
    """Upload size S_m [bit]."""
    downlink_bit: FloatM
    """What a device downloads for module m [bit]: S_m, or S_M where it computes with the whole global adapter."""
    flop_per_token: FloatM
    """F_m [FLOP/token], forward and backward."""
    memory_byte: FloatM
    """Peak training memory M_m [byte]."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.rank)


@dataclass(frozen=True, slots=True)
class Radio:
    """The cell's radio resources, §1."""

    bandwidth_hz: float
    """Uplink band B [Hz], shared by OFDMA; the downlink broadcasts over the same width."""
    noise_w_per_hz: float
    """Noise density N0 [W/Hz], noise figure and interference margin included."""
    snr_gap: float
    """SNR gap Γ_g ≥ 1, linear."""
    deadline_s: float
    """Round deadline τ [s]."""
    bs_power_w: float
    """Base-station transmit power P_BS [W]."""


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What is known before deciding on round t."""

    t: int
    gain: FloatK
    """Mean channel power gain g_k(t), linear."""
    available: BoolK
    tokens: FloatK
    """Tokens N_k that device k will process if it is scheduled (its mini-batches are drawn ahead); 0 if it is no
    candidate."""
    candidates: BoolK | None = None
    """The devices drawn for this round, of which `available` ones can be reached; None where all are."""

    def __post_init__(self) -> None:
        freeze(self)


@runtime_checkable
class Link(Protocol):
    """How an upload fails: success probability exp(−c/p) for any power p ≥ the least the rate allows, (6).

    All arguments broadcast; bandwidth 0 gives c = ∞. A realised outcome may be drawn from another model.
    """

    def outage_power_w(
        self, payload_bit: "AnyFloat", uplink_s: "AnyFloat", bandwidth_hz: "AnyFloat", gain: "AnyFloat"
    ) -> NDArray[np.float64]:
        """c(k, m, b) [W]."""
        ...

    def power_min_w(
        self, payload_bit: "AnyFloat", uplink_s: "AnyFloat", bandwidth_hz: "AnyFloat", gain: "AnyFloat"
    ) -> NDArray[np.float64]:
        """Least power at which the rate fits in the band [W]; 0 where the link has no such constraint."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One round's problem (P1), everything a policy may look at.

    Maximise Σ_active V·U·π − Z·(E_cmp + E_up) over module, power and bandwidth, subject to
    Σ_k b_k ≤ B, 0 ≤ p ≤ `power_max_w`, and only modules with `feasible`.
    """

    t: int
    rounds: int
    """Horizon T."""
    tradeoff_v: float
    """V, the weight of learning against energy."""
    bandwidth_hz: float
    """B [Hz]."""
    link: Link
    gain: FloatK
    """g_k."""
    pa_efficiency: FloatK
    circuit_power_w: FloatK
    queue_j: FloatK
    """Virtual energy queue Z_k(t) [J], (13)."""
    spent_j: FloatK
    """Energy spent in rounds before t [J]."""
    budget_j: FloatK
    """Ē_k [J per round]."""
    weight: FloatK
    """ω_k."""
    utility: FloatKM
    """U_{k,m}, (11)."""
    payload_bit: FloatKM
    """S_m for each device [bit]."""
    uplink_s: FloatKM
    """τ_up(k,m), (4) [s]; ≤ 0 where the deadline cannot be met."""
    compute_j: FloatKM
    """E_cmp(k,m), (2) [J]."""
    power_max_w: FloatKM
    """Power cap for (k,m) [W]: P_k, or less where the energy account allows less; ≤ 0 if none is allowed."""
    feasible: BoolKM
    """Memory, deadline, availability and account allow module m on device k."""
    price: float | None = None
    """λ of the last round [J²/Hz], where a solver may start from; None for none."""
    candidates: BoolK | None = None
    """The devices drawn for this round; nobody else has a feasible module. None where all are."""

    def __post_init__(self) -> None:
        freeze(self)


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Module, power and bandwidth of each device for one round, and what the solver knows about it."""

    module: IntK
    """0 sits out, else 1…M."""
    power_w: FloatK
    bandwidth_hz: FloatK
    success_probability: FloatK
    """π_k, (6), as predicted; 0 for a device that sits out."""
    objective: float
    """Value of (P1)."""
    upper_bound: float | None = None
    """A proven upper bound on (P1)'s optimum, from solvers that give one."""
    price: float | None = None
    """λ [J²/Hz], what one more hertz would be worth, from solvers that give one."""
    iterations: int = 0
    status: str = "ok"
    error_free: bool = False
    """Only the unlimited upper-bound policy sets this: every scheduled upload arrives and no energy limit binds."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def certificate(self) -> float | None:
        """(Upper bound − objective) / upper bound: the optimum of (P1) is no further away; None without a bound."""
        if self.upper_bound is None:
            return None
        return (self.upper_bound - self.objective) / abs(self.upper_bound) if self.upper_bound else 0.0


@runtime_checkable
class Policy(Protocol):
    """Decides a round. Any callable object with this signature is a policy."""

    def __call__(self, problem: Problem) -> Decision: ...


@runtime_checkable
class World(Protocol):
    """Where observations come from: drawn, traced or measured."""

    def observe(self, t: int) -> Observation: ...


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
    loss: float
    """Mean training loss over the local steps."""
    report: Report | None = None
    """What the estimates of the constants are made of; None from a fleet that does not report."""


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
