"""How figures look; `plots` draws with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from airtune.files import told

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
"""Okabe and Ito's colour-blind-safe colours, blue first."""

IDLE = "#E4E6EA"
"""Colour of devices that sit out."""

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 4.5,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "legend.frameon": False,
    "svg.hashsalt": "airtune",
    "svg.fonttype": "path",
    "figure.constrained_layout.use": True,
}


def module_colours(count: int, *, dark: bool = False) -> list[tuple[float, float, float, float]]:
    """Colours of modules 0…count − 1 (cividis, colour-blind-safe): idle grey, then from light to dark.

    dark: for a dark ground, from dim to bright; idle stays as it is.
    """
    ramp = mpl.colormaps["cividis" if dark else "cividis_r"](
        np.linspace(0.33 if dark else 0.12, 0.95, max(count - 1, 1))
    )
    return [to_rgba(IDLE), *(tuple(map(float, colour)) for colour in ramp[: count - 1])]  # pyright: ignore[reportReturnType]


def save(size: tuple[float, float], content: Callable[[Figure], None], stem: Path) -> list[Path]:
    """Draw a figure off screen, without pyplot's global state, and save it twice."""
    files = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with mpl.rc_context(cast("Any", STYLE)), told(stem.parent, "choose a folder that can be written"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure = Figure(figsize=size)
        FigureCanvasAgg(figure)
        content(figure)
        figure.savefig(files[0], dpi=160)
        figure.savefig(files[1], metadata={"Date": None})
    return files


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Label shares in per cent."""
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(FuncFormatter(_share))


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers at 1, 2, 5, 10, …"""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _share(x: float, _position: int) -> str:
    return f"{100 * x:.4g} %"


def _plain(x: float, _position: int) -> str:
    return f"{x:,.6g}"


def round_axis(axes: Axes) -> None:
    """Whole rounds on the x axis."""
    axes.set_xlabel("Round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def name_bars(axes: Axes, names: list[str]) -> None:
    """Name horizontal bars 0, 1, … from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelcolor="#222222", length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def heading(axes: Axes, title: str, columns: int) -> None:
    """A title with the legend in one line beneath it, above the axes."""
    axes.set_title(title, pad=26)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9, handlelength=1.0,
                columnspacing=1.0, handletextpad=0.4, borderpad=0, borderaxespad=0.6)  # fmt: skip
