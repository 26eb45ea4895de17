"""Device classes and the fleet drawn from them. Where each number comes from is told in docs/devices.md."""

from dataclasses import dataclass

import numpy as np

from airtune.config import FleetConfig
from airtune.rng import Stream, generator
from airtune.types import AirtuneError, Devices, IntK
from airtune.units import dbm_to_w


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """One kind of device, the properties of `Devices` as scalars."""

    frequency_hz: float
    """Sustained clock f [Hz]."""
    flop_per_cycle: float
    """Sustained φ over all cores that train [FLOP/cycle], fp32."""
    compute_power_w: float
    """Power of those cores at that clock [W]: κ f³."""
    memory_byte: float
    """Memory that training may use [byte]."""
    power_max_dbm: float
    """Largest transmit power P [dBm], by 3GPP power class."""
    pa_efficiency: float
    """ξ."""
    circuit_power_w: float
    """P_circ [W]."""
    budget_j: float
    """Ē [J per round]."""

    @property
    def capacitance(self) -> float:
        """Effective switched capacitance κ = P_cpu / f³ [F]."""
        return self.compute_power_w / self.frequency_hz**3


def battery_budget_j(charge_mah: float, voltage_v: float, share: float = 1.5e-3, rounds: int = 30) -> float:
    """Energy per round [J] if a run of `rounds` may drain `share` of a full battery.

    >>> round(battery_budget_j(5000, 3.85), 2)
    3.47
    """
    return charge_mah * 3.6 * voltage_v * share / rounds


CLASSES: dict[str, DeviceClass] = {
    "sensor": DeviceClass(1.2e9, 10.0, 0.9, 256e6, 20.0, 0.30, 0.05, battery_budget_j(3400, 3.6)),
    "phone_low": DeviceClass(2.0e9, 20.0, 2.4, 512e6, 23.0, 0.35, 0.10, battery_budget_j(4000, 3.85)),
    "phone_mid": DeviceClass(2.2e9, 32.0, 3.0, 1.0e9, 23.0, 0.35, 0.10, battery_budget_j(5000, 3.85)),
    "phone_high": DeviceClass(2.6e9, 45.0, 4.5, 2.0e9, 23.0, 0.40, 0.10, battery_budget_j(5000, 3.85)),
    "vehicle": DeviceClass(2.0e9, 60.0, 6.0, 2.0e9, 26.0, 0.40, 0.20, 6.0),
    "edge_box": DeviceClass(2.8e9, 80.0, 22.0, 8.0e9, 26.0, 0.40, 0.30, 20.0),
}
"""Every device class by its name in `FleetConfig`, weakest first; sources in docs/devices.md."""


def class_counts(shares: dict[str, float], devices: int) -> dict[str, int]:
    """How many of `devices` belong to each class, by largest remainder; each count is within 1 of its share.

    >>> class_counts({"a": 1.0, "b": 1.0, "c": 1.0}, 4)
    {'a': 2, 'b': 1, 'c': 1}
    """
    total = sum(shares.values())
    quotas = {name: devices * share / total for name, share in shares.items()}
    counts = {name: int(quota) for name, quota in quotas.items()}
    left = devices - sum(counts.values())
    for name in sorted(quotas, key=lambda name: counts[name] - quotas[name])[:left]:
        counts[name] += 1
    return counts


def sample_devices(config: FleetConfig, samples: IntK, seed: int) -> Devices:
    """The fleet of K devices: the configured mix as exactly as K allows, dealt to the devices in an order from `seed`.

    Args:
        config: the mix, K and the scale of the energy budgets.
        samples: n_k ≥ 1, training samples of each device, shape K.
        seed: of the run.

    Raises:
        AirtuneError: `samples` of another length than K, or a device without samples.

    """
    if samples.shape != (config.devices,):
        raise AirtuneError(f"samples must have one entry per device, {config.devices}, got shape {samples.shape}")
    if np.any(samples < 1):
        raise AirtuneError(f"every device must hold at least 1 sample, got {samples.min()}")
    counts = class_counts({name: float(getattr(config, name)) for name in CLASSES}, config.devices)
    names = [name for name, count in counts.items() for _ in range(count)]
    kind = tuple(names[i] for i in generator(seed, Stream.FLEET).permutation(config.devices))
    each = [CLASSES[name] for name in kind]
    share = samples.astype(np.float64) if config.weighting == "samples" else np.ones(config.devices)
    weight = share / share.sum()
    return Devices(
        kind=kind,
        frequency_hz=np.array([one.frequency_hz for one in each]),
        flop_per_cycle=np.array([one.flop_per_cycle for one in each]),
        capacitance=np.array([one.capacitance for one in each]),
        memory_byte=np.array([one.memory_byte for one in each]),
        power_max_w=np.array([dbm_to_w(one.power_max_dbm) for one in each]),
        pa_efficiency=np.array([one.pa_efficiency for one in each]),
        circuit_power_w=np.array([one.circuit_power_w for one in each]),
        budget_j=np.array([one.budget_j for one in each]) * config.budget_scale,
        samples=np.array(samples, dtype=np.int64),
        weight=weight,
    )
