"""Vehicles on straight roads through the cell, and how fast their shadowing changes.

Each moving device drives along the chord of the cell through its first position, in a direction of its own, and turns
back at the cell's edge: random direction mobility with reflection (T. Camp, J. Boleng and V. Davies, *A survey of
mobility models for ad hoc network research*, Wireless Commun. Mob. Comput. 2(5), 2002), on one road per device. A
position that is uniform over the cell stays so.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airtune.config import WorldConfig
from airtune.physics.fading import positions_m
from airtune.rng import Stream, generator
from airtune.types import AnyFloat, BoolK, FloatK


class Places:
    """Where the devices are in each round: uniform over the cell at first; vehicles drive, all others stand.

    Args:
        config: cell, speed and deadline: a round lasts its deadline.
        kind: device classes, K of them.
        seed: of the run.
    """

    __slots__ = ("_config", "_heading_rad", "moves", "start_m")

    moves: BoolK
    """Vehicles that have a speed, shape K."""
    start_m: NDArray[np.float64]
    """Positions (x, y) before the first round, with the base station at the origin, K×2 [m]."""

    def __init__(self, config: WorldConfig, kind: Sequence[str], seed: int) -> None:
        self.start_m = positions_m(seed, len(kind), config.cell_radius_m, config.min_distance_m)
        self.start_m.flags.writeable = False
        self.moves = np.array([each == "vehicle" for each in kind]) & (config.vehicle_speed_mps > 0.0)
        self._config = config
        self._heading_rad = headings_rad(seed, len(kind))

    def positions_m(self, t: int) -> NDArray[np.float64]:
        """Positions at the start of round t, K×2 [m]."""
        travelled_m = t * self._config.deadline_s * self._config.vehicle_speed_mps
        driven = on_road_m(self.start_m, self._heading_rad, travelled_m, self._config.cell_radius_m)
        return np.where(self.moves[:, None], driven, self.start_m)

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors of the roads as first driven, K×2."""
        return np.stack((np.cos(self._heading_rad), np.sin(self._heading_rad)), axis=1)

    def correlation(self, standing: float) -> AnyFloat:
        """Correlation between rounds of what changes with the place: by the way driven, `standing` where there is none.

        Shape K, or the scalar if nobody moves.
        """
        if not self.moves.any():
            return standing
        moved_m = self._config.vehicle_speed_mps * self._config.deadline_s
        return np.where(self.moves, shadowing_correlation(moved_m, self._config.decorrelation_m), standing)


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
