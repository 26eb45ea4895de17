"""A world measured before: gains, maybe throughput and availability, from a CSV or Parquet file; docs/worlds.md."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from airtune.config import RunConfig
from airtune.physics.fading import rayleigh_power
from airtune.physics.link import fading_of_rate
from airtune.types import AirtuneError, Devices, FloatK, Observation, Radio, freeze
from airtune.worlds.analytic import observation

GAINS = ("gain_db", "gain_linear")
KNOWN = ("round", "device", *GAINS, "throughput_bit_per_s", "available")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What was measured in R rounds on K devices."""

    gain: NDArray[np.float64]
    """Mean channel power gain, linear, > 0, R×K; where a device could not be reached, that of its nearest round."""
    available: NDArray[np.bool_]
    """Whether it could be reached, R×K."""
    throughput_bit_per_s: NDArray[np.float64] | None
    """Of an upload at full power over the whole band, ≥ 0, R×K; 0 where it could not be reached; None: not measured."""

    def __post_init__(self) -> None:
        freeze(self)


def read_trace(path: Path) -> Trace:
    """A trace from a file with a row for each round and device, in any order.

    Columns: `round` and `device`, counting from 0; `gain_db` or `gain_linear`; optionally `throughput_bit_per_s` and
    `available` (0 or 1). Where `available` is 0 the measurements may be missing.

    Raises:
        AirtuneError: in one line: no such file, not a table, an unknown or missing column, a row that is missing or
            there twice, or a value that cannot be.
    """
    table = _read(path)
    unknown = [name for name in table.columns if name not in KNOWN]
    if unknown:
        raise AirtuneError(f"{path}: unknown column {unknown[0]!r}; there are {', '.join(KNOWN)}")
    for name in ("round", "device"):
        if name not in table.columns:
            raise AirtuneError(f"{path}: column {name!r} is missing")
    given = [name for name in GAINS if name in table.columns]
    if len(given) != 1:
        raise AirtuneError(f"{path}: one of the columns gain_db and gain_linear is needed, got {given or 'neither'}")
    if table.empty:
        raise AirtuneError(f"{path}: holds no rows")
    index = {name: _whole(path, table, name) for name in ("round", "device")}
    shape = (int(index["round"].max()) + 1, int(index["device"].max()) + 1)
    cell = index["round"] * shape[1] + index["device"]
    _each_once(path, cell, shape)
    order = np.argsort(cell)

    def column(name: str) -> NDArray[np.float64]:
        return _numbers(path, table, name)[order].reshape(shape)

    available = np.ones(shape, np.bool_)
    if "available" in table.columns:
        flags = column("available")
        _refuse(path, ~np.isin(flags, (0.0, 1.0)), flags, "available", "0 or 1")
        available = flags == 1.0
    gain = column(given[0])
    if given[0] == "gain_db":
        _refuse(path, available & ~(np.abs(gain) <= 400.0), gain, "gain_db", "a number of dB from -400 to 400")
        gain = 10.0 ** (gain / 10.0)
    else:
        _refuse(path, available & ~((gain > 0) & np.isfinite(gain)), gain, "gain_linear", "a finite number > 0")
    throughput = None
    if "throughput_bit_per_s" in table.columns:
        throughput = column("throughput_bit_per_s")
        wrong = available & ~((throughput >= 0) & np.isfinite(throughput))
        _refuse(path, wrong, throughput, "throughput_bit_per_s", "a finite number ≥ 0")
        throughput = np.where(available, throughput, 0.0)
    return Trace(_filled(path, gain, available), available, throughput)


class TraceWorld:
    """A `World` whose gains were measured; `fading_power` is what the measured throughput says about the fading.

    Args:
        config: of the run.
        devices: the fleet.
        radio: of the cell, in which the throughput was measured.
        tokens: round → N_k(t), shape K.

    Raises:
        AirtuneError: a bad file, another number of devices, or a run longer than the trace that may not repeat it.
    """

    def __init__(self, config: RunConfig, devices: Devices, radio: Radio, tokens: Callable[[int], FloatK]) -> None:
        path, count = config.trace.file, len(devices.kind)
        assert path is not None  # the configuration refuses it
        self.trace = read_trace(path)
        length, measured = self.trace.gain.shape
        if measured != count:
            raise AirtuneError(f"{path}: has {measured} devices; fleet.devices {measured} would be right, got {count}")
        if length < config.rounds and config.trace.beyond == "refuse":
            raise AirtuneError(
                f"{path}: ends after {length} rounds of {config.rounds}; rounds {length} or trace.beyond repeat would "
                "be right"
            )
        self._config = config
        self._power_max_w = devices.power_max_w
        self._radio = radio
        self._tokens = tokens

    @property
    def description(self) -> str:
        """What the trace holds, one line."""
        rounds, devices = self.trace.gain.shape
        measured = "" if self.trace.throughput_bit_per_s is None else " and throughput"
        return f"trace {self._config.trace.file}: {rounds} rounds of {devices} devices, gains{measured}"

    def observe(self, t: int) -> Observation:
        """What is known before deciding on round t ≥ 0: measured gains, and who was reachable.

        Raises:
            AirtuneError: token counts of another length than K.
        """
        config = self._config
        here = self.trace.available[t % len(self.trace.available)]
        gain, world = self.gain(t), config.world
        seen = observation(config.seed, t, gain, world.availability, self._tokens(t), config.fleet.active)
        return Observation(t, gain, seen.available & here, seen.tokens, seen.candidates)

    def gain(self, t: int) -> FloatK:
        """Measured mean channel power gain g_k(t), linear, shape K."""
        return self.trace.gain[t % len(self.trace.gain)].copy()

    def fading_power(self, t: int) -> FloatK:
        """Fading power h_k(t), shape K: what the measured throughput says, by `fading_of_rate`; else Rayleigh's."""
        if self.trace.throughput_bit_per_s is None:
            return rayleigh_power(self._config.seed, t, self.trace.gain.shape[1])
        rate_bit_per_s = self.trace.throughput_bit_per_s[t % len(self.trace.gain)]
        return fading_of_rate(rate_bit_per_s, self._power_max_w, self.gain(t), self._radio)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise AirtuneError(f"{path}: no such file; trace.file names a CSV or Parquet file")
    try:
        match path.suffix.lower():
            case ".csv":
                return pd.read_csv(path, skipinitialspace=True)
            case ".parquet":
                return pd.read_parquet(path)
            case other:
                raise AirtuneError(f"{path}: a trace ends in .csv or .parquet, not {other or 'without a suffix'}")
    except (ValueError, OSError) as error:
        told = str(error).strip().splitlines()
        raise AirtuneError(f"{path}: cannot be read as a table ({told[0] if told else 'empty'})") from None


def _numbers(path: Path, table: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """A column as float64, NaN where it is missing."""
    column: Any = pd.to_numeric(table[name], errors="coerce")
    bad = column.isna() & table[name].notna()
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise AirtuneError(f"{path}: {name} is no number in row {row + 1}, got {table[name].iloc[row]!r}")
    return column.to_numpy(np.float64, na_value=np.nan)


def _whole(path: Path, table: pd.DataFrame, name: str) -> NDArray[np.int64]:
    """A column that counts from 0."""
    values = _numbers(path, table, name)
    wrong = ~((values >= 0) & (values == np.floor(values)) & (values < 1e9))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise AirtuneError(f"{path}: {name} counts from 0 in whole numbers, got {values[row]:g} in row {row + 1}")
    return values.astype(np.int64)


def _each_once(path: Path, cell: NDArray[np.int64], shape: tuple[int, int]) -> None:
    """Refuse a round and device that has no row, or two."""
    present, counts = np.unique(cell, return_counts=True)
    if counts.max() > 1:
        t, device = divmod(int(present[np.argmax(counts > 1)]), shape[1])
        raise AirtuneError(f"{path}: round {t} of device {device} is there twice")
    if len(present) < shape[0] * shape[1]:
        gap = int(np.argmax(np.append(present, -1) != np.arange(len(present) + 1)))
        t, device = divmod(gap, shape[1])
        raise AirtuneError(f"{path}: round {t} of device {device} is missing; a row with available 0 would be right")


def _refuse(path: Path, wrong: NDArray[np.bool_], values: NDArray[np.float64], name: str, right: str) -> None:
    if wrong.any():
        t, device = (int(each[0]) for each in np.nonzero(wrong))
        raise AirtuneError(f"{path}: {name} of device {device} in round {t} must be {right}, got {values[t, device]:g}")


def _filled(path: Path, gain: NDArray[np.float64], available: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Gains, with those of the round before, or else the next, where a device could not be reached."""
    never = ~available.any(axis=0)
    if never.any():
        raise AirtuneError(f"{path}: device {int(np.argmax(never))} is never available; leave it out of the fleet")
    known = pd.DataFrame(np.where(available, gain, np.nan)).ffill().bfill()
    return known.to_numpy(np.float64, copy=True)
