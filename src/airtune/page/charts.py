"""Line charts and stacked bars as SVG that follows the page's width and colours; no libraries."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from airtune.tables import number

WIDTH, HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 10.0, 8.0, 40.0
"""Margins around the plotted area, in the picture's own units."""
COLOURS, GROUPS = 7, 3
"""Colours of policies in the style sheet, and kinds of line in which they come again."""


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A curve; NaN is a gap."""

    name: str
    colour: int
    """Number of the policy, which has a colour."""
    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    dashed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LineChart:
    """Curves over one x axis."""

    lines: Sequence[Line]
    x_label: str
    y_label: str
    scale: float = 1.0
    """What values are multiplied with on the axis, 100 for per cent."""
    logarithmic: bool = False
    from_zero: bool = False
    """Whether the y axis starts at 0."""
    level: float | None = None
    """Where a horizontal line marks a limit."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Values to picture coordinates."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value; on a logarithmic axis what is below it lies at its lower end."""
        if self.logarithmic:
            low, high, value = (math.log10(v) for v in (self.low, self.high, max(value, self.low)))
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that lie within an interval; whole ones if asked.

    >>> ticks(0.0, 1.0), ticks(3.0, 17.0), ticks(1.0, 3.0, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0], [1.0, 2.0, 3.0])
    """
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= count + 2)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten within an interval, at most six."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**i for i in range(first, last + 1, max(math.ceil((last - first + 1) / 6), 1))]


def tick_text(value: float) -> str:
    """A tick's label: plain where that is short.

    >>> tick_text(2000.0), tick_text(0.6915), tick_text(1e-07)
    ('2,000', '0.6915', '1e-7')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.6f}".rstrip("0").rstrip(".")  # ticks are round numbers
    mantissa, exponent = f"{value:.2g}".split("e") if "e" in f"{value:.2g}" else f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def style_of(number: int) -> str:
    """Colour and kind of line of the nth policy: seven colours, then the same ones dotted, then in dashes and dots.

    >>> style_of(1), style_of(8), style_of(16)
    ('c1', 'c1 g1', 'c2 g2')
    """
    group = number // COLOURS % GROUPS
    return f"c{number % COLOURS}" + (f" g{group}" if group else "")


def draw_lines(chart: LineChart) -> str:
    """The chart as an SVG element that scales with its place."""
    x, y = _axes(chart)
    parts = [*_grid(x, y, chart)]
    if chart.level is not None:
        at = y(chart.level)
        parts.append(f'<line class="level" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for line in chart.lines:
        points = [(x(a), y(chart.scale * b)) for a, b in zip(line.x, line.mean, strict=True) if math.isfinite(b)]
        style = style_of(line.colour)
        if not np.array_equal(line.low, line.high, equal_nan=True):
            parts.append(f'<path class="band {style}" d="{_band(line, x, y, chart.scale)}"/>')
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<path class="line {style}{dashed}" d="{_path(points)}"/>')
        if points and (len(points) == 1 or not line.dashed):
            parts.append(f'<circle class="dot {style}" cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}"'
                         ' r="3.2"/>')  # fmt: skip
    parts.append(f'<line class="cursor" y1="{TOP:g}" y2="{HEIGHT - BOTTOM:g}"/>')
    return (
        f'<svg class="lines" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" data-x0="{x.low!r}" data-x1="{x.high!r}" '
        f'data-y0="{y.low!r}" data-y1="{y.high!r}" data-scale="{chart.scale:g}">{"".join(parts)}</svg>'
    )


def _axes(chart: LineChart) -> tuple[Axis, Axis]:
    xs = np.concatenate([line.x for line in chart.lines])
    ys = chart.scale * np.concatenate([np.concatenate((line.low, line.high)) for line in chart.lines])
    ys = ys[np.isfinite(ys)]
    if chart.level is not None:
        ys = np.append(ys, 1.04 * chart.level)
    if chart.logarithmic:
        above = ys[ys > 0]
        low, high = (float(above.min()), float(above.max())) if len(above) else (1e-9, 1.0)
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high) + 1e-9)
        high = high if high > low else 10 * low
    else:
        low, high = float(ys.min()), float(ys.max())
        low = min(low, 0.0) if chart.from_zero else low
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        low, high = (low if chart.from_zero else low - room), high + room
    left, right = float(xs.min()), float(xs.max())
    if left == right:
        left, right = left - 1.0, right + 1.0
    return (
        Axis(left, right, LEFT + 6, WIDTH - RIGHT - 6),
        Axis(low, high, HEIGHT - BOTTOM, TOP, chart.logarithmic),
    )


def _grid(x: Axis, y: Axis, chart: LineChart) -> list[str]:
    parts: list[str] = []
    for value in decades(y.low, y.high) if chart.logarithmic else ticks(y.low, y.high):
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6:g}" y="{at + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{base:g}" y2="{base:g}"/>')
    rounds = all(np.array_equal(line.x, np.floor(line.x)) for line in chart.lines)
    for value in ticks(x.low, x.high, whole=rounds):
        parts.append(f'<text x="{x(value):.1f}" y="{base + 16:g}" text-anchor="middle">{tick_text(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle:g}" y="{HEIGHT - 5:g}" text-anchor="middle">{escape(chart.x_label)}'
                 "</text>")  # fmt: skip
    return parts


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'L' if i else 'M'}{a:.1f} {b:.1f}" for i, (a, b) in enumerate(points))


def _band(line: Line, x: Axis, y: Axis, scale: float) -> str:
    sound = np.isfinite(line.low) & np.isfinite(line.high)
    forth = [(x(a), y(scale * b)) for a, b in zip(line.x[sound], line.high[sound], strict=True)]
    back = [(x(a), y(scale * b)) for a, b in zip(line.x[sound], line.low[sound], strict=True)]
    return f"{_path(forth + back[::-1])}Z"


@dataclass(frozen=True, slots=True)
class Bar:
    """A policy's quantities, stacked, and their limit."""

    name: str
    parts: tuple[float, ...]
    limit: float | None


def draw_bars(bars: Sequence[Bar], names: Sequence[str], x_label: str, unit: str) -> str:
    """Horizontal stacked bars with a tick at each limit, as an SVG element.

    names: of the parts; their n-th has the style `part<n>`.
    """
    step = max(46.0, (HEIGHT - BOTTOM) / len(bars))
    thick, height = min(0.4 * step, 40.0), step * len(bars) + BOTTOM
    top = max(max(sum(bar.parts), bar.limit or 0.0) for bar in bars) or 1.0
    x = Axis(0.0, 1.04 * top, 8.0, WIDTH - RIGHT)
    base = height - BOTTOM
    parts: list[str] = []
    for value in ticks(0.0, x.high):
        parts.append(f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="0" y2="{base:g}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{base + 16:g}" text-anchor="middle">{tick_text(value)}</text>')
    for i, bar in enumerate(bars):
        y, left = (i + 0.5) * step - thick / 2 + 8, 0.0
        parts.append(f'<text class="key" x="8" y="{y - 5:.1f}">{escape(bar.name)}</text>')
        for n, (value, name) in enumerate(zip(bar.parts, names, strict=True)):
            parts.append(
                f'<rect class="part{n}" x="{x(left):.2f}" y="{y:.1f}" width="{x(left + value) - x(left):.2f}" '
                f'height="{thick:.1f}" data-tip="{escape(bar.name)}: {name} {number(value, unit, 4)}"/>'
            )
            left += value
        if bar.limit is not None:
            at = x(bar.limit)
            parts.append(f'<line class="limit" x1="{at:.2f}" x2="{at:.2f}" y1="{y - 3:.1f}" y2="{y + thick + 3:.1f}"/>')
    parts.append(f'<text class="name" x="{WIDTH / 2:g}" y="{height - 5:g}" text-anchor="middle">{escape(x_label)}'
                 "</text>")  # fmt: skip
    return f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img">{"".join(parts)}</svg>'
