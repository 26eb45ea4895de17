"""The world of 3GPP TR 38.901: path loss, line of sight, shadowing and penetration by Sionna, vehicles on roads."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from airtune.config import RunConfig
from airtune.physics.fading import Shadowing
from airtune.physics.mobility import Places
from airtune.rng import Stream, generator
from airtune.types import BoolK, Devices, FloatK, Observation
from airtune.worlds.analytic import observation
from airtune.worlds.tr38901 import Channels, Topology

CARRIERS = 12
"""Carriers across a device's band at which fading is looked at: as many as a physical resource block has."""


class SionnaWorld:
    """A `World` whose mean gain is path loss, penetration and shadowing of a TR 38.901 scenario.

    What is known before deciding is the large scale alone: `gain`. `fading_power` is the small scale, for those who
    carry a decision out. Both depend on (configuration, seed, t), whatever was asked before.

    - Line of sight: Φ(X_k(t)) below the scenario's probability at the place, with X Gaussian, first-order, correlated
      by the way driven (`world.decorrelation_m`; TR 38.901, 7.6.3.3, has 50 or 60 m), constant for those that stand.
    - Shadowing: the scenario's spread, by line of sight, times a process as in the analytic world.
    - Penetration of walls (devices indoors) and car bodies (vehicles in rma): drawn once a run.
    """

    def __init__(self, config: RunConfig, devices: Devices, tokens: Callable[[int], FloatK]) -> None:
        """Draw what does not change: places, who is indoors, and what walls cost.

        Args:
            config: of the run: seed, cell, fleet and `sionna`.
            devices: the fleet.
            tokens: round → N_k(t), shape K.

        Raises:
            AirtuneError: Sionna is not installed.
        """
        seed, count, world = config.seed, len(devices.kind), config.world
        self._config = config
        self._tokens = tokens
        self._channels = Channels(config.sionna)
        self._places = Places(world, devices.kind, seed)
        self._vehicle = np.array([kind == "vehicle" for kind in devices.kind])
        self._indoor = ~self._vehicle & (generator(seed, Stream.INDOOR).random(count) < config.sionna.indoor)
        self._shadowing = Shadowing(seed, count, 1.0, self._places.correlation(world.shadowing_correlation))
        self._sight = Shadowing(seed, count, 1.0, self._places.correlation(1.0), Stream.LINE_OF_SIGHT)
        everywhere = np.ones(count, np.bool_)
        first = Topology(self._positions_m(0), everywhere, self._indoor, self._vehicle)
        self._penetration_db, self._indoor_m = self._channels.penetration(_seed(seed, Stream.PENETRATION), first)

    def observe(self, t: int) -> Observation:
        """What is known before deciding on round t ≥ 0.

        Raises:
            AirtuneError: a negative round, or token counts of another length than K.
        """
        config = self._config
        availability, active = config.world.availability, config.fleet.active
        return observation(config.seed, t, self.gain(t), availability, self._tokens(t), active)

    def gain(self, t: int) -> FloatK:
        """Mean channel power gain g_k(t), linear, shape K."""
        place = self._channels.large_scale(self.topology(t))
        level_db = self._shadowing.level_db(t) if self._config.sionna.shadowing else 0.0
        loss_db = place.path_loss_db + self._penetration_db - place.shadowing_std_db * level_db
        return 10.0 ** (-loss_db / 10.0)

    def topology(self, t: int) -> Topology:
        """Where the devices are at the start of round t and whether they see the base station."""
        there = Topology(self._positions_m(t), self._seen(None), self._indoor, self._vehicle, self._indoor_m)
        if self._config.sionna.line_of_sight != "drawn":
            return there
        probability = self._channels.large_scale(there).line_of_sight_probability
        seen = self._seen(ndtr(self._sight.level_db(t)) < probability)
        return Topology(there.position_m, seen, self._indoor, self._vehicle, self._indoor_m)

    def fading_power(self, t: int, bandwidth_hz: FloatK) -> NDArray[np.float64]:
        """Fading power of round t over the mean gain, K × instants × `CARRIERS`; one instant if nobody's fading moves.

        Args:
            t: the round.
            bandwidth_hz: each device's band, around the carrier, shape K [Hz]; the same draw whatever it is.
        """
        config = self._config
        speed_mps = np.where(self._vehicle, config.world.vehicle_speed_mps, config.sionna.fading_speed_mps)
        instants = config.sionna.fades if speed_mps.any() else 1
        middle = (np.arange(CARRIERS) + 0.5) / CARRIERS - 0.5
        return self._channels.fading_power(
            _seed(config.seed, Stream.SMALL_SCALE, t),
            self.topology(t),
            speed_mps[:, None] * self._places.directions,
            bandwidth_hz[:, None] * middle,
            instants,
            config.world.deadline_s / instants,
        )

    def _positions_m(self, t: int) -> NDArray[np.float64]:
        """Positions, K×2 [m]; nobody is nearer to the base station than the least distance."""
        place = self._places.positions_m(t)
        distance_m = np.maximum(np.hypot(place[:, 0], place[:, 1]), 1e-9)
        return place * np.maximum(self._config.world.min_distance_m / distance_m, 1.0)[:, None]

    def _seen(self, drawn: BoolK | None) -> BoolK:
        """Line of sight: what was drawn, or all or none."""
        if drawn is not None:
            return drawn
        return np.full(len(self._vehicle), self._config.sionna.line_of_sight == "always")


def _seed(seed: int, stream: Stream, t: int = 0) -> int:
    """A seed for Sionna's generator from ours."""
    return int(generator(seed, stream, t).integers(2**63))
