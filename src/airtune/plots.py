"""Figures of runs, drawn from their rows only, each as PNG and SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from airtune.compare import by_policy
from airtune.curves import accuracy_curve, evaluated, table
from airtune.drawing import (
    COLOURS,
    IDLE,
    heading,
    log_axis,
    module_colours,
    name_bars,
    percent_axis,
    round_axis,
    save,
)
from airtune.record import RunFolder
from airtune.report import Rows, Run, load_run
from airtune.types import AirtuneError

STYLES = ("-", ":", "-.")
"""Kinds of line in which the colours come again, of more policies than there are colours."""
LEGEND_MAX = len(COLOURS)
"""Policies whose names have room within a panel."""
LEGEND_COLUMNS = 5
"""Names side by side in the legend of more."""


def plot_run(path: Path) -> list[Path]:
    """Draw one run's figures into its folder's plots/; returns the files. Raises AirtuneError if it has no rows."""
    folder = RunFolder.open(path)
    rounds, devices = folder.read_rounds(), folder.read_devices()
    if not rounds or not devices:
        raise AirtuneError(f"run folder {path} has no finished round to draw")
    budget_j = (folder.read_summary() or {}).get("budget_j")
    draw: dict[str, tuple[tuple[float, float], Callable[[Figure], None]]] = {
        "accuracy": ((6.0, 3.6), lambda figure: _accuracy(figure.subplots(), rounds)),
        "accuracy_energy": ((6.0, 3.6), lambda figure: _accuracy_energy(figure.subplots(), rounds, budget_j)),
        "queues": ((6.0, 5.4), lambda figure: _queues(figure, rounds, devices)),
        "modules": ((6.4, 6.4), lambda figure: _modules(figure, rounds, devices)),
        "gains": ((6.4, 4.0), lambda figure: _gains(figure.subplots(), devices)),
    }
    files: list[Path] = []
    for name, (size, content) in draw.items():
        files += save(size, content, folder.plots_path / name)
    return files


def plot_compare(paths: Sequence[Path], out: Path, reference: str | None = None) -> list[Path]:
    """Draw finished runs side by side as one 2×2 picture, out/compare.png and .svg; returns the files.

    Curves are means over seeds with a band from the lowest to the highest seed; policies keep their order of
    appearance, the reference first if it is given. Raises AirtuneError if a run has not ended.
    """
    groups = by_policy([load_run(path) for path in paths])
    if not groups:
        raise AirtuneError("there is no run to draw; give at least one finished run folder")
    names = sorted(groups, key=lambda name: name != reference)
    policies = {name: list(groups[name].values()) for name in names}

    def content(figure: Figure) -> None:
        axes = figure.subplots(2, 2)
        draw_curves(axes[0, 0], policies, against_energy=False)
        draw_curves(axes[0, 1], policies, against_energy=True)
        _energy_bars(axes[1, 0], policies)
        _module_bars(axes[1, 1], policies)
        if len(policies) > LEGEND_MAX:  # inside the first panel they would hide the curves
            handles, labels = axes[0, 0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=LEGEND_COLUMNS, handlelength=2.6)
        task = next(iter(policies.values()))[0].summary["task"]
        figure.suptitle(f"{task}: accuracy and what it costs", x=0.01, ha="left", fontsize=13, fontweight="bold")

    more = len(names) - LEGEND_MAX
    height = 7.4 if more <= 0 else 7.4 + 0.25 * more + 0.22 * math.ceil(len(names) / LEGEND_COLUMNS)
    return save((10.5, height), content, out / "compare")


def _accuracy(axes: Axes, rounds: Rows) -> None:
    t, _, accuracy = evaluated(rounds)
    axes.plot(t, accuracy, "o-", color=COLOURS[0])
    axes.set(title="Accuracy", ylabel="Accuracy on the dev subset")
    round_axis(axes)
    percent_axis(axes)


def _accuracy_energy(axes: Axes, rounds: Rows, budget_j: float | None) -> None:
    _, spent_j, accuracy = evaluated(rounds)
    axes.plot(spent_j, accuracy, "o-", color=COLOURS[0])
    if budget_j:
        axes.axvline(budget_j, color=COLOURS[1], linestyle="--", linewidth=1.4)
        axes.annotate("budget", (budget_j, 0.02), (-4, 0), ("data", "axes fraction"), "offset points",
                      color=COLOURS[1], ha="right")  # fmt: skip
    axes.set(title="Accuracy against energy", xlabel="Energy spent [J]", ylabel="Accuracy on the dev subset")
    axes.set_xlim(left=0)
    percent_axis(axes)


def _queues(figure: Figure, rounds: Rows, devices: Rows) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    queue_j = table(devices, "queue_j")
    t = np.array(sorted({row["t"] for row in devices})) + 1
    lowest, highest = np.nanmin(queue_j, axis=1), np.nanmax(queue_j, axis=1)
    above.fill_between(t, lowest, highest, color=COLOURS[0], alpha=0.18, linewidth=0,
                       label="lowest to highest device")  # fmt: skip
    above.plot(t, np.nanmedian(queue_j, axis=1), color=COLOURS[0], label="median device")
    above.set(title="Virtual energy queues", ylabel="Queue [J]")
    above.set_ylim(bottom=0)
    above.legend(loc="upper left")
    ratio = np.array([np.nan if (r := row["max_overspend_ratio"]) is None else r for row in rounds])
    below.plot([row["t"] + 1 for row in rounds], ratio, color=COLOURS[1])
    below.axhline(1.0, color="#555555", linestyle="--", linewidth=1.2)
    below.set(title="Worst device's energy over its budget so far", ylabel="Ratio")
    below.set_ylim(0, 1.1 * max(1.0, float(np.nan_to_num(ratio).max())))
    round_axis(below)


def _modules(figure: Figure, rounds: Rows, devices: Rows) -> None:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    counts = np.array([row["modules"] for row in rounds], dtype=np.float64)
    size = counts.shape[1]
    colours = module_colours(size)
    t = np.array([row["t"] + 1 for row in rounds])
    edges = np.append(t - 0.5, t[-1] + 0.5)
    base = np.zeros(len(t))
    for m in range(size):
        above.stairs(base + counts[:, m], edges, baseline=base, fill=True, color=colours[m],
                     label="idle" if m == 0 else f"module {m}")  # fmt: skip
        base = base + counts[:, m]
    heading(above, "Modules chosen", size)
    above.set(ylabel="Devices", ylim=(0, base.max()), xlim=(edges[0], edges[-1]))
    above.yaxis.set_major_locator(MaxNLocator(integer=True))
    gain = table(devices, "gain")
    order = np.argsort(-np.nanmean(gain, axis=0))
    choice = table(devices, "module")[:, order].T
    palette = ListedColormap(colours)
    below.imshow(choice, aspect="auto", interpolation="nearest", cmap=palette, vmin=-0.5, vmax=size - 0.5,
                 extent=(edges[0], edges[-1], len(order) + 0.5, 0.5))  # fmt: skip
    below.grid(False)
    below.set(ylabel="Device, best mean gain first")
    below.yaxis.set_major_locator(MaxNLocator(integer=True))
    round_axis(below)


def _gains(axes: Axes, devices: Rows) -> None:
    rows = [row for row in devices if row["gain"] > 0]
    rows = rows[:: max(len(rows) // 20_000, 1)]
    gain_db = 10.0 * np.log10([row["gain"] for row in rows])
    module = np.array([row["module"] for row in rows])
    delivered = np.array([bool(row["delivered"]) for row in rows])
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(rows))
    for which, colour, label in (
        (module == 0, "#9AA0A6", "idle"),
        ((module > 0) & delivered, COLOURS[0], "delivered"),
        ((module > 0) & ~delivered, COLOURS[1], "lost"),
    ):
        axes.scatter(gain_db[which], (module + jitter)[which], s=12, color=colour, alpha=0.45, linewidths=0,
                     label=label, rasterized=True)  # fmt: skip
    top = int(module.max())
    axes.set_yticks(range(top + 1), ["idle", *(f"module {m}" for m in range(1, top + 1))])
    axes.set_xlabel("Mean channel power gain [dB]")
    heading(axes, "Channel gain and module chosen", 3)


def draw_curves(axes: Axes, policies: Mapping[str, Sequence[Run]], *, against_energy: bool) -> None:
    """Accuracy per round or against energy: mean over seeds, band from the lowest to the highest seed."""
    for number, (name, runs) in enumerate(policies.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        curve = accuracy_curve(runs, against_energy=against_energy)
        if len(runs) > 1:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(curve.x, curve.mean, style, color=colour, label=name)
        axes.plot(curve.x[-1:], curve.mean[-1:], "o", color=colour)
    axes.set(ylabel="Accuracy on the dev subset")
    percent_axis(axes)
    if against_energy:
        ends = [run.summary["energy_j"] for runs in policies.values() for run in runs]
        if min(ends) > 0 and max(ends) > 5 * min(ends):
            log_axis(axes)
        axes.set(title="Accuracy against energy", xlabel="Energy spent by the fleet [J]")
    else:
        axes.set_title("Accuracy per round")
        if len(policies) <= LEGEND_MAX:
            axes.legend(loc="lower right")
        round_axis(axes)


def _energy_bars(axes: Axes, policies: Mapping[str, Sequence[Run]]) -> None:
    """Mean energy of each policy, split, against its budget."""
    for y, runs in enumerate(policies.values()):
        compute_j = float(np.mean([run.summary["energy_compute_j"] for run in runs]))
        transmit_j = float(np.mean([run.summary["energy_transmit_j"] for run in runs]))
        budget_j = float(np.mean([run.summary["budget_j"] for run in runs]))
        first = y == 0
        axes.barh(y, compute_j, height=0.55, color=COLOURS[0], label="computing" if first else None)
        axes.barh(y, transmit_j, height=0.55, left=compute_j, color=COLOURS[5], label="transmitting" if first else None)
        axes.vlines(budget_j, y - 0.4, y + 0.4, colors="#222222", linewidth=2, label="budget" if first else "")
    name_bars(axes, list(policies))
    axes.set_xlabel("Energy spent by the fleet [J]")
    heading(axes, "Energy", 3)


def _module_bars(axes: Axes, policies: Mapping[str, Sequence[Run]]) -> None:
    """Share of the device-rounds of each policy that delivered module m, were lost, or were idle.

    Where rows of devices were not kept, the modules chosen take the place of those delivered.
    """
    size = max(len(run.summary["module_histogram"]) for runs in policies.values() for run in runs)
    kept = all(RunFolder.open(run.path).read_devices() for runs in policies.values() for run in runs)
    labels = [*(str(m) for m in range(1, size)), *(["lost"] if kept else []), "idle"]
    colours = [*module_colours(size)[1:], *([COLOURS[1]] if kept else []), IDLE]
    for y, runs in enumerate(policies.values()):
        parts = _fates(runs, size) if kept else _choices(runs, size)
        left = 0.0
        for count, label, colour in zip(parts, labels, colours, strict=True):
            share = count / max(sum(parts), 1)
            axes.barh(y, share, height=0.55, left=left, color=colour, label=label if y == 0 else None)
            left += share
    name_bars(axes, list(policies))
    axes.set(xlabel="Share of device-rounds", xlim=(0, 1))
    percent_axis(axes, "x")
    heading(axes, "Modules delivered" if kept else "Modules chosen", size + 1)


def _fates(runs: Sequence[Run], size: int) -> list[int]:
    """Device-rounds that delivered each module, were lost, and were idle."""
    rows = [row for run in runs for row in RunFolder.open(run.path).read_devices()]
    counts = [sum(row["module"] == m and bool(row["delivered"]) for row in rows) for m in range(1, size)]
    idle = sum(row["module"] == 0 for row in rows)
    return [*counts, len(rows) - idle - sum(counts), idle]


def _choices(runs: Sequence[Run], size: int) -> list[int]:
    """Device-rounds on each module, and idle ones."""
    counts = [sum(int(row["modules"][m]) for run in runs for row in run.rounds) for m in range(size)]
    return [*counts[1:], counts[0]]
