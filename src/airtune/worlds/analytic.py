"""The analytic radio world: one cell, path loss, shadowing, vehicles, random availability; nothing is stored."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from airtune.config import WorldConfig
from airtune.physics.fading import Shadowing, path_gain
from airtune.physics.mobility import Places
from airtune.rng import Stream, generator
from airtune.types import AirtuneError, BoolK, Devices, FloatK, Observation, Radio
from airtune.units import db_to_linear, dbm_to_w


def radio_of(config: WorldConfig) -> Radio:
    """The cell's radio resources in SI and linear units: the border that decibels do not pass.

    N0 = thermal noise density · noise figure of the receiver · interference margin [W/Hz].
    """
    noise_dbm_per_hz = config.noise_dbm_per_hz + config.noise_figure_db + config.interference_margin_db
    return Radio(
        bandwidth_hz=config.bandwidth_hz,
        noise_w_per_hz=dbm_to_w(noise_dbm_per_hz),
        snr_gap=db_to_linear(config.snr_gap_db),
        deadline_s=config.deadline_s,
        bs_power_w=dbm_to_w(config.bs_power_dbm),
    )


def candidates(seed: int, t: int, devices: int, active: int | None) -> BoolK | None:
    """Which devices can be reached at all in round t, shape K: `active` of them, every such set as likely; None: all.

    The same for every policy, and whatever was drawn before.
    """
    if active is None:
        return None
    drawn = np.zeros(devices, dtype=np.bool_)
    drawn[generator(seed, Stream.CANDIDATES, t).choice(devices, active, replace=False)] = True
    return drawn


def observation(
    seed: int, t: int, gain: FloatK, availability: float, tokens: FloatK, active: int | None
) -> Observation:
    """What is known before deciding on round t, from what the world's channels are.

    Args:
        seed: of the run.
        t: the round.
        gain: g_k(t), shape K.
        availability: probability that a device can be reached.
        tokens: N_k(t), shape K.
        active: how many devices are candidates; None for all.

    Raises:
        AirtuneError: token counts of another length than K.
    """
    available = generator(seed, Stream.AVAILABILITY, t).random(len(gain)) < availability
    drawn = candidates(seed, t, len(gain), active)
    if drawn is not None:
        available &= drawn
    tokens = np.array(tokens, dtype=np.float64)
    if tokens.shape != gain.shape:
        raise AirtuneError(f"tokens({t}) must have one entry per device, {len(gain)}, got shape {tokens.shape}")
    return Observation(t=t, gain=gain, available=available, tokens=tokens, candidates=drawn)


class AnalyticWorld:
    """A `World` drawn from formulas: mean gain g_k(t) = path gain × shadowing, availability ~ Bernoulli.

    The observation of round t depends on (configuration, seed, t) alone, whatever was observed before, so a resumed run
    and every policy see the same channels. Rayleigh fading is not observed: it decides whether an upload arrives, (6).
    """

    __slots__ = ("_active", "_config", "_path_gain", "_places", "_seed", "_shadowing", "_tokens", "position_m")

    position_m: np.ndarray
    """Device positions (x, y) before the first round, with the base station at the origin, K×2 [m]."""

    def __init__(
        self,
        config: WorldConfig,
        devices: Devices,
        seed: int,
        tokens: Callable[[int], FloatK],
        active: int | None = None,
    ) -> None:
        """Draw the positions.

        Args:
            config: the cell and its channel.
            devices: the fleet, of which only the number K and who is a vehicle matter here.
            seed: of the run.
            tokens: pure function, round t → N_k(t), tokens each device will process if scheduled, shape K.
            active: how many devices are candidates in a round; None for all.

        """
        count = len(devices.kind)
        self._places = Places(config, devices.kind, seed)
        self.position_m = self._places.start_m
        self._config = config
        self._path_gain = self._gain_at(self.position_m)
        correlation = self._places.correlation(config.shadowing_correlation)
        self._shadowing = Shadowing(seed, count, config.shadowing_std_db, correlation)
        self._active = active
        self._seed = seed
        self._tokens = tokens

    def observe(self, t: int) -> Observation:
        """What is known before deciding on round t ≥ 0.

        Raises:
            AirtuneError: a negative round, or token counts of another length than K.

        """
        return observation(self._seed, t, self.gain(t), self._config.availability, self._tokens(t), self._active)

    def gain(self, t: int) -> FloatK:
        """Mean channel power gain g_k(t), linear, shape K."""
        path = self._gain_at(self.positions_m(t)) if self._places.moves.any() else self._path_gain
        return path * 10.0 ** (self._shadowing.level_db(t) / 10.0)

    def positions_m(self, t: int) -> NDArray[np.float64]:
        """Positions at the start of round t, K×2 [m]; a round lasts its deadline."""
        return self._places.positions_m(t)

    def _gain_at(self, position_m: NDArray[np.float64]) -> FloatK:
        """Path gain at positions; nobody is nearer to the base station than the least distance."""
        config = self._config
        distance_m = np.maximum(np.hypot(position_m[:, 0], position_m[:, 1]), config.min_distance_m)
        return path_gain(distance_m, config.path_loss_1km_db, config.path_loss_per_decade_db)


def received_w(
    config: WorldConfig, gain: Callable[[int], FloatK], power_max_w: FloatK, rounds: int
) -> NDArray[np.float64] | None:
    """P_k g_k(t) of the whole run [W], rounds × K, where `delivery` asks for it; else None."""
    if config.delivery is None:
        return None
    return np.array([power_max_w * gain(t) for t in range(rounds)])
