"""docs/results.md and its pictures from the rows of `benchmarks.study_policies`, every figure in it computed here.

python -m benchmarks.results            # writes them
python -m benchmarks.results --check    # exit code 1 if the page is not what the rows say
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from airtune.compare import PolicyReport, by_policy, compare
from airtune.drawing import save
from airtune.files import write_atomic
from airtune.paired import Estimate, Paired
from airtune.plots import draw_curves
from airtune.report import Run
from airtune.tables import interval, number
from benchmarks.cells import Row, read
from benchmarks.changed import changed_part, draw_changed
from benchmarks.policy_rows import lead, runs_of, saving, table, told, verdict, whole_seeds
from benchmarks.study_policies import RATES, RESULTS, TRIALS, TUNE_ROUNDS, TUNE_SEED, UNTUNED, best_settings

PAGE = Path("docs/results.md")
PICTURES = PAGE.parent / "pictures"
AIM_GAIN, AIM_SAVING = 0.08, 0.30
"""Accuracy over the traditional policy, and energy saved to its final accuracy."""
ABLATIONS = {
    "no-switching": "SP1, switching",
    "no-power-control": "SP2, power control",
    "no-bandwidth-allocation": "SP3, bandwidth allocation",
    "myopic": "virtual queues",
}
DRAWN = ("joint", "traditional", "alternating", "no-power-control", "best-channel", "unlimited")
"""Policies in the figures; all of them would be a thicket."""
HEAD = """# Results

*Written by `python -m benchmarks.results` from the rows in `experiments/results/policies`;
`python -m benchmarks.study_policies` makes those anew.*

MiniLM-L6 (22.7 M parameters), the presets `sst2` and `qnli` as they ship: 20 devices, Dirichlet(0.3) label skew, the
same energy budgets, channels, fades, splits, batches and initial weights for every policy on a seed. Where their
numbers come from is in [devices.md](devices.md) and [scenarios.md](scenarios.md), what the policies do in
[policies.md](policies.md). Both presets were fixed before the comparison; the server's step was not: after a first one,
in which runs that mix modules fell to chance, each component was made to move by its share ([log.md](log.md)), and
those policies were tuned and run again. Accuracy is that of the last adapter on the whole dev set, ± are 95 %
t-intervals over seeds, differences are paired by seed; "ahead" means that the interval of one difference excludes 0,
not corrected for how many there are, and "2 of 3" on how many seeds it is positive. In the pictures, which show the
accuracy on the dev subset of a run's evaluations, bands go from the lowest to the highest seed. `oracle` knows all
channels beforehand and `unlimited` knows neither failures nor budgets: what they show is for orientation, they are no
competitors, and no bounds on accuracy. The risk bound is Theorem 1 with the prior's constants, an estimate on a
transformer: it is what `joint` minimises under the budgets. Policies run as tuned, so two of them may differ in V or
in the server's rate, too (column "best trial"; `oracle` and `unlimited` were not tried and have `joint`'s).
"""
TUNED = f"""## How the policies were tuned

Two values of a dial of its own at two server rates, or four server rates; `traditional` at all four modules. SST-2,
{TUNE_ROUNDS} rounds, seed {TUNE_SEED}, which is reported nowhere else, accuracy in per cent. The best (bold) served
all other runs, QNLI's too. One run's accuracy has a standard error of 1.3 points, so many of these choices are within
the noise, and the highest rate that was tried is the best for most: the grids are as small as they had to be.
"""


def policies_table(runs: Sequence[Run], rows: Sequence[Row]) -> str:
    """Every policy against the traditional one, and the default one against every policy."""
    comparison = compare(runs, "traditional")
    settings = {row["policy"]: row["setting"] for row in rows}
    lines = []
    for policy in sorted(comparison.policies, key=_accuracy, reverse=True):
        ours = lead(runs, "joint", policy.policy)
        lines.append(
            [
                f"`{policy.policy}`",
                f"`{settings[policy.policy]}`",
                interval(policy.accuracy, 100, 1),
                interval(policy.difference, 100, 1, sign=True),
                number(policy.energy_j.mean / 1e3),
                saving(policy),
                interval(policy.accuracy_per_kj, 100, 1),
                f"{_mean(rows, policy.policy, 'delivered'):,.0f} ({interval(policy.delivery_rate, 100, 0)} %)",
                number(policy.max_overspend_ratio),
                number(_mean(rows, policy.policy, "bound")),
                told(ours),
                str(len(policy.seeds)),
            ]
        )
    head = ["policy", "best trial", "accuracy [%]", "to `traditional` [points]", "energy [kJ]",
            "saved to its final accuracy [%]", "[%/kJ]", "uploads delivered (of sent)", "worst device [× budget]",
            "risk bound", "`joint` to it [points]", "seeds"]  # fmt: skip
    return table(head, lines)


def _mean(rows: Sequence[Row], policy: str, column: str) -> float:
    return fmean(float(row[column]) for row in rows if row["policy"] == policy)


def _accuracy(policy: PolicyReport) -> float:
    return policy.accuracy.mean if policy.accuracy else 0.0


def aims(runs: Sequence[Run]) -> str:
    """What was aimed for, and what came of it."""
    ours, top = (lead(runs, policy, "traditional") for policy in ("joint", "unlimited"))
    if ours is None or ours.difference is None:
        return ""
    lines = [
        f"- Aim: {100 * AIM_GAIN:.0f} points over `traditional` at the same energy. {met(ours.difference, AIM_GAIN)}: "
        f"{interval(ours.difference, 100, 1, sign=True)}."
    ]
    if top is not None and top.difference is not None:
        lines[0] += f" `unlimited` is {interval(top.difference, 100, 1, sign=True)} from it."
    lines.append(
        f"- Aim: {100 * AIM_SAVING:.0f} % less energy to its final accuracy. {met(ours.saving, AIM_SAVING)}: "
        f"{saving(ours)}{' %' if ours.saving else ''}."
    )
    against = {name: lead(runs, "joint", name) for name in by_policy(runs) if name not in (*UNTUNED, "joint")}
    won = [name for name, each in against.items() if each is not None and verdict(each.difference) == "ahead"]
    lines.append(
        f"- Aim: ahead of every other policy under budgets. {'Met' if len(won) == len(against) else 'Missed'}: ahead "
        f"of {len(won)} of {len(against)} in final accuracy."
    )
    return "\n".join(lines)


def met(value: Estimate | Paired | None, aim: float) -> str:
    """Whether a mean reaches what was aimed for, and its interval, too."""
    if value is None or value.mean < aim:
        return "Missed"
    return "Met" if value.half_width is not None and value.mean - value.half_width >= aim else "Met by the mean alone"


def energies(runs: Sequence[Run]) -> str:
    """Who needs less energy than the default policy, by each way to count it."""
    found = {policy.policy: policy for policy in compare(runs, "traditional").policies}
    ours = found.pop("joint")
    saved = {name: each.saving for name, each in found.items() if each.saving is not None}
    every = saved | ({} if ours.saving is None else {"joint": ours.saving})
    shown = {name: f"`{name}` ({interval(value, 100, 0, sign=True)} %)" for name, value in every.items()}
    apart = [shown[name] for name, value in every.items() if verdict(value) in ("ahead", "behind")]
    more = [shown[name] for name, value in saved.items() if ours.saving is None or value.mean > ours.saving.mean]
    rate = 0.0 if ours.accuracy_per_kj is None else ours.accuracy_per_kj.mean
    better = [
        f"`{name}` ({100 * each.accuracy_per_kj.mean:.1f})"
        for name, each in found.items()
        if each.accuracy_per_kj is not None and each.accuracy_per_kj.mean > rate
    ]
    less = [
        f"`{name}` ({number(each.energy_j.mean / 1e3)} kJ)"
        for name, each in found.items()
        if each.energy_j.mean < 0.9 * ours.energy_j.mean
    ]
    savings = f"intervals exclude 0 for {_listed(apart)}; by their means {_listed(more)} save more than `joint`"
    return (
        f"- Energy to `traditional`'s final accuracy: {savings if saved else 'none reached it on every seed'}.\n"
        f"- Accuracy per kJ is {100 * rate:.1f} % under `joint`, higher under {_listed(better)}. Less than nine tenths "
        f"of its energy went into {_listed(less)}: their accuracy is not at the same energy."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def said(runs: Sequence[Run]) -> str:
    """Where the default policy wins and where it does not, in words."""
    others = [name for name in by_policy(runs) if name != "joint"]
    found: dict[str, list[str]] = {"ahead": [], "not told apart": [], "behind": []}
    for name in others:
        ours = lead(runs, "joint", name)
        if ours is not None and verdict(ours.difference) in found:
            found[verdict(ours.difference)].append(f"`{name}` ({interval(ours.difference, 100, 1, sign=True)})")
    words = {
        "ahead": "In final accuracy `joint` is ahead of",
        "not told apart": "It cannot be told apart from",
        "behind": "It is behind",
    }
    return "\n".join(f"- {words[key]} {', '.join(names)}." for key, names in found.items() if names)


def devices(rows: Sequence[Row]) -> str:
    """What the runs were trained on."""
    names = {"cpu": "on a CPU", "cuda": "on a GPU in stacks of 20, which changes rows by rounding alone"}
    count = {name: sum(row["device"] == name for row in rows) for name in names}
    return f"- Trained: {', '.join(f'{n} {names[name]}' for name, n in count.items() if n)} (runs)."


def bounds(rows: Sequence[Row]) -> str:
    """Whose risk bound is lower than that of the default policy, which minimises it under the budgets."""
    mean = {name: _mean(rows, name, "bound") for name in dict.fromkeys(row["policy"] for row in rows)}
    ours = mean.pop("joint")
    below = [f"`{name}` ({number(value)})" for name, value in sorted(mean.items(), key=_second) if value < ours]
    rest = f"lower under {', '.join(below)}, higher under the others" if below else "higher under all others"
    return f"- The risk bound is {number(ours)} under `joint`, {rest}."


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def ablation_table(runs: Sequence[Run]) -> str:
    """What the default policy loses without each of its parts."""
    lines = []
    for name, part in ABLATIONS.items():
        ours = lead(runs, "joint", name)
        if ours is not None:
            lines.append([part, f"`{name}`", told(ours), saving(ours)])
    return table(["part", "without it", "`joint` to it [points]", "`joint` saves to its final accuracy [%]"], lines)


def tuning_table(tried: Sequence[Row]) -> str:
    """Accuracy of what was tried for each policy, a line for each value of its own dial; the chosen one in bold."""
    best = best_settings(tried)
    found = {(row["policy"], row["setting"]): 100 * float(row["accuracy"]) for row in tried}
    lines: dict[tuple[str, str], list[str]] = {}
    for policy, settings in TRIALS.items():
        for setting in settings:
            *dial, rate = setting.split()
            line = lines.setdefault((policy, " ".join(dial)), ["–"] * len(RATES))
            accuracy = found.get((policy, setting))
            value = "–" if accuracy is None else f"{accuracy:.1f}"
            place = RATES.index(rate.removeprefix("learning.server_rate="))
            line[place] = f"**{value}**" if best.get(policy) == setting else value
    head = ["policy", "its own dial", *(f"server rate {rate}" for rate in RATES)]
    return table(head, [[f"`{name}`", f"`{dial}`" if dial else "", *line] for (name, dial), line in lines.items()])


def page(folder: Path) -> str:
    """The whole page."""
    compared, changed, tried = (read(folder / f"{name}.csv") for name in ("compare", "sensitivity", "tune"))
    parts = [HEAD]
    for task, name in (("sst2", "SST-2"), ("qnli", "QNLI")):
        rows = whole_seeds([row for row in compared if row["task"] == task])
        runs = runs_of(rows)
        if not {*TRIALS, *UNTUNED} <= {row["policy"] for row in rows}:
            parts.append(f"## {name}\n\nNot run yet under all policies.\n")
            continue
        parts.append(f"## {name}\n\n![Accuracy against energy](pictures/results-{task}.png)\n")
        words = (aims(runs), said(runs), energies(runs), bounds(rows), devices(rows))
        parts.append(policies_table(runs, rows) + "\n\n" + "\n".join(words) + "\n")
        parts.append(f"### What each part is worth on {name}\n\n{ablation_table(runs)}\n")
    if any(row["policy"] == "joint" for row in changed):
        parts.append(changed_part(changed))
    if tried:
        parts += [TUNED, tuning_table(tried) + "\n"]
    return "\n".join(parts)


def draw(policies: Mapping[str, Sequence[Run]], stem: Path) -> None:
    """Accuracy per round and against energy."""

    def content(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        draw_curves(left, policies, against_energy=False)
        draw_curves(right, policies, against_energy=True)

    save((10.5, 4.0), content, stem)


def main() -> int:
    """Write the page and its pictures, or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=RESULTS, help="folder of rows")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is stale")
    given = parser.parse_args()
    text = page(given.rows)
    if given.check:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    write_atomic(PAGE, text.encode())
    for task in ("sst2", "qnli"):
        runs = runs_of(whole_seeds([row for row in read(given.rows / "compare.csv") if row["task"] == task]))
        groups = {name: [run for run in runs if run.summary["policy"] == name] for name in DRAWN}
        if groups["joint"]:
            draw({name: each for name, each in groups.items() if each}, PICTURES / f"results-{task}")
    changed = read(given.rows / "sensitivity.csv")
    if any(row["policy"] == "joint" for row in changed):
        draw_changed(changed, PICTURES / "results-settings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
