"""What the settings of a scenario change: the table, the words and the picture of the sensitivity rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from airtune.compare import PolicyReport, compare
from airtune.drawing import COLOURS, percent_axis, save
from airtune.paired import Paired, paired
from airtune.settings import dump, read_config
from airtune.tables import interval, number
from benchmarks.cells import Row
from benchmarks.policy_rows import lead, runs_of, saving, table, verdict, whole_seeds
from benchmarks.study_policies import POINTS, SENSITIVE, TUNE_ROUNDS

OTHERS = ("traditional", "no-switching")
"""What the default policy is set against."""
NAMES = {
    "policy.v": "V",
    "world.bandwidth_hz": "band [kHz]",
    "fleet.budget_scale": "budget [× preset's]",
    "world.deadline_s": "deadline [s]",
    "partition.alpha": "Dirichlet α",
    "world.interference_margin_db": "margin for interference [dB]",
}
"""Settings with a panel of their own, and what it is called there."""
SHOWN_IN = {"world.bandwidth_hz": 1e-3}
"""Factor from a setting's unit to the panel's."""
TOLD_FROM = 3
"""Seeds from which a setting counts in words; two may agree by chance."""
HEAD = f"""## What the setting changes

![Accuracy as one setting changes](pictures/results-settings.png)

SST-2, {TUNE_ROUNDS} rounds, one setting changed at a time, every policy as tuned. In the picture, lines are means over
seeds and dots are seeds. Energy saved is `joint`'s to `traditional`'s final accuracy there; modules are the shares of
`joint`'s device-rounds that sat out and that chose each module, smallest first; `learning.method=sum` is (8), the
update that the bound is proved for.
"""


def points() -> list[str]:
    """What is changed, KEY=VALUE; first nothing."""
    return ["", *(f"{key}={value}" for key, values in POINTS.items() for value in values)]


def at_point(rows: Sequence[Row], point: str) -> list[Row]:
    """Rows of a setting, of the seeds that each of its policies has."""
    return whole_seeds([row for row in rows if row["point"] == point])


def changed_part(rows: Sequence[Row]) -> str:
    """The section of the page."""
    return f"{HEAD}\n{sensitivity_table(rows)}\n\n{words(rows)}\n{frugal(rows)}\n"


def sensitivity_table(rows: Sequence[Row]) -> str:
    """One line for each setting that was changed."""
    lines = []
    for point in points():
        here = at_point(rows, point)
        runs = runs_of(here)
        if not any(run.summary["policy"] == "joint" for run in runs):
            continue
        found = {policy.policy: policy for policy in compare(runs, "joint").policies}
        ours = found["joint"]
        gains = [lead(runs, "joint", name) for name in OTHERS]
        cells = [f"`{point}`" if point else "as tuned"]
        cells += [interval(found[name].accuracy, 100, 1) if name in found else "–" for name in SENSITIVE]
        cells += ["–" if gain is None else interval(gain.difference, 100, 1, sign=True) for gain in gains]
        cells += ["–" if gains[0] is None else saving(gains[0])]
        cells += [
            interval(found[name].delivery_rate, 100, 0) if name in found else "–" for name in ("joint", "traditional")
        ]
        cells += [_modules(row["modules"] for row in here if row["policy"] == "joint")]
        cells += [number(ours.energy_j.mean / 1e3), number(ours.max_overspend_ratio), str(len(ours.seeds))]
        lines.append(cells)
    head = ["setting", *(f"`{name}` [%]" for name in SENSITIVE), "`joint` to `traditional`", "to `no-switching`",
            "energy saved [%]", "`joint` delivers [%]", "`traditional`", "`joint`: out / modules [%]",
            "its energy [kJ]", "its worst device [× budget]", "seeds"]  # fmt: skip
    return table(head, lines)


def _modules(histograms: Iterator[str]) -> str:
    """Shares of the device-rounds, sitting out first."""
    counts = [sum(each) for each in zip(*(map(int, one.split()) for one in histograms), strict=True)]
    out, *chosen = (round(100 * count / sum(counts)) for count in counts)
    return f"{out} / {' '.join(map(str, chosen))}"


def leads_at(rows: Sequence[Row], name: str) -> dict[str, PolicyReport]:
    """The default policy against another, at the settings that both have."""
    leads = {point: lead(runs_of([row for row in rows if row["point"] == point]), "joint", name) for point in points()}
    return {point: ours for point, ours in leads.items() if ours is not None}


def overall(leads: Sequence[PolicyReport]) -> Paired | None:
    """The mean over settings, paired by seed, on the seeds that every setting has."""
    gains = [{each.seed: each.difference for each in ours.per_seed} for ours in leads]
    seeds = set(gains[0]).intersection(*gains)
    return paired([fmean(gain[seed] for gain in gains) for seed in sorted(seeds)])


def words(rows: Sequence[Row]) -> str:
    """Where the default policy wins and where not, and the mean over all settings."""
    lines = []
    for name in OTHERS:
        leads = leads_at(rows, name)
        if not leads:
            lines.append(f"- `joint` to `{name}`: not run.")
            continue
        found: dict[str, list[str]] = {"ahead": [], "behind": []}
        for point, ours in leads.items():
            if len(ours.seeds) >= TOLD_FROM and verdict(ours.difference) in found:
                where = f"at `{point}`" if point else "as tuned"
                found[verdict(ours.difference)].append(f"{where} ({interval(ours.difference, 100, 1, sign=True)})")
        parts = [f"{word} {', '.join(places)}" for word, places in found.items() if places]
        parts.append("not told apart elsewhere" if parts else "told apart nowhere")
        mean = overall(list(leads.values()))
        lines.append(
            f"- `joint` to `{name}`: {'; '.join(parts)}. Mean over the {len(leads)} "
            f"settings that both have, paired by seed: {interval(mean, 100, 1, sign=True)} points"
            + (f", positive on {mean.above} of {mean.n} seeds." if mean else ".")
        )
    return "\n".join(lines)


def frugal(rows: Sequence[Row]) -> str:
    """What a part of the budget buys under each policy, against the traditional one with all of it."""
    scarce = f"fleet.budget_scale={POINTS['fleet.budget_scale'][0]}"
    at = {(row["point"], row["policy"], row["seed"]): run.summary for row, run in zip(rows, runs_of(rows), strict=True)}
    whole = {seed: run for (point, policy, seed), run in at.items() if not point and policy == "traditional"}
    parts = []
    for name in SENSITIVE:
        pairs = [(at[scarce, name, seed], run) for seed, run in whole.items() if (scarce, name, seed) in at]
        gain = paired([one["accuracy"] - other["accuracy"] for one, other in pairs])
        if gain is not None:
            energy = fmean(one["energy_j"] for one, _ in pairs) / fmean(other["energy_j"] for _, other in pairs)
            parts.append(
                f"`{name}` {interval(gain, 100, 1, sign=True)} points ({gain.n} seeds) with {100 * energy:.0f} % of "
                "its energy"
            )
    return f"- `{scarce}`, to `traditional` with the whole budget: {', '.join(parts) or 'not run'}."


def draw_changed(rows: Sequence[Row], stem: Path) -> None:
    """A panel for every setting with a name: accuracy of each policy as it changes."""
    whole = [row for point in points() for row in at_point(rows, point)]

    def content(figure: Figure) -> None:
        panels = figure.subplots(2, 3, sharey=True)
        for axes, (key, name) in zip(panels.flat, NAMES.items(), strict=True):
            _panel(axes, whole, key, name)
        for axes in panels[:, 0]:
            axes.set_ylabel("Accuracy, dev set")
        figure.legend(*panels.flat[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(SENSITIVE))

    save((10.5, 6.0), content, stem)


def _panel(axes: Axes, rows: Sequence[Row], key: str, name: str) -> None:
    """One setting: the preset's value among those that were tried, evenly spaced."""
    scale = SHOWN_IN.get(key, 1.0)
    at = {f"{key}={value}": float(value) for value in POINTS[key]} | {"": _shipped(rows, key)}
    order = sorted(at, key=at.__getitem__)
    for policy, colour in zip(SENSITIVE, COLOURS, strict=False):
        if key == "policy.v" and policy != "joint":
            continue  # run at one V or none
        seen = {
            place: [float(row["accuracy"]) for row in rows if row["point"] == point and row["policy"] == policy]
            for place, point in enumerate(order)
        }
        seen = {place: values for place, values in seen.items() if values}
        axes.plot(list(seen), [fmean(values) for values in seen.values()], "-o", color=colour, label=policy)
        for place, values in seen.items():
            axes.plot([place] * len(values), values, ".", color=colour, alpha=0.4, markersize=6)
    labels = [
        f"{scale * at[point]:g}" + ("" if point else "\nas tuned" if key == "policy.v" else "\npreset")
        for point in order
    ]
    axes.set_xticks(range(len(order)), labels)
    axes.set_xlim(-0.3, len(order) - 0.7)
    axes.set_title(name)
    percent_axis(axes)


def _shipped(rows: Sequence[Row], key: str) -> float:
    """The preset's value of a setting; V as tuned."""
    if key == "policy.v":
        setting = next(row["setting"] for row in rows if row["policy"] == "joint")
        return float(dict(pair.split("=") for pair in setting.split())[key])
    group, _, name = key.partition(".")
    return float(dump(read_config("sst2"))[group][name])
