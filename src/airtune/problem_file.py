"""One round's problem (P1) from JSON or plain values: the format, and every mistake in it as one line.

The arrays of a `Problem` are K×M; devices here may have different numbers of modules, and the missing ones are padded
with modules that are not feasible.
"""

import difflib
from dataclasses import fields
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from airtune.physics.link import OutageLink
from airtune.types import AirtuneError, Problem

LARGEST, SMALLEST = 1e30, 1e-30
"""Largest magnitude of a number, and least of one that must be positive: beyond, products of them could leave float64.
A gain, a power cap or an uplink time below the least counts as none."""
_SHOWN = 3
"""Mistakes told at most; the rest are counted."""

_FORBID = ConfigDict(extra="forbid")
_Number = Annotated[float, Field(strict=True, ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]
_Positive = Annotated[float, Field(strict=True, ge=SMALLEST, le=LARGEST, allow_inf_nan=False)]
_NonNegative = Annotated[float, Field(strict=True, ge=0, le=LARGEST, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_FORBID)
class RoundModule:
    """What one module would mean for its device in this round."""

    utility: _Number
    """U, what a delivered upload is worth, (11)."""
    payload_bit: _Positive
    """S, size of the upload [bit]."""
    uplink_s: _Number
    """τ_up, time left for the upload [s]; the module cannot be chosen if this is ≤ 0."""
    compute_j: _NonNegative
    """E_cmp, energy of computing [J]."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_FORBID)
class RoundDevice:
    """One device in this round."""

    gain: _NonNegative
    """g, mean channel power gain, linear; 0 if it cannot be heard."""
    power_max_w: _NonNegative
    """P, largest transmit power [W]."""
    pa_efficiency: Annotated[float, Field(strict=True, ge=SMALLEST, le=1, allow_inf_nan=False)]
    """ξ, power-amplifier efficiency in (0, 1]."""
    circuit_power_w: _NonNegative
    """P_circ, drawn by the radio while it transmits [W]."""
    queue_j: _NonNegative
    """Z, the price of a joule: the device's virtual energy queue [J], (13)."""
    modules: list[RoundModule]
    """What it may train, in any number and order."""


@dataclass(frozen=True, slots=True, kw_only=True, config=_FORBID)
class RoundProblem:
    """One round's problem (P1) as it is written in a file."""

    bandwidth_hz: _Positive
    """B, the band to share [Hz]."""
    noise_w_per_hz: _Positive
    """N0, noise density with noise figure and interference [W/Hz]."""
    snr_gap: Annotated[float, Field(strict=True, ge=1, le=LARGEST, allow_inf_nan=False)]
    """Γ_g ≥ 1, SNR gap, linear."""
    tradeoff_v: _Positive
    """V, the weight of learning against energy."""
    max_efficiency_bit_per_s_hz: _Positive | None = None
    """η_max, above which no upload arrives, (16) [bit/s/Hz]; None for no ceiling."""
    devices: Annotated[list[RoundDevice], Field(min_length=1)]


_ADAPTER = TypeAdapter(RoundProblem)

_RIGHT = {
    "bandwidth_hz": "a number of hertz > 0",
    "noise_w_per_hz": "a number of W/Hz > 0 (4e-21 is thermal noise at room temperature)",
    "snr_gap": "a linear ratio ≥ 1",
    "tradeoff_v": "a number > 0",
    "devices": "a list of at least one device",
    "max_efficiency_bit_per_s_hz": "a number of bit/s/Hz > 0, or null for no ceiling",
    "gain": "a linear power gain ≥ 0",
    "power_max_w": "a number of watts ≥ 0",
    "pa_efficiency": "a number > 0 and ≤ 1",
    "circuit_power_w": "a number of watts ≥ 0",
    "queue_j": "a number of joules ≥ 0",
    "modules": "a list of modules",
    "utility": "a number",
    "payload_bit": "a number of bits > 0",
    "uplink_s": "a number of seconds (≤ 0 if the module cannot be chosen)",
    "compute_j": "a number of joules ≥ 0",
}
"""What is right for each key."""
_DECIBEL = {"snr_gap": "dB", "noise_w_per_hz": "dBm/Hz", "gain": "dB", "power_max_w": "dBm"}
"""Keys that are often known in decibels, in which a number outside of the right range may be."""
_KEYS = {
    "": [field.name for field in fields(RoundProblem)],
    "devices": [field.name for field in fields(RoundDevice)],
    "modules": [field.name for field in fields(RoundModule)],
}


def parse_problem(text: bytes | str, where: str) -> Problem:
    """A problem from JSON.

    Args:
        text: UTF-8, with or without a byte order mark.
        where: its source, named first in an error.

    Raises:
        AirtuneError: not JSON, unknown or missing keys, or bad values; in one line.
    """
    raw = text.encode() if isinstance(text, str) else text
    try:
        return _posed(_ADAPTER.validate_json(raw.removeprefix(b"\xef\xbb\xbf")))
    except ValidationError as error:
        raise AirtuneError(f"{where}: {_told(error)}") from None


def problem_from(values: object, where: str = "problem") -> Problem:
    """A problem from plain values in the shape of the JSON; numbers may be NumPy's, lists may be arrays or tuples.

    Raises:
        AirtuneError: unknown or missing keys, or bad values; in one line.
    """
    try:
        return _posed(_ADAPTER.validate_python(values))
    except ValidationError as error:
        raise AirtuneError(f"{where}: {_told(error)}") from None


def _posed(given: RoundProblem) -> Problem:
    """The arrays of (P1). The round stands for itself: one round, nothing spent, devices of equal weight."""
    devices = given.devices
    counts = np.array([len(device.modules) for device in devices])
    present = np.arange(max(int(counts.max()), 1)) < counts[:, None]

    def column(name: str) -> NDArray[np.float64]:
        return np.array([getattr(device, name) for device in devices], np.float64)

    def table(name: str, absent: float) -> NDArray[np.float64]:
        full = np.full(present.shape, absent)
        full[present] = [getattr(module, name) for device in devices for module in device.modules]
        return full

    gain, power_max_w, uplink_s = column("gain"), column("power_max_w"), table("uplink_s", -1.0)
    able = (gain >= SMALLEST) & (power_max_w >= SMALLEST)
    return Problem(
        t=0,
        rounds=1,
        tradeoff_v=given.tradeoff_v,
        bandwidth_hz=given.bandwidth_hz,
        link=OutageLink(given.noise_w_per_hz, given.snr_gap, given.max_efficiency_bit_per_s_hz or np.inf),
        gain=gain,
        pa_efficiency=column("pa_efficiency"),
        circuit_power_w=column("circuit_power_w"),
        queue_j=column("queue_j"),
        spent_j=np.zeros(len(devices)),
        budget_j=np.zeros(len(devices)),
        weight=np.full(len(devices), 1.0 / len(devices)),
        utility=table("utility", 0.0),
        payload_bit=table("payload_bit", 1.0),
        uplink_s=uplink_s,
        compute_j=table("compute_j", 0.0),
        power_max_w=np.where(present, power_max_w[:, None], 0.0),
        feasible=present & (uplink_s >= SMALLEST) & able[:, None],
    )


def _told(error: ValidationError) -> str:
    """The first mistakes in one line, and how many more there are."""
    details = error.errors(include_url=False, include_context=False)
    more = len(details) - _SHOWN
    told = "; ".join(_mistake(item) for item in details[:_SHOWN])
    return f"{told}; and {more:,} more mistakes" if more > 0 else told


def _mistake(item: ErrorDetails) -> str:
    """One mistake: where, what is right, what it is."""
    if item["type"] == "json_invalid":
        return f"not valid JSON: {item['msg'].removeprefix('Invalid JSON: ')}; docs/solve.md shows the format"
    path = [str(part) for part in item["loc"]]
    key, names = ".".join(path), [part for part in path if not part.isdigit()]
    name = names[-1] if names else ""
    if item["type"] == "missing":
        return f"{key}: missing; it must be {_RIGHT[name]}"
    if item["type"] == "unexpected_keyword_argument":
        known = _KEYS.get(names[-2] if len(names) > 1 else "", [])
        near = difflib.get_close_matches(name, known, 1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")
    if item["type"] == "dataclass_type":
        kind = {"devices": "a device, an object", "modules": "a module, an object"}.get(name, "an object")
        known = _KEYS.get(name, [])
        return f"{key + ': ' if key else ''}must be {kind} with {', '.join(known)}, got {_shown(item['input'])}"
    told = f"{key}: must be {_right(name, item)}, got {_shown(item['input'])}"
    below = item["type"] in ("greater_than", "greater_than_equal")
    return told + (f"; is it in {_DECIBEL[name]}?" if below and name in _DECIBEL else "")


def _right(name: str, item: ErrorDetails) -> str:
    """What is right for a key."""
    value, right = item["input"], _RIGHT[name]
    if item["type"] == "finite_number":
        return f"{right}, and finite"
    if isinstance(value, int | float) and abs(value) > LARGEST:
        return f"{right}, and of magnitude {LARGEST:g} at most"
    if isinstance(value, float) and 0 < value < SMALLEST:
        return f"{right}, and {SMALLEST:g} at least"
    return right


def _shown(value: object) -> str:
    """A value in a few words, as JSON would have it."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return "null"
        case dict():
            return "an object"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case _:
            text = repr(value)
            return text if len(text) <= 40 else text[:36] + " …"
