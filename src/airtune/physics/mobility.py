"""Vehicles on straight roads through the cell, and how fast their shadowing changes.

Each moving device drives along the chord of the cell through its first position, in a direction of its own, and turns
back at the cell's edge: random direction mobility with reflection (T. Camp, J. Boleng and V. Davies, *A survey of
mobility models for ad hoc network research*, Wireless Commun. Mob. Comput. 2(5), 2002), on one road per device. A
position that is uniform over the cell stays so.
"""

import math

import numpy as np
from numpy.typing import NDArray

from airtune.rng import Stream, generator
from airtune.types import AnyFloat, FloatK


def headings_rad(seed: int, devices: int) -> FloatK:
    """Direction of each device's road, uniform in [0, 2π), shape K [rad]."""
    return 2.0 * math.pi * generator(seed, Stream.HEADING).random(devices)


def on_road_m(
    start_m: NDArray[np.float64], heading_rad: FloatK, travelled_m: AnyFloat, radius_m: float
) -> NDArray[np.float64]:
    """Positions after some way, K×2 [m].

    Args:
        start_m: first positions, within the cell around the origin, K×2 [m].
        heading_rad: directions, shape K [rad].
        travelled_m: way driven since then, ≥ 0 [m]; shape K or a scalar.
        radius_m: of the cell [m].
    """
    along = np.stack((np.cos(heading_rad), np.sin(heading_rad)), axis=1)
    place = (start_m * along).sum(axis=1)
    foot = start_m - place[:, None] * along
    half = np.sqrt(np.maximum(radius_m**2 - (foot**2).sum(axis=1), 0.0))
    lap = 4.0 * np.maximum(half, 1e-9)
    way = np.mod(place + half + travelled_m, lap)
    place = np.minimum(way, lap - way) - half
    return foot + place[:, None] * along


def shadowing_correlation(moved_m: AnyFloat, decorrelation_m: float) -> NDArray[np.float64]:
    """Correlation of shadowing over a way, ρ = e^{−Δ/d} with decorrelation distance d.

    Source: M. Gudmundson, *Correlation model for shadow fading in mobile radio systems*, Electronics Letters 27(23),
    1991; with d where the correlation is 1/e, as 3GPP TR 36.885 and TR 38.901, §7.4.4, use it.

    Args:
        moved_m: Δ ≥ 0 [m].
        decorrelation_m: d > 0 [m].
    """
    return np.exp(-np.asarray(moved_m, np.float64) / decorrelation_m)
