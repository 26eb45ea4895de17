"""A grid of scenarios, settings, policies and seeds: its points, their runs, and one table of what came out."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.compare import Comparison
from airtune.config import RunConfig
from airtune.files import csv_bytes, told, write_atomic, write_json
from airtune.settings import comparison, override
from airtune.tables import flat
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting and the values it takes."""

    key: str
    """Dotted, as on the command line without dashes: world.bandwidth_hz."""
    values: tuple[str, ...]


OWN = {
    "policy.name": "--policies",
    "policy.file": "--policies",
    "seed": "--seeds",
    "out": "--out",
    "name": "the scenario",
}
"""Settings that are no axes, since something else in the command gives them."""


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One scenario with one value on each axis: the runs of a comparison."""

    scenario: str
    values: Mapping[str, str]
    """Axis → value."""
    configs: Sequence[RunConfig]
    """Every policy on every seed."""
    labels: Sequence[str]
    """Its policies."""

    @property
    def name(self) -> str:
        """Scenario and values, for people.

        >>> Point("sst2", {"policy.v": "100", "rounds": "8"}, [], []).name
        'sst2, policy.v 100, rounds 8'
        """
        return ", ".join((self.scenario, *(f"{key} {value}" for key, value in self.values.items())))


def axes_of(options: Sequence[str]) -> tuple[Axis, ...]:
    """Axes as they are given: KEY=VALUE,VALUE,…; a setting of several numbers has spaces between them.

    >>> axes_of(["policy.v=100,1000", "modules.ranks=2 4,8 16"])[1]
    Axis(key='modules.ranks', values=('2 4', '8 16'))

    Raises:
        AirtuneError: no key, no value, a key or value twice, or a setting of `OWN`.
    """
    axes: list[Axis] = []
    for option in options:
        key, equals, text = option.partition("=")
        values = tuple(value.strip() for value in text.split(",") if value.strip())
        key = key.strip().removeprefix("--").replace("-", "_")
        if not key or not equals or not values:
            raise AirtuneError(f"--grid: {option!r} is no axis; policy.v=100,1000 would be right")
        if key in OWN:
            raise AirtuneError(f"--grid: {key} is given by {OWN[key]} and cannot be an axis")
        if len(set(values)) < len(values) or key in (axis.key for axis in axes):
            raise AirtuneError(f"--grid: {option!r} names {'a value' if len(set(values)) < len(values) else key} twice")
        axes.append(Axis(key, values))
    return tuple(axes)


def points(bases: Sequence[RunConfig], axes: Sequence[Axis], policies: str, seeds: int, out: Path) -> tuple[Point, ...]:
    """Every point of the grid; runs are in out/POINT/POLICY-sSEED.

    Args:
        bases: one configuration per scenario, known by its `name`.
        axes: settings and the values they take.
        policies: as in `settings.comparison`.
        seeds: how many, from each base's seed on.
        out: folder of the sweep.

    Raises:
        AirtuneError: unknown keys, bad values, no such policy, a scenario named twice, two values that are the same.
    """
    names = [base.name for base in bases]
    if len(set(names)) < len(names):
        raise AirtuneError(f"sweep: {max(names, key=names.count)} is named twice")
    found: list[Point] = []
    for base in bases:
        given: dict[RunConfig, list[str]] = {}
        for values in itertools.product(*(axis.values for axis in axes)):
            chosen = dict(zip((axis.key for axis in axes), values, strict=True))
            options = [part for key, value in chosen.items() for part in (f"--{key}", *value.split())]
            config = override(base, options)
            if config in given:
                raise AirtuneError(f"--grid: {', '.join(options)} is the same as {', '.join(given[config])}")
            given[config] = options
            folder = out / _folder(base.name if len(bases) > 1 else None, chosen)
            configs, labels = comparison(config, policies, seeds, folder)
            found.append(Point(base.name, chosen, configs, labels))
    return tuple(found)


def _folder(scenario: str | None, values: Mapping[str, str]) -> str:
    """Folder name of a point; empty for the only one of a sweep without axes."""
    parts = ([scenario] if scenario else []) + [f"{key}={value}" for key, value in values.items()]
    return ",".join(re.sub(r"[^\w.=+-]+", "_", part) for part in parts)


def rows_of(compared: Sequence[tuple[Point, Comparison]]) -> list[dict[str, Any]]:
    """One row per point and policy: scenario, the values on the axes, and `tables.flat`."""
    return [
        {"scenario": point.scenario, **point.values, **flat(policy)}
        for point, comparison in compared
        for policy in comparison.policies
    ]


def write_sweep(compared: Sequence[tuple[Point, Comparison]], out: Path) -> tuple[Path, Path]:
    """Write sweep.csv (`rows_of`) and sweep.json (with every seed) into a folder. Raises AirtuneError."""
    with told(out, "choose a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "sweep.csv", csv_bytes(rows_of(compared)))
        found = [
            {"scenario": point.scenario, "values": dict(point.values), **dataclasses.asdict(comparison)}
            for point, comparison in compared
        ]
        write_json(out / "sweep.json", {"points": found})
    return out / "sweep.csv", out / "sweep.json"
