"""The figures of a scenario: what is drawn, its legend, and the numbers behind it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.curves import Curve, accuracy_curve, row_curve
from airtune.page.charts import Bar, Line, LineChart, draw_bars, draw_lines, style_of
from airtune.page.data import Member, Scenario
from airtune.page.devices import choices_of, draw_cell, draw_choices, evenly
from airtune.report import Run, certified_gap

Value = Callable[[Mapping[str, Any]], float | None]

POINTS_MAX = 1000
"""Points that a curve keeps at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """One picture of the page."""

    title: str
    body: str
    """SVG."""
    data: Any
    """The numbers behind it, as JSON values."""
    legend: tuple[tuple[str, str], ...] = ()
    """Style and text of each key."""
    note: str = ""
    kind: str = "lines"
    """lines, bars, heat or cell."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A picture that a scenario has no data for."""

    title: str
    why: str


def _field(key: str) -> Value:
    return lambda row: row.get(key)


OVER_ROUNDS: tuple[tuple[str, str, dict[str, Value], str, dict[str, Any]], ...] = (
    (
        "Virtual energy queues", "Queue [J]",
        {"mean device": _field("queue_mean_j"), "largest": _field("queue_max_j")},
        "no queue was recorded", {"from_zero": True},
    ),
    (
        "Worst device", "Energy over its budget so far", {"": _field("max_overspend_ratio")},
        "no budget was recorded", {"from_zero": True, "level": 1.0},
    ),
    (
        "Certificate of each decision", "Distance from the bound on (P1) [%]", {"": certified_gap},
        "these policies prove no bound", {"logarithmic": True, "scale": 100.0},
    ),
    (
        "Bound on the inference risk gap", "Bound, estimated",
        {"Theorem 1": _field("bound"), "Theorem 2": _field("bound_tight")},
        "no bound was recorded", {"from_zero": True},
    ),
    (
        "Uploads per round", "Devices", {"sent": _field("scheduled"), "delivered": _field("delivered")},
        "no upload was recorded", {"from_zero": True},
    ),
    ("Training loss", "Mean of those who delivered", {"": _field("loss")}, "nobody delivered", {}),
)  # fmt: skip
"""Title, y label, named values of a `rows.RoundRow`, why they may be missing, and how they are drawn."""

Cell = tuple[NDArray[np.float64], float]
"""Device positions K×2 and the cell's radius [m]."""
Positions = Callable[[Mapping[str, Any]], Cell | None]
"""From a run's configuration; None where devices have no place."""


def curves(scenario: Scenario) -> list[Figure | LeftOut]:
    """Everything over rounds or energy, and the energy split."""
    metric = str(next(iter(scenario.members)).run.summary.get("metric", "accuracy")).replace("_", " ")
    share = "accuracy" in metric
    label = f"{metric[:1].upper()}{metric[1:]}{' [%]' if share else ''}, dev subset"
    judged = {name: _evaluated(scenario.drawn(name)) for name in scenario.policies}
    never = "no round was evaluated"
    found: list[Figure | LeftOut] = []
    for title, x_label, against_energy in (
        ("Accuracy per round", "Round", False),
        ("Accuracy per joule", "Energy spent by the fleet [J]", True),
    ):
        lines = [
            _line(scenario, name, accuracy_curve(_runs(members), against_energy=against_energy))
            for name, members in judged.items()
            if members
        ]
        chart = LineChart(lines, x_label, label, 100.0 if share else 1.0)
        found.append(_chart(scenario, title, lines, never, chart, label))
    found.append(_energy(scenario))
    for title, label, values, why, chart in OVER_ROUNDS:
        lines = [
            _line(scenario, name, curve, what, dashed=i > 0)
            for name in scenario.policies
            for i, (what, value) in enumerate(values.items())
            if np.isfinite((curve := row_curve(_runs(scenario.drawn(name)), value)).mean).any()
        ]
        full, *dashed = values
        note = f"{label}: {full}, dashed {dashed[0]}" if dashed else label
        found.append(_chart(scenario, title, lines, why, LineChart(lines, "Round", label, **chart), note))
    return found


def _evaluated(members: list[Member]) -> list[Member]:
    return [each for each in members if any(row["accuracy"] is not None for row in each.run.rounds)]


def _runs(members: list[Member]) -> list[Run]:
    return [member.run for member in members]


def _line(scenario: Scenario, policy: str, curve: Curve, what: str = "", *, dashed: bool = False) -> Line:
    keep = evenly(len(curve.x), POINTS_MAX)
    number = list(scenario.policies).index(policy)
    values = (each[keep] for each in (curve.x, curve.mean, curve.low, curve.high))
    return Line(f"{policy}, {what}" if what else policy, number, *values, dashed=dashed)


def _chart(
    scenario: Scenario, title: str, lines: list[Line], why: str, chart: LineChart, note: str
) -> Figure | LeftOut:
    if not lines:
        return LeftOut(title, why)
    data = {
        "x": chart.x_label,
        "y": chart.y_label,
        "lines": [
            {"name": line.name, "x": line.x, "mean": line.mean, "low": line.low, "high": line.high} for line in lines
        ],
    }
    shown = {line.colour for line in lines}
    names = [(style_of(n), name) for n, name in enumerate(scenario.policies) if n in shown]
    return Figure(title, draw_lines(chart), data, tuple(names) if len(scenario.policies) > 1 else (), note)


def _energy(scenario: Scenario) -> Figure:
    """Mean energy per policy, as recorded: computing and transmitting."""
    bars: list[Bar] = []
    for name in scenario.policies:
        summaries = [member.run.summary for member in scenario.drawn(name)]
        compute_j, transmit_j, budget_j = (
            float(np.mean([summary[key] for summary in summaries]))
            for key in ("energy_compute_j", "energy_transmit_j", "budget_j")
        )
        bars.append(Bar(name, (compute_j, transmit_j), budget_j if np.isfinite(budget_j) else None))
    data = [{"policy": bar.name, "compute_j": bar.parts[0], "transmit_j": bar.parts[1], "budget_j": bar.limit}
            for bar in bars]  # fmt: skip
    legend = (("part0", "computing"), ("part1", "transmitting"), ("limit", "budget"))
    body = draw_bars(bars, ("computing", "transmitting"), "Energy of the fleet over the run [J]", "J")
    note = "Mean over seeds" if len(scenario.members) > len(bars) else ""
    return Figure("Energy", body, data, legend, note, "bars")


def shown_member(scenario: Scenario, policy: str) -> Member | None:
    """The run that stands for a policy where devices are shown: of the lowest seed that has device rows."""
    return next((member for member in scenario.drawn(policy) if member.devices), None)


def device_figures(scenario: Scenario, positions: Positions) -> list[Figure | LeftOut]:
    """A heat map and a map of the cell for each policy."""
    found: list[Figure | LeftOut] = []
    for name in scenario.policies:
        member = shown_member(scenario, name)
        if member is None:
            found.append(LeftOut(f"what devices did under {name}", "its rows of devices were not kept"))
            continue
        choices, title = choices_of(member.devices), f"{name}, seed {member.run.summary['seed']}"
        body, data, note = draw_choices(choices)
        found.append(Figure(title, body, data, (), note, "heat"))
        cell = positions(member.run.config)
        if cell is None:
            found.append(LeftOut(f"the cell under {name}", "its devices have no positions"))
            continue
        body, data, note = draw_cell(choices, *cell)
        found.append(Figure("The cell", body, data, (), note or "Pies of rounds, base station in the middle", "cell"))
    return found


def module_count(scenario: Scenario) -> int:
    """M, the largest family of modules."""
    return max(len(member.run.summary["module_histogram"]) - 1 for member in scenario.members)
