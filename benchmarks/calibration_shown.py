"""Picture and tables of `benchmarks.study_calibration`, from its rows."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from airtune.drawing import COLOURS, STYLE, percent_axis

SCENARIOS = ("umi", "uma", "rma")
CHANNELS = {"still": (0.0, 1), "walking": (0.83, 1), "256QAM": (0.0, 2)}
"""Speed that fading goes by [m/s] and MCS table."""
CEILINGS = ("none", "table")
"""Ceiling on the rate that the controller knows: none, or that of the MCS table."""
SNR_DB = np.arange(-10.0, 42.0, 2.0)
CURVE_RATE = 1.0
"""Bits per second and hertz of the upload in `curves.csv`."""


def mean_of(cost: Sequence[dict[str, Any]], name: str, **asked: Any) -> tuple[float, float]:
    """Mean over seeds of the rows asked for, and the half-width of its 95 % t-interval."""
    values = np.array([row[name] for row in cost if all(row[key] == value for key, value in asked.items())])
    half = float(stats.t.ppf(0.975, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), half


def draw(
    path: Path, curve: Sequence[dict[str, Any]], reliability: Sequence[dict[str, Any]], cost: Sequence[dict[str, Any]]
) -> None:
    """One upload over SNR; what the controller predicts and what arrives, by probability and by rate; utility."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12.0, 8.4))
        FigureCanvasAgg(figure)
        (one, predicted), (rate, utility) = figure.subplots(2, 2)
        _curves(one, curve)
        predicted.plot([0, 1], [0, 1], color="#999999", linewidth=1.2, linestyle=":")
        _reliability(predicted, reliability, "probability", "table")
        predicted.set(
            xlabel="predicted by (6) and (16)", title="What joint predicts below the ceiling, and what arrives"
        )
        percent_axis(predicted, "x")
        _reliability(rate, reliability, "bit_per_s_hz", "none")
        rate.set(xlabel="rate that joint asks for [bit/s/Hz]", title="What arrives by rate, without a ceiling")
        _bars(utility, cost)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _curves(axes: Any, curve: Sequence[dict[str, Any]]) -> None:
    """Uploads lost over SNR."""
    for sight, name, colour in (("never", "without line of sight", 1), ("always", "with line of sight", 2)):
        mine = [row for row in curve if row["line_of_sight"] == sight and row["arrived"] < 1.0]
        lost = [1.0 - row["arrived"] for row in mine]
        axes.semilogy([row["snr_db"] for row in mine], lost, "o-", color=COLOURS[colour], label=f"NR over UMa, {name}")
    mine = [row for row in curve if row["line_of_sight"] == "never"]
    axes.semilogy(SNR_DB, [1.0 - row["analytic"] for row in mine], color=COLOURS[0], label="(6) with a gap of 3 dB")
    axes.set(xlabel="mean SNR [dB]", ylabel="uploads lost", title=f"One upload at {CURVE_RATE:g} bit/s/Hz")
    axes.set_ylim(5e-4, 1.5)
    axes.legend(fontsize=8)


def _reliability(axes: Any, reliability: Sequence[dict[str, Any]], by: str, ceiling: str) -> None:
    """Share that arrived in each group of at least 20 uploads of joint."""
    for colour, scenario in enumerate(SCENARIOS):
        for channel, line in zip(CHANNELS, ("-", "--", ":"), strict=True):
            mark = {"scenario": scenario, "channel": channel, "policy": "joint", "ceiling": ceiling, "by": by}
            mine = [row for row in reliability if all(row[key] == value for key, value in mark.items())]
            mine = [row for row in mine if row["uploads"] >= 20]
            place = [row["predicted"] if by == "probability" else row["from"] + 0.5 for row in mine]
            name = f"{scenario.upper()}, {channel}"
            arrived = [row["arrived"] for row in mine]
            axes.plot(place, arrived, line, marker="o", color=COLOURS[colour], label=name)
    axes.set(ylabel="arrived", ylim=(-0.03, 1.03))
    axes.legend(fontsize=7.5)
    percent_axis(axes)


def _bars(axes: Any, cost: Sequence[dict[str, Any]]) -> None:
    """Delivered utility by scenario and channel."""
    ways = (
        ("traditional", "none", "configured", "abstraction", "traditional over NR, no ceiling"),
        ("traditional", "table", "configured", "abstraction", "traditional over NR"),
        ("joint", "none", "configured", "abstraction", "joint over NR, no ceiling"),
        ("joint", "none", "fitted", "abstraction", "the same, gap fitted"),
        ("joint", "table", "configured", "abstraction", "joint over NR"),
        ("joint", "table", "configured", "rayleigh", "joint, as believed"),
    )
    shades = ("#F2C9A8", COLOURS[1], "#A9CCE6", COLOURS[2], COLOURS[0], "#BBBBBB")
    names = [(scenario, channel) for scenario in SCENARIOS for channel in CHANNELS]
    for index, (policy, ceiling, gap, deliveries, name) in enumerate(ways):
        asked = {"policy": policy, "ceiling": ceiling, "gap": gap, "deliveries": deliveries}
        found = [mean_of(cost, "delivered_utility", scenario=s, channel=m, **asked) for s, m in names]
        place = np.arange(len(names)) + 0.14 * (index - 2.5)
        axes.bar(place, [m for m, _ in found], 0.13, yerr=[h for _, h in found], color=shades[index], label=name,
                 error_kw={"linewidth": 0.8, "ecolor": "#444444"})  # fmt: skip
    axes.set_xticks(range(len(names)), [f"{scenario.upper()}\n{channel}" for scenario, channel in names], fontsize=8)
    axes.set(title="Delivered utility", ylim=(0, 1))
    axes.grid(visible=False, axis="x")
    percent_axis(axes)
    axes.legend(fontsize=7.5, ncols=2, loc="upper left")


def tell(reliability: Sequence[dict[str, Any]], cost: Sequence[dict[str, Any]]) -> None:
    """Print both tables."""
    print("| scenario | channel | policy | ceiling | uploads | predicted | arrived |\n|---|---|---|---|---|---|---|")
    for row in reliability:
        if row["by"] == "all":
            name = f"| {row['scenario']} | {row['channel']} | {row['policy']} | {row['ceiling']} | {row['uploads']}"
            print(f"{name} | {row['predicted']:.3f} | {row['arrived']:.3f} ({row['low']:.3f}–{row['high']:.3f}) |")
    print("\n| scenario | channel | policy | ceiling | gap [dB] | promised | as believed | over NR | energy [J] |")
    print("|---|---|---|---|---|---|---|---|---|")
    ways = [("traditional", "configured"), ("joint", "configured"), ("joint", "fitted")]
    for scenario, channel, (policy, gap), ceiling in itertools.product(SCENARIOS, CHANNELS, ways, CEILINGS):
        asked = {"scenario": scenario, "channel": channel, "policy": policy, "ceiling": ceiling, "gap": gap}
        real = asked | {"deliveries": "abstraction"}
        gap_db, _ = mean_of(cost, "snr_gap_db", **real)
        promised, _ = mean_of(cost, "promised_utility", **real)
        believed, about = mean_of(cost, "delivered_utility", **asked, deliveries="rayleigh")
        reached, half = mean_of(cost, "delivered_utility", **real)
        energy_j, _ = mean_of(cost, "energy_j", **real)
        print(
            f"| {scenario} | {channel} | {policy} | {ceiling} | {gap_db:.2f} | {promised:.3f} "
            f"| {believed:.3f} ± {about:.3f} | {reached:.3f} ± {half:.3f} | {energy_j:.0f} |"
        )
