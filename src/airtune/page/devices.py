"""What each device did: round by round as a heat map, and over the run on a map of the cell, as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.curves import table
from airtune.report import Rows

DEVICES_MAX, ROUNDS_MAX = 80, 400
"""Devices and rounds that a heat map shows at most."""

PIES_MAX = 200
"""Devices that a map shows at most."""

LOST = "lost"


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """What devices did in which round, each array of shape T×K, NaN where a device was not drawn."""

    device: list[int]
    """Number of each column's device, best mean gain first."""
    kind: list[str]
    t: list[int]
    """Round of each line, from 0."""
    module: NDArray[np.float64]
    delivered: NDArray[np.float64]
    energy_j: NDArray[np.float64]


def choices_of(devices: Rows) -> Choices:
    """Device rows as arrays, the device of the best mean gain first."""
    number = sorted({row["device"] for row in devices})
    kind = {row["device"]: str(row["kind"]) for row in devices}
    order = np.argsort(-np.nanmean(table(devices, "gain"), axis=0), kind="stable")
    module, delivered, compute_j, transmit_j = (
        table(devices, key)[:, order] for key in ("module", "delivered", "energy_compute_j", "energy_transmit_j")
    )
    device = [number[k] for k in order]
    rounds = sorted({row["t"] for row in devices})
    return Choices(device, [kind[k] for k in device], rounds, module, delivered, compute_j + transmit_j)


def state(module: float, delivered: float) -> str:
    """Style of what a device did: m0 sat out, m1, m2, … delivered that module, lost; empty if it was not drawn."""
    if math.isnan(module):
        return ""
    return LOST if module and not delivered else f"m{int(module)}"


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of 0…count − 1, evenly spread, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _left_out(chosen: Sequence[tuple[NDArray[np.int64], int, str]]) -> str:
    """A line on how many rounds and devices are shown; empty if all are."""
    parts = [f"{len(some):,} of {count:,} {what}" for some, count, what in chosen if len(some) < count]
    return f"Shown are {' and '.join(parts)}, evenly spread" if parts else ""


def draw_choices(choices: Choices) -> tuple[str, dict[str, Any], str]:
    """A heat map as SVG without labels, its data, and a line on what of them is left out (empty if nothing is)."""
    rounds, devices = choices.module.shape
    rows, columns = evenly(rounds, ROUNDS_MAX), evenly(devices, DEVICES_MAX)
    module, delivered = (values[np.ix_(rows, columns)] for values in (choices.module, choices.delivered))
    paths: dict[str, list[str]] = {}
    for k in range(len(columns)):
        start = 0
        for i in range(1, len(rows) + 1):
            here = state(module[start, k], delivered[start, k])
            if i == len(rows) or state(module[i, k], delivered[i, k]) != here:
                if here:
                    paths.setdefault(here, []).append(f"M{start} {k}h{i - start}v1h{start - i}z")
                start = i
    cells = "".join(f'<path class="{name}" d="{"".join(path)}"/>' for name, path in sorted(paths.items()))
    data = {
        "round": [choices.t[i] + 1 for i in rows],
        "device": [choices.device[k] for k in columns],
        "kind": [choices.kind[k] for k in columns],
        "module": module.T,
        "delivered": delivered.T,
    }
    svg = (
        f'<svg class="heat" viewBox="0 0 {len(rows)} {len(columns)}" preserveAspectRatio="none" '
        f'shape-rendering="crispEdges" role="img">{cells}</svg>'
    )
    return svg, data, _left_out([(rows, rounds, "rounds"), (columns, devices, "devices")])


def draw_cell(
    choices: Choices, position_m: NDArray[np.float64], radius_m: float
) -> tuple[str, list[dict[str, Any]], str]:
    """The cell from above, each device a pie of its rounds, as an SVG element, its data, and what is left out."""
    size = 200.0
    scale = (size - 14.0) / radius_m
    columns = evenly(len(choices.device), PIES_MAX)
    pie = 9.0 if len(columns) <= 40 else 60.0 / math.sqrt(len(columns))
    parts = ['<circle class="edge" r="186"/>', *_rings(radius_m, scale)]
    parts.append('<path class="mast" d="M0 -8L6 6H-6Z" data-tip="base station"/>')
    data: list[dict[str, Any]] = []
    for column in map(int, columns):
        device = choices.device[column]
        module, delivered = choices.module[:, column], choices.delivered[:, column]
        counts: dict[str, int] = {}
        for m, d in zip(module, delivered, strict=True):
            name = state(m, d)
            counts[name] = counts.get(name, 0) + 1
        counts.pop("", None)
        x, y = (float(v) for v in position_m[device])
        sent = int(np.nansum(module > 0))
        record = {
            "device": device, "kind": choices.kind[column], "x_m": x, "y_m": y, "counts": counts,
            "energy_j": float(np.nansum(choices.energy_j[:, column])),
        }  # fmt: skip
        data.append(record)
        words = (
            f"device {device}, {choices.kind[column]}, {math.hypot(x, y):.0f} m: sent {sent} of {sum(counts.values())} "
            f"rounds, {counts.get(LOST, 0)} lost, {record['energy_j']:,.1f} J"
        )
        parts.append(f'<g transform="translate({x * scale:.1f} {-y * scale:.1f})" data-tip="{escape(words)}">'
                     f"{_pie(counts, pie)}</g>")  # fmt: skip
    box = f"{-size:g} {-size:g} {2 * size:g} {2 * size:g}"
    svg = f'<svg class="cell" viewBox="{box}" role="img">{"".join(parts)}</svg>'
    return svg, data, _left_out([(columns, len(choices.device), "devices")])


def _rings(radius_m: float, scale: float) -> list[str]:
    half = radius_m / 2 * scale
    label = f"{radius_m / 2:,.0f} m" if radius_m >= 10 else f"{radius_m / 2:g} m"
    return [f'<circle class="ring" r="{half:.1f}"/>', f'<text x="4" y="{-half - 3:.1f}">{label}</text>']


def _pie(counts: dict[str, int], radius: float) -> str:
    total = sum(counts.values())
    parts, angle = [f'<circle class="rim" r="{radius + 1:.1f}"/>'], -math.pi / 2
    for name in sorted(counts, key=lambda name: (name == LOST, name == "m0", name)):
        if counts[name] == total:
            return "".join([*parts, f'<circle class="{name}" r="{radius:g}"/>'])
        end = angle + 2 * math.pi * counts[name] / total
        (a, b), (c, d) = ((radius * math.cos(each), radius * math.sin(each)) for each in (angle, end))
        large = int(end - angle > math.pi)
        parts.append(
            f'<path class="{name}" d="M0 0L{a:.2f} {b:.2f}A{radius:g} {radius:g} 0 {large} 1 {c:.2f} {d:.2f}Z"/>'
        )
        angle = end
    return "".join(parts)
