"""Settings of the cell and of where its channels come from."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from airtune.config.values import STRICT, Fraction, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WorldConfig:
    """The radio cell, and where its channels come from."""

    kind: Literal["analytic", "sionna", "trace"] = "analytic"
    """analytic: drawn from the formulas below; sionna: 3GPP TR 38.901 (table sionna); trace: measured (table trace)."""
    cell_radius_m: Annotated[float, Field(gt=0, le=1e6)] = 500.0
    min_distance_m: Positive = 35.0
    """Closest a device may be to the base station [m]."""
    bandwidth_hz: Annotated[float, Field(ge=1e3, le=1e10)] = 1e6
    """Uplink band B [Hz]."""
    deadline_s: Annotated[float, Field(gt=0, le=1e9)] = 10.0
    """Round deadline τ [s]."""
    noise_dbm_per_hz: Annotated[float, Field(ge=-200, le=-100)] = -174.0
    """Thermal noise density [dBm/Hz]."""
    noise_figure_db: Annotated[float, Field(ge=0, le=200)] = 5.0
    interference_margin_db: Annotated[float, Field(ge=0, le=200)] = 3.0
    snr_gap_db: Annotated[float, Field(ge=0, le=200)] = 3.0
    """Γ_g [dB], the distance of a practical code from capacity."""
    max_efficiency_bit_per_s_hz: Positive | None = None
    """η_max [bit/s/Hz], (16): no upload arrives at a higher rate over its band, and the policies know it. None: no
    ceiling; where sionna.deliveries is abstraction, that of its MCS table (a large number takes it away)."""
    delivery: Annotated[float, Field(gt=0, le=1)] | None = None
    """Mean delivery of uploads at full power over fleet and run, whatever their size and band, the far losing more;
    for policies that choose neither power nor band; None: by the link."""
    link: Literal["outage", "waterfall"] = "outage"
    """outage: rate fixed by payload and time, (5); waterfall: PER = 1 − exp(−m N0 b / (p g)) at a feasible rate."""
    waterfall_m_linear: Positive = 1.0
    """Waterfall threshold m of the waterfall link, linear (not dB)."""
    bs_power_dbm: Annotated[float, Field(ge=-30, le=80)] = 46.0
    shadowing_std_db: Annotated[float, Field(ge=0, le=100)] = 8.0
    shadowing_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Correlation of the shadowing of one device between rounds (first-order); of those that do not move."""
    path_loss_1km_db: Annotated[float, Field(ge=0, le=300)] = 128.1
    """Path loss at 1 km [dB]: 3GPP macro cell at 2 GHz."""
    path_loss_per_decade_db: Annotated[float, Field(ge=0, le=100)] = 37.6
    """What ten times the distance adds [dB]."""
    vehicle_speed_mps: Annotated[float, Field(ge=0, le=150)] = 0.0
    """Speed of devices of class vehicle on straight roads through the cell [m/s]; 0: they stand as all others do."""
    decorrelation_m: Positive = 50.0
    """Way over which a vehicle's shadowing keeps a correlation of 1/e [m]."""
    availability: Fraction = 1.0
    """Probability that a device is reachable in a round."""

    @model_validator(mode="after")
    def _ring(self) -> "WorldConfig":
        if self.min_distance_m >= self.cell_radius_m:
            raise ValueError(
                f"min_distance_m must be below cell_radius_m, got {self.min_distance_m} and {self.cell_radius_m}"
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SionnaConfig:
    """Channels of 3GPP TR 38.901 and NR link tables, for `world.kind = "sionna"`; docs/worlds.md."""

    scenario: Literal["umi", "uma", "rma"] = "uma"
    """Urban micro (street canyon), urban macro, rural macro."""
    carrier_hz: Annotated[float, Field(ge=0.5e9, le=100e9)] = 2e9
    bs_height_m: Positive | None = None
    """Base station's antenna [m]; None for 10 (umi), 25 (uma) or 35 (rma)."""
    ut_height_m: Positive = 1.5
    line_of_sight: Literal["drawn", "always", "never"] = "drawn"
    """drawn: by the scenario's probability at the distance; devices that stand keep it."""
    shadowing: bool = True
    indoor: Fraction = 0.0
    """Share of the devices other than vehicles that are indoors (evaluations often take 0.8)."""
    penetration: Literal["low", "high"] = "low"
    """Loss model of outer walls above 6 GHz; below, and in rma, there is but one."""
    deliveries: Literal["abstraction", "rayleigh"] = "abstraction"
    """abstraction: fades of TR 38.901, NR link tables, HARQ; rayleigh: the analytic link's fades over these gains."""
    mcs_table: Annotated[int, Field(ge=1, le=2)] = 1
    """PUSCH table of TS 38.214: 1 up to 64QAM (5.1.3.1-1), 2 up to 256QAM (5.1.3.1-2)."""
    retransmissions: Annotated[int, Field(ge=0, le=15)] = 3
    """HARQ retransmissions of a transport block before it starts afresh."""
    reserve: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the first transmissions' time that the rate leaves for others, NR's target block error."""
    transport_block_bit: Annotated[int, Field(ge=100, le=8000)] = 1900
    """Aimed at; rounded as TS 38.214, 5.1.3.2, does. The link tables hold code blocks of up to 2,000 bits."""
    fades: Annotated[int, Field(ge=1, le=1000)] = 8
    """Instants a round at which the fading is looked at, evenly spaced over the deadline."""
    fading_speed_mps: NonNegative = 0.0
    """Speed that the fading of standing devices goes by [m/s]; 0: one fade a round (evaluations take 3 km/h = 0.83)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TraceConfig:
    """A world measured before, for `world.kind = "trace"`; docs/worlds.md."""

    file: Path | None = None
    """CSV or Parquet file with a row for each round and device."""
    beyond: Literal["refuse", "repeat"] = "refuse"
    """A run longer than the trace: refuse it, or start the trace again."""
