"""Rows that a run writes, one JSON object a line, and how they are encoded and read. Rounds count from 0."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from airtune.types import AirtuneError


class RoundRow(TypedDict):
    """One line of rounds.jsonl. Totals are over the fleet."""

    t: int
    """Round, from 0."""
    scheduled: int
    delivered: int
    energy_compute_j: float
    energy_transmit_j: float
    tokens: float
    uplink_bit: float
    """Sent up by those scheduled, delivered or not [bit]."""
    downlink_bit: float
    """Sent down to those scheduled [bit]."""
    loss: float | None
    """Mean training loss of those who delivered; null if nobody did, and under differential privacy, where it is not
    sent."""
    accuracy: float | None
    """The task's metric on the dev subset after this round; null if it was not evaluated."""
    measures: dict[str, float] | None
    """Further measures there, by name; of scores and responses one is the dev loss. Null if it was not evaluated."""
    objective: float
    """Value of (P1)."""
    upper_bound: float | None
    """Proven upper bound on (P1); null from solvers that give none."""
    certificate: float | None
    """How far the objective is from it, relatively: (bound − objective) / bound."""
    price: float | None
    """λ, what one more hertz would be worth [J²/Hz]."""
    status: str
    phi: float
    """Φ_t, (10)."""
    phi_tight: float
    """Φ'_t, (12)."""
    bound: float
    """(9) with (10), Theorem 1."""
    bound_tight: float
    """(9) with (12), Theorem 2: asks for more, unbiased gradients and independent devices."""
    bound_kind: str
    """estimated, or exact where the constants are known."""
    queue_mean_j: float
    queue_max_j: float
    spent_j: float
    """Energy spent up to and including this round [J]."""
    max_overspend_ratio: float
    """max_k of device k's energy so far over its budget so far, (t + 1)·Ē_k; 1 is exactly on budget."""
    modules: list[int]
    """Number of devices on each module, length M + 1; entry 0 counts the idle ones."""
    delta: list[float]
    """Estimate of δ_1 … δ_M after this round."""
    noise_sq: float
    """Estimate after this round of the noise of one mini-batch's gradient, whole module."""
    epsilon: NotRequired[float]
    """ε so far, at `privacy.delta`, of the device that sent in the most rounds; only under differential privacy."""


class DeviceRow(TypedDict):
    """One line of devices.jsonl; with fleet.active, of the devices drawn for the round alone. Of real devices there are
    two more: `lost`, why an upload does not count, or null, and `energy_source`: rapl, battery, computed, or none of a
    device that sat out.
    """

    t: int
    device: int
    kind: str
    gain: float
    """Mean channel power gain, linear."""
    module: int
    """0 idle, else 1…M."""
    power_w: float
    bandwidth_hz: float
    success_probability: float
    delivered: bool
    energy_compute_j: float
    energy_transmit_j: float
    tokens: float
    queue_j: float
    spent_j: float
    gamma_sq: float
    """Estimate of Γ_k² after this round, without the optimism that decisions add."""


class TimingRow(TypedDict):
    """One line of timings.jsonl, wall-clock seconds."""

    t: int
    observe_s: float
    decide_s: float
    execute_s: float
    evaluate_s: float
    wall_s: float
    """Since the start of this round."""
    elapsed_s: float
    """Spent on the run until the end of this round, by this process and those that it was resumed from."""


class Summary(TypedDict):
    """summary.json, written when the run has ended."""

    task: str
    model: str
    policy: str
    seed: int
    rounds: int
    accuracy: float | None
    energy_j: float
    energy_compute_j: float
    energy_transmit_j: float
    budget_j: float
    """T·Σ_k Ē_k."""
    max_overspend_ratio: float
    delivery_rate: float | None
    """Delivered over scheduled uploads; null if nothing was scheduled."""
    tokens: float
    wall_s: float
    """Duration: loading, tokenising, rounds, last evaluation and export, summed over resumes. Counted from the call of
    run or resume, so without Python's start; of a process that was killed up to its last written round; in a comparison
    the first run alone loads the model and data that all share."""
    bound: float | None
    """Theorem 1's."""
    bound_tight: float | None
    """Theorem 2's; null in rows of a version that did not compute it."""
    module_histogram: list[int]
    """Device-rounds on each module, length M + 1."""
    epsilon: NotRequired[float]
    """The last row's."""


def plain(value: object) -> Any:
    """A JSON-ready copy: NumPy scalars and arrays become Python's, NaN and infinities None, paths strings."""
    match value:
        case float() | np.floating():
            return float(value) if math.isfinite(value) else None
        case np.generic():
            return value.item()
        case np.ndarray():
            return plain(cast("NDArray[Any]", value).tolist())
        case Mapping():
            return {str(key): plain(item) for key, item in cast("Mapping[object, object]", value).items()}
        case list() | tuple():
            return [plain(item) for item in cast("Iterable[object]", value)]
        case Path():
            return str(value)
        case _:
            return value


def encode(row: Mapping[str, object], kind: type[RoundRow] | type[DeviceRow] | type[TimingRow]) -> bytes:
    """One line of JSON, NaN written as null. Raises AirtuneError if the row lacks a field of its kind."""
    missing = kind.__required_keys__ - row.keys()
    if missing:
        raise AirtuneError(f"a {kind.__name__} must have every field; it lacks {', '.join(sorted(missing))}")
    return (json.dumps(plain(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()


def scan(path: Path) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Rows of a file in order, each with the offset of its end [byte]; None for a line that is torn or damaged.

    A missing file has no rows.
    """
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            sound = isinstance(row, dict) and isinstance(cast("dict[str, object]", row).get("t"), int)
            yield (cast("dict[str, Any]", row) if sound else None), end


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a file; a torn last line is left out. Raises AirtuneError if an earlier line is damaged."""
    rows = [row for row, _ in scan(path)]
    if rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise AirtuneError(f"{path}: line {rows.index(None) + 1} is damaged; it should be a JSON row with its round t")
    return cast("list[dict[str, Any]]", rows)
