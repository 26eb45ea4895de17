"""What a device's computing takes, measured where the platform offers it: RAPL, else a battery's own gauge (Linux)."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Source = Literal["rapl", "battery", "computed"]


@dataclass(frozen=True, slots=True)
class Spent:
    """Energy of a piece of work."""

    energy_j: float | None
    """[J]; None if nothing measures it here, so that it must be computed from the device class."""
    seconds: float
    source: Source


class EnergyMeter:
    """Measures a piece of work from its making until `read`.

    RAPL counts whole processor packages and a battery's gauge the whole device: what else runs is measured with it.

    Args:
        root: where the system's tree of devices is.
    """

    def __init__(self, root: Path = Path("/sys/class")) -> None:
        self._root = root
        self._packages = _packages_j(root)
        self._power_w = _battery_power_w(root)
        self._began = time.perf_counter()

    def read(self) -> Spent:
        """Energy and time since the meter was made."""
        seconds = time.perf_counter() - self._began
        now = _packages_j(self._root)
        if now and now.keys() == self._packages.keys():
            used = [(now[zone][0] - self._packages[zone][0]) % now[zone][1] for zone in now]
            return Spent(sum(used), seconds, "rapl")
        power_w = _battery_power_w(self._root)
        if power_w is not None and self._power_w is not None:
            return Spent(0.5 * (power_w + self._power_w) * seconds, seconds, "battery")
        return Spent(None, seconds, "computed")


def battery_charge(root: Path = Path("/sys/class")) -> float | None:
    """State of charge of the first battery, 0…1; None without one."""
    for battery in _batteries(root):
        capacity = _number(battery / "capacity")
        if capacity is not None:
            return min(max(capacity / 100.0, 0.0), 1.0)
    return None


def memory_byte(meminfo: Path = Path("/proc/meminfo")) -> float | None:
    """Memory that a new process could have without swapping [byte]; None where the system does not tell."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _packages_j(root: Path) -> dict[str, tuple[float, float]]:
    """Counter and its range [J] of every processor package that can be read; subzones would count twice."""
    found: dict[str, tuple[float, float]] = {}
    for zone in sorted((root / "powercap").glob("intel-rapl:*")):
        micro, wrap = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if zone.name.count(":") == 1 and micro is not None and wrap:
            found[zone.name] = (micro * 1e-6, wrap * 1e-6)
    return found


def _batteries(root: Path) -> list[Path]:
    return [path.parent for path in sorted((root / "power_supply").glob("*/type")) if _text(path) == "Battery"]


def _battery_power_w(root: Path) -> float | None:
    """What the batteries give now [W]; None without one, or while one charges."""
    total = None
    for battery in _batteries(root):
        if _text(battery / "status") != "Discharging":
            return None
        power = _number(battery / "power_now")
        if power is None:
            current, voltage = _number(battery / "current_now"), _number(battery / "voltage_now")
            power = None if current is None or voltage is None else abs(current) * voltage * 1e-6
        if power is not None:
            total = (total or 0.0) + abs(power) * 1e-6
    return total


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None
