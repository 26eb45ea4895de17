"""Observations of a real federation: from what its devices report, with their class for what they cannot tell."""

from collections.abc import Mapping, Sequence

import numpy as np

from airtune.config import FleetConfig, WorldConfig
from airtune.deploy.federation import Federation
from airtune.deploy.messages import Standing
from airtune.physics.devices import CLASSES
from airtune.physics.fading import path_gain
from airtune.types import Devices, FloatK, Observation, Radio, World
from airtune.units import dbm_to_w

SPECTRAL_MAX = 10.0
"""Most that a measured throughput counts for [bit/s/Hz]; links of more are as good as free."""


class ReportedWorld:
    """A `World` made of reports: speed, power, memory, throughput and tokens of whoever is there.

    Args:
        federation: the devices.
        world: the cell that stands in for what is not measured.
        fleet: scale of the budgets, and weights.
        radio: the cell's radio resources.
        least: devices that a round waits for.
    """

    def __init__(
        self, federation: Federation, world: WorldConfig, fleet: FleetConfig, radio: Radio, least: int
    ) -> None:
        self._federation = federation
        self._world = world
        self._fleet = fleet
        self._radio = radio
        self._least = least

    def observe(self, t: int) -> Observation:
        """Who is there for round t, and what they report; waits for the least number of devices."""
        ready = self._federation.gather(t, self._least)
        kinds = [slot.kind for slot in self._federation.slots]
        standings = self._federation.standings
        devices = devices_of(kinds, standings, self._fleet)
        tokens = np.zeros(len(kinds))
        tokens[ready] = [standings[k].tokens for k in ready]
        return Observation(
            t=t,
            gain=gains_of(devices, standings, self._world, self._radio),
            available=present(len(kinds), ready),
            tokens=tokens,
            devices=devices,
        )


class PairedWorld:
    """Channels of another world for the devices that are there: what a simulation with the same seed observes.

    Args:
        federation: the devices.
        world: the simulated one.
        least: devices that a round waits for.
    """

    def __init__(self, federation: Federation, world: World, least: int) -> None:
        self._federation = federation
        self._world = world
        self._least = least

    def observe(self, t: int) -> Observation:
        """The other world's observation, of those who are there; tokens as they report them."""
        ready = self._federation.gather(t, self._least)
        drawn = self._world.observe(t)
        available = drawn.available & present(len(drawn.gain), ready)
        tokens = np.zeros(len(available))
        tokens[available] = [self._federation.standings[k].tokens for k in map(int, np.flatnonzero(available))]
        return Observation(t=t, gain=drawn.gain, available=available, tokens=tokens, candidates=drawn.candidates)


def present(count: int, ready: Sequence[int]) -> np.ndarray:
    """Which of K devices are there, shape K."""
    there = np.zeros(count, dtype=np.bool_)
    there[list(ready)] = True
    return there


def devices_of(kinds: Sequence[str], standings: Mapping[int, Standing], fleet: FleetConfig) -> Devices:
    """The fleet as it reports itself, with the device class for what is not measured.

    A measured speed replaces φ at the class's clock, a measured power κ: the chip draws κ f³.

    Args:
        kinds: class of each device before it reports.
        standings: what devices said, by number.
        fleet: scale of the budgets; ω_k equal or by samples.
    """
    said = [standings.get(k) for k in range(len(kinds))]
    names = [kinds[k] if one is None or one.kind not in CLASSES else one.kind for k, one in enumerate(said)]
    each = [CLASSES[name] for name in names]

    def told(field: str) -> list[float | None]:
        return [None if one is None else getattr(one, field) for one in said]

    speeds, powers, memories = told("flop_per_s"), told("compute_power_w"), told("memory_byte")
    samples = np.array([1 if one is None else one.samples for one in said], dtype=np.int64)
    share = samples.astype(np.float64) if fleet.weighting == "samples" else np.ones(len(kinds))
    return Devices(
        kind=tuple(names),
        frequency_hz=np.array([one.frequency_hz for one in each]),
        flop_per_cycle=np.array(
            [
                one.flop_per_cycle if speed is None else speed / one.frequency_hz
                for one, speed in zip(each, speeds, strict=True)
            ]
        ),
        capacitance=np.array(
            [
                one.capacitance if power is None else power / one.frequency_hz**3
                for one, power in zip(each, powers, strict=True)
            ]
        ),
        memory_byte=np.array([own or one.memory_byte for one, own in zip(each, memories, strict=True)]),
        power_max_w=np.array([dbm_to_w(one.power_max_dbm) for one in each]),
        pa_efficiency=np.array([one.pa_efficiency for one in each]),
        circuit_power_w=np.array([one.circuit_power_w for one in each]),
        budget_j=np.array([one.budget_j for one in each]) * fleet.budget_scale,
        samples=samples,
        weight=share / share.sum(),
    )


def gains_of(devices: Devices, standings: Mapping[int, Standing], world: WorldConfig, radio: Radio) -> FloatK:
    """Gain g_k at which the whole band at full power carries the throughput that device k measures, (5) solved for g.

    Of a device that measures none it is the path gain at half the cell's radius.

    Args:
        devices: largest powers.
        standings: what devices said, by number.
        world: path loss.
        radio: B, N0 and Γ_g.
    """
    middle_m = np.array([max(0.5 * world.cell_radius_m, world.min_distance_m)])
    gain = np.full(len(devices.kind), path_gain(middle_m, world.path_loss_1km_db, world.path_loss_per_decade_db)[0])
    for k, standing in standings.items():
        if standing.uplink_bit_per_s is not None:
            spectral = min(standing.uplink_bit_per_s / radio.bandwidth_hz, SPECTRAL_MAX)
            noise_w = radio.snr_gap * radio.noise_w_per_hz * radio.bandwidth_hz
            gain[k] = noise_w * np.expm1(np.log(2.0) * spectral) / devices.power_max_w[k]
    return gain
