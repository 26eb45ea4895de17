"""Rows as arrays and curves over seeds; `plots` and `page` draw them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.report import Rows, Run

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Mean over seeds, and a band from the lowest to the highest seed; each of length E, that of the shortest run."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def evaluated(rounds: Rows) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Evaluated rounds of a run: round (from 1), cumulative energy [J] and accuracy, each of length E."""
    spent_j = np.cumsum([row["energy_compute_j"] + row["energy_transmit_j"] for row in rounds])
    at = [i for i, row in enumerate(rounds) if row["accuracy"] is not None]
    t = np.array([rounds[i]["t"] + 1 for i in at], dtype=np.int64)
    return t, spent_j[at], np.array([rounds[i]["accuracy"] for i in at], dtype=np.float64)


def accuracy_curve(runs: Sequence[Run], *, against_energy: bool) -> Curve:
    """Accuracy over the round (from 1), or over the energy that the seeds have spent by then on average [J]."""
    curves = [evaluated(run.rounds) for run in runs]
    shortest = min(len(curve[0]) for curve in curves)
    x = np.mean([curve[int(against_energy)][:shortest] for curve in curves], axis=0)
    return _over_seeds(x, [curve[2][:shortest] for curve in curves])


def row_curve(runs: Sequence[Run], value: Callable[[Mapping[str, Any]], float | None]) -> Curve:
    """A value of the round rows over the round (from 1); None becomes NaN."""
    shortest = min(len(run.rounds) for run in runs)
    values = [[np.nan if (v := value(row)) is None else v for row in run.rounds[:shortest]] for run in runs]
    x = np.array([row["t"] + 1 for row in runs[0].rounds[:shortest]], dtype=np.float64)
    return _over_seeds(x, [np.array(each, dtype=np.float64) for each in values])


def _over_seeds(x: Floats, values: Sequence[Floats]) -> Curve:
    each = np.array(values).reshape(len(values), len(x))
    return Curve(x, each.mean(axis=0), each.min(axis=0), each.max(axis=0))


def table(devices: Rows, key: str) -> Floats:
    """One field of the device rows as a T×K array, float64, devices in order of number; NaN where there is no row."""
    ks = {k: i for i, k in enumerate(sorted({row["device"] for row in devices}))}
    ts = {t: i for i, t in enumerate(sorted({row["t"] for row in devices}))}
    values = np.full((len(ts), len(ks)), np.nan)
    for row in devices:
        values[ts[row["t"]], ks[row["device"]]] = row[key]
    return values
