"""Settings of the worlds that are not drawn from the analytic cell's formulas."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from airtune.config.values import STRICT, Fraction, NonNegative, Positive


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
