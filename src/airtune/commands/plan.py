"""`airtune plan`: what a run would cost and deliver, without training, and the least resources that meet a target."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from airtune.commands.arguments import name_first, options, quiet_libraries, settings_of
from airtune.types import AirtuneError

if TYPE_CHECKING:
    from rich.table import Table

    from airtune.planning.points import Planner, Point
    from airtune.planning.search import Found

NAMED = {"bandwidth": "Band [MHz]", "devices": "Devices", "deadline": "Deadline [s]", "budget": "Budget [×]"}
"""Heading of each axis."""
DROP_TOLD = 1e-3
"""A measure that falls by more than this as its axis grows is called not monotone."""


@dataclasses.dataclass
class _Plan:
    """Energy, delivery, time and bound without training, as band, devices, deadline and budget change one at a time.

    The same world, controller and accounting as `airtune run`, and every setting of it applies.
    """

    axes: str = "bandwidth,devices,deadline,budget"
    """What is varied, separated by commas."""
    factors: str = "0.25,0.5,1,2,4"
    """Multiples of the configuration's own values that are tried."""
    bandwidth_hz: str | None = None
    """Values of world.bandwidth_hz in place of the multiples, separated by commas [Hz]."""
    devices: str | None = None
    """Values of fleet.devices."""
    deadline_s: str | None = None
    """Values of world.deadline_s [s]."""
    budget_scale: str | None = None
    """Values of fleet.budget_scale."""
    target: float | None = None
    """Share to be met by the least band or budget; None for no search."""
    measure: Literal["utility", "delivered"] = "utility"
    """utility: delivered utility over the most there is; delivered: delivered uploads per device and round."""
    search: str = "bandwidth,budget"
    """What the target is searched on, each by itself, separated by commas."""
    tolerance: float = 0.02
    """Relative distance of the value found from the greatest below it that misses the target."""
    seeds: int = 3
    """Number of seeds: the configuration's seed and those after it."""
    scale_v: tyro.conf.FlagCreatePairsOff[bool] = False
    """Let policy.v go with the square of the budget as the budget changes; else it stays as it is."""


VALUES = {"bandwidth": "bandwidth_hz", "devices": "devices", "deadline": "deadline_s", "budget": "budget_scale"}
"""Option that gives an axis' own values."""


def plan_command(arguments: list[str]) -> None:
    """airtune plan NAME_OR_FILE [options and settings]."""
    name = name_first(arguments, "plan")
    prog = f"airtune plan {name}"
    asked, rest = options(_Plan, arguments, prog, switches={"scale_v"})
    config = settings_of(name, rest, prog)
    axes = {axis: _values(asked, axis) for axis in _listed(asked.axes, "--axes", tuple(NAMED))}
    factors = _numbers(asked.factors, "--factors")
    _refuse_unused(asked, tuple(axes))
    quiet_libraries()
    from rich.console import Console

    from airtune.planning.points import AXES, Planner, at, values_of
    from airtune.planning.search import SEARCHED, least, refuse_search
    from airtune.settings import label_of

    searched = _listed(asked.search, "--search", SEARCHED) if asked.target is not None else ()
    for axis in searched:
        refuse_search(axis, asked.target or 0.0, asked.tolerance)
    for axis, values in axes.items():
        for value in values:
            at(config, axis, value)  # what cannot be is refused before anything is computed
    planner, console = Planner(config, asked.seeds, scale_v=asked.scale_v), Console()
    console.print(
        f"[bold]{config.name}[/], {label_of(config.policy)}, {config.rounds} rounds, {asked.seeds} seeds, no training"
    )
    points: list[Point] = []
    for axis, values in axes.items():
        own_values = values or values_of(planner.value(axis), factors, whole=AXES[axis].whole)
        here, refused = _points(planner, axis, own_values, strict=bool(values))
        console.print(_table(axis, here, planner.value(axis)))
        console.print("".join(refused), style="dim", end="", highlight=False, markup=False)
        points += here
    console.print(NOTE.format(seeds=asked.seeds), style="dim", highlight=False)
    found = [least(planner, axis, asked.measure, asked.target or 0.0, asked.tolerance) for axis in searched]
    for each in found:
        console.print(_told(each, planner), highlight=False)
    if config.out is not None:
        _write(config.out, planner, points, found)
        print(f"tables: plan.csv, plan.json in {config.out}")


def _points(planner: "Planner", axis: str, values: Sequence[float], *, strict: bool) -> tuple[list["Point"], list[str]]:
    """The points of an axis, and a line for each multiple of the base that cannot be, which a strict one refuses."""
    points, refused = [planner.point(axis, value) for value in values if value == planner.value(axis)], list[str]()
    for value in values:
        try:
            points += [planner.point(axis, value)] if value != planner.value(axis) else []
        except AirtuneError as error:
            if strict:
                raise
            refused.append(f"{axis} {_shown(axis, value)} is left out: {error}\n")
    return sorted(points, key=lambda point: point.value), refused


NOTE = (
    "± is a 95 % t-interval over {seeds} seeds; * marks the configuration itself. Utility is delivered utility of the "
    "most there is, delivered are uploads per device and round, worst is a device's energy over its budget, bound is "
    "(9), estimated, and as low is the time until it is where the configuration's own ends."
)


def _listed(text: str, option: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Names separated by commas, each of those allowed and given once."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    wrong = [name for name in names if name not in allowed]
    if wrong or not names or len(set(names)) < len(names):
        raise AirtuneError(f"{option}: some of {','.join(allowed)}, each once, would be right, got {text!r}")
    return names


def _numbers(text: str, option: str) -> tuple[float, ...]:
    """Positive numbers separated by commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise AirtuneError(f"{option}: positive numbers separated by commas would be right, got {text!r}")
    if len(set(values)) < len(values):
        raise AirtuneError(f"{option}: each value once would be right, got {text!r}")
    return values


def _refuse_unused(asked: _Plan, axes: Sequence[str]) -> None:
    """Refuse options that would change nothing."""
    for axis in NAMED:
        if axis not in axes and getattr(asked, VALUES[axis]) is not None:
            right = ",".join((*axes, axis))
            raise AirtuneError(f"{_option(axis)}: {axis} is not varied; --axes {right} would be right")
    if asked.target is None:
        for name in ("search", "tolerance", "measure"):
            if getattr(asked, name) != getattr(_Plan, name):
                raise AirtuneError(f"--{name} says how a target is searched for; --target 0.6, or another, is missing")


def _values(asked: _Plan, axis: str) -> tuple[float, ...]:
    """The values asked for on an axis; none for the multiples."""
    text = getattr(asked, VALUES[axis])
    return () if text is None else _numbers(text, _option(axis))


def _option(axis: str) -> str:
    return f"--{VALUES[axis].replace('_', '-')}"


def _shown(axis: str, value: float) -> str:
    """A value in the unit of its heading."""
    return f"{value / 1e6 if axis == 'bandwidth' else value:.4g}"


def _table(axis: str, points: Sequence["Point"], base: float) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from airtune.tables import interval, number

    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    headings = (NAMED[axis], "Utility [%]", "Deliv. [%]", "Energy [J]", "Worst", "Bound", "As low [s]")
    for heading in headings:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for point in points:
        mark = "*" if point.value == base else ""
        table.add_row(
            mark + _shown(axis, point.value), interval(point.utility, 100, 1), interval(point.delivered, 100, 1),
            interval(point.energy_j), number(point.max_overspend_ratio), interval(point.bound),
            interval(point.base_bound_s),
        )  # fmt: skip
    return table


def _told(found: "Found", planner: "Planner") -> str:
    """What came of a search, in a line or two."""
    from airtune.planning.search import mean_of
    from airtune.tables import percent

    name, unit = {"bandwidth": ("band", " MHz"), "budget": ("budget scale", "")}[found.axis]

    def at(point: "Point") -> str:
        return f"{_shown(found.axis, point.value)}{unit} ({percent(mean_of(point, found.measure), 2)})"

    if found.met is None:
        ends = " to ".join(_shown(found.axis, found.tried[end].value) for end in (0, -1))
        line = f"no {name} from {ends}{unit} meets it; the most is at {at(found.best)}"
    elif found.missed is None:
        line = f"even the least {name} tried meets it, {at(found.met)}"
    else:
        own = _shown(found.axis, planner.value(found.axis))
        line = f"least {name} {at(found.met)}, now {own}{unit}; {at(found.missed)} misses it"
    if found.drop > DROP_TOLD:
        line += f"\n  not monotone: it falls by up to {percent(found.drop, 2)} as the {name} grows"
    return f"{found.measure} of {percent(found.target)}: {line}"


def _write(out: Path, planner: "Planner", points: Sequence["Point"], found: Sequence["Found"]) -> None:
    """plan.csv, a row per point (those of a search too), and plan.json."""
    from airtune.files import csv_bytes, told, write_atomic, write_json
    from airtune.settings import dump
    from airtune.tables import columns

    tagged = [("axis", point) for point in points]
    tagged += [(f"search for {each.measure} {each.target:g}", point) for each in found for point in each.tried]
    rows = [{"purpose": purpose} | columns(point, ESTIMATES) for purpose, point in tagged]
    plan = {
        "config": dump(planner.config),
        "seeds": planner.seeds,
        "points": [dataclasses.asdict(point) for point in points],
        "searches": [dataclasses.asdict(each) for each in found],
    }
    with told(out, "choose a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "plan.csv", csv_bytes(rows))
        write_json(out / "plan.json", plan)


ESTIMATES = (
    "utility", "delivered", "delivery_rate", "energy_j", "energy_compute_j", "energy_transmit_j", "bound",
    "base_bound_s",
)  # fmt: skip
"""Fields of a point that have an interval."""
