"""Nouns of the cell: devices, modules, radio, what is observed, the round's problem and its decision."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from airtune.types.basic import AnyFloat, BoolK, BoolKM, FloatK, FloatKM, FloatM, IntK, IntM, freeze


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
    devices: Devices | None = None
    """The devices as they are measured by now; None where they are what they were when the run began."""

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


@dataclass(frozen=True, slots=True, eq=False)
class Transmission:
    """What became of a round's uploads."""

    delivered: BoolK
    airtime_s: FloatK
    """How long each device's radio was on, at most its τ_up [s]; 0 where it sits out."""

    def __post_init__(self) -> None:
        freeze(self)


@runtime_checkable
class Air(Protocol):
    """Decides what becomes of uploads; asked once a round is decided, never before."""

    def transmit(self, decision: Decision, problem: Problem) -> Transmission: ...


@runtime_checkable
class Policy(Protocol):
    """Decides a round. Any callable object with this signature is a policy."""

    def __call__(self, problem: Problem) -> Decision: ...


@runtime_checkable
class World(Protocol):
    """Where observations come from: drawn, traced or measured."""

    def observe(self, t: int) -> Observation: ...
