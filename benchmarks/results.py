"""docs/results.md and its pictures from the rows of `benchmarks.study_policies`, every figure in it computed here.

python -m benchmarks.results            # writes them
python -m benchmarks.results --check    # exit code 1 if the page is not what the rows say
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from airtune.compare import PolicyReport, compare
from airtune.drawing import save
from airtune.files import write_atomic
from airtune.paired import Paired
from airtune.plots import draw_curves
from airtune.report import Run
from airtune.settings import dump, read_config
from airtune.tables import interval, number, reached
from benchmarks.cells import Row, read
from benchmarks.study_policies import POINTS, RESULTS, SENSITIVE, TRIALS, TUNE_ROUNDS, TUNE_SEED, best_settings

PAGE = Path("docs/results.md")
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
[policies.md](policies.md). Both presets were fixed before the comparison. Accuracy is that of the last adapter on the
whole dev set, ± are 95 % t-intervals over seeds, differences are paired by seed; "ahead" means that the interval of
one difference excludes 0, not corrected for how many there are, and "2 of 3" on how many seeds it is positive. `oracle`
knows all channels beforehand and `unlimited` knows neither failures nor budgets: they are bounds, not competitors. The
risk bound is Theorem 1 with the prior's constants, an estimate on a transformer: it is what `joint` minimises under the
budgets. Policies run as tuned, so two of them may differ in V or in the server's rate, too (column "best trial").
"""
CHANGED = f"""## What the setting changes

SST-2, {TUNE_ROUNDS} rounds, one setting changed at a time, every policy as tuned. Switching helps where the column to
`no-switching` is positive; `learning.method=sum` is (8), the update that the bound is proved for.
"""
TUNED = f"""## How the policies were tuned

Four trials each, two values of a dial of its own at two server rates, or four server rates: SST-2, {TUNE_ROUNDS}
rounds, seed {TUNE_SEED}, which is reported nowhere else. The best (bold) served all other runs, QNLI's too.
"""


def runs_of(rows: Sequence[Row]) -> list[Run]:
    """Rows as runs that `compare` takes."""
    return [_run(row) for row in rows]


def _run(row: Row) -> Run:
    energies = {name: float(row[name]) for name in ("energy_compute_j", "energy_transmit_j", "budget_j")}
    scheduled = float(row["scheduled"])
    summary: dict[str, Any] = {
        "task": row["task"],
        "model": "minilm-l6",
        "policy": row["policy"],
        "seed": int(row["seed"]),
        "accuracy": float(row["accuracy"]),
        **energies,
        "energy_j": energies["energy_compute_j"] + energies["energy_transmit_j"],
        "delivery_rate": float(row["delivered"]) / scheduled if scheduled else None,
        "max_overspend_ratio": float(row["max_overspend_ratio"]),
        "wall_s": float(row["wall_s"]),
    }
    deadline_s = dump(read_config(row["task"]))["world"]["deadline_s"]
    if row["point"].startswith("world.deadline_s="):
        deadline_s = float(row["point"].partition("=")[2])
    return Run(Path(row["policy"]), summary, list(_rounds(row["path"])), {"world": {"deadline_s": deadline_s}}, {})


def _rounds(path: str) -> Iterator[dict[str, Any]]:
    """A row for every round; what was spent between two evaluations is spread evenly over the rounds between."""
    t, spent = 0, 0.0
    for point in path.split():
        ended, accuracy, energy = point.split(":")
        share = (float(energy) - spent) / (int(ended) - t)
        for each in range(t, int(ended)):
            known = float(accuracy) if each + 1 == int(ended) else None
            yield {"t": each, "accuracy": known, "energy_compute_j": share, "energy_transmit_j": 0.0}
        t, spent = int(ended), float(energy)


def whole_seeds(rows: Sequence[Row]) -> list[Row]:
    """Rows of the seeds that every policy has run."""
    ran = {
        policy: {row["seed"] for row in rows if row["policy"] == policy} for policy in {row["policy"] for row in rows}
    }
    return [row for row in rows if all(row["seed"] in seeds for seeds in ran.values())]


def lead(runs: Sequence[Run], policy: str, over: str) -> PolicyReport | None:
    """`policy` against another on the seeds that both have; None without any."""
    seeds = [{run.summary["seed"] for run in runs if run.summary["policy"] == each} for each in (policy, over)]
    both = seeds[0] & seeds[1]
    pair = [run for run in runs if run.summary["policy"] in (policy, over) and run.summary["seed"] in both]
    return compare(pair, over).policies[-1] if both and policy != over else None


def verdict(difference: Paired | None) -> str:
    """Whether a paired difference is told from nothing by its t-interval."""
    if difference is None or difference.half_width is None:
        return "–"
    if abs(difference.mean) <= difference.half_width:
        return "not told apart"
    return "ahead" if difference.mean > 0 else "behind"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
                _saving(policy),
                interval(policy.accuracy_per_kj, 100, 1),
                interval(policy.delivery_rate, 100, 0),
                number(policy.max_overspend_ratio),
                number(fmean(float(row["bound"]) for row in rows if row["policy"] == policy.policy)),
                _told(ours),
                str(len(policy.seeds)),
            ]
        )
    head = ["policy", "best trial", "accuracy [%]", "to `traditional` [points]", "energy [kJ]",
            "saved to its final accuracy [%]", "[%/kJ]", "delivered of sent [%]", "worst device [× budget]",
            "risk bound", "`joint` to it [points]", "seeds"]  # fmt: skip
    return table(head, lines)


def _saving(policy: PolicyReport) -> str:
    if policy.difference is None:  # the reference itself
        return "–"
    return interval(policy.saving, 100, 0, sign=True) if policy.saving else reached(policy, None)


def _told(ours: PolicyReport | None) -> str:
    """The paired difference, what it tells, and on how many seeds it is above nothing."""
    difference = None if ours is None else ours.difference
    if difference is None:
        return "–"
    return f"{interval(difference, 100, 1, sign=True)}, {verdict(difference)}, {difference.above} of {difference.n}"


def _accuracy(policy: PolicyReport) -> float:
    return policy.accuracy.mean if policy.accuracy else 0.0


def aims(runs: Sequence[Run]) -> str:
    """What was aimed for, what came of it, and what there was to win."""
    ours, top = (lead(runs, policy, "traditional") for policy in ("joint", "unlimited"))
    if ours is None or ours.difference is None:
        return ""
    gain = ours.difference.mean
    lines = [
        f"- Aim: {100 * AIM_GAIN:.0f} points over `traditional` at the same energy. {_met(gain >= AIM_GAIN)}: "
        f"{interval(ours.difference, 100, 1, sign=True)}."
    ]
    if top is not None and top.difference is not None:
        lines[0] += (
            f" `unlimited`, which knows neither failures nor budgets, is {interval(top.difference, 100, 1, sign=True)} "
            "from it: about so much can be won here by delivering more."
        )
    saved = ours.saving is not None and ours.saving.mean >= AIM_SAVING
    told = f"{interval(ours.saving, 100, 0, sign=True)} %" if ours.saving else reached(ours, None)
    lines.append(f"- Aim: {100 * AIM_SAVING:.0f} % less energy to its final accuracy. {_met(saved)}: {told}.")
    return "\n".join(lines)


def _met(is_met: bool) -> str:
    return "Met" if is_met else "Missed"


def said(runs: Sequence[Run]) -> str:
    """Where the default policy wins and where it does not, in words."""
    others = [name for name in dict.fromkeys(str(run.summary["policy"]) for run in runs) if name != "joint"]
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


def bounds(rows: Sequence[Row]) -> str:
    """Whose risk bound is lower than that of the default policy, which minimises it under the budgets."""
    mean = {name: fmean(float(row["bound"]) for row in rows if row["policy"] == name) for name in _named(rows)}
    ours = mean.pop("joint")
    below = [f"`{name}` ({number(value)})" for name, value in sorted(mean.items(), key=_second) if value < ours]
    told = f"lower under {', '.join(below)}, higher under the others" if below else "higher under all others"
    return f"- The risk bound is {number(ours)} under `joint`, {told}."


def _second(pair: tuple[str, float]) -> float:
    return pair[1]


def _named(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in rows))


def ablation_table(runs: Sequence[Run]) -> str:
    """What the default policy loses without each of its parts."""
    lines = []
    for name, part in ABLATIONS.items():
        ours = lead(runs, "joint", name)
        if ours is not None:
            lines.append([part, f"`{name}`", _told(ours), _saving(ours)])
    return table(["part", "without it", "`joint` to it [points]", "`joint` saves to its final accuracy [%]"], lines)


def sensitivity_table(rows: Sequence[Row]) -> str:
    """One line for each setting that was changed."""
    lines = []
    for point in ["", *(f"{key}={value}" for key, values in POINTS.items() for value in values)]:
        runs = runs_of([row for row in rows if row["point"] == point])
        if not any(run.summary["policy"] == "joint" for run in runs):
            continue
        found = {policy.policy: policy for policy in compare(runs, "joint").policies}
        gains = [lead(runs, "joint", name) for name in ("traditional", "no-switching")]
        cells = [f"`{point}`" if point else "as it ships"]
        cells += [interval(found[name].accuracy, 100, 1) if name in found else "–" for name in SENSITIVE]
        cells += ["–" if gain is None else interval(gain.difference, 100, 1, sign=True) for gain in gains]
        cells += ["–" if gains[0] is None or gains[0].saving is None else interval(gains[0].saving, 100, 0, sign=True)]
        cells += [
            interval(found[name].delivery_rate, 100, 0) if name in found else "–" for name in ("joint", "traditional")
        ]
        lines.append([*cells, str(len(found["joint"].seeds))])
    head = ["setting", *(f"`{name}` [%]" for name in SENSITIVE), "`joint` to `traditional`", "to `no-switching`",
            "energy saved [%]", "`joint` delivers [%]", "`traditional`", "seeds"]  # fmt: skip
    return table(head, lines)


def tuning_table(tried: Sequence[Row]) -> str:
    """What was tried for each policy; the chosen one in bold."""
    best = best_settings(tried)
    found = {(row["policy"], row["setting"]): 100 * float(row["accuracy"]) for row in tried}
    lines = []
    for policy, settings in TRIALS.items():
        cells = []
        for setting in settings:
            accuracy = found.get((policy, setting))
            value = "–" if accuracy is None else f"{accuracy:.1f}"
            cells.append(f"{setting}: " + (f"**{value}**" if best.get(policy) == setting else value))
        lines.append([f"`{policy}`", *cells])
    return table(["policy", "", "", "", ""], lines)


def page(folder: Path) -> str:
    """The whole page."""
    compared, changed, tried = (read(folder / f"{name}.csv") for name in ("compare", "sensitivity", "tune"))
    parts = [HEAD]
    for task, name in (("sst2", "SST-2"), ("qnli", "QNLI")):
        rows = whole_seeds([row for row in compared if row["task"] == task])
        runs = runs_of(rows)
        if not {"joint", "traditional"} <= {row["policy"] for row in rows}:
            parts.append(f"## {name}\n\nNot run yet under all policies.\n")
            continue
        parts.append(f"## {name}\n\n![Accuracy against energy](pictures/results-{task}.png)\n")
        parts.append(policies_table(runs, rows) + "\n\n" + aims(runs) + "\n" + said(runs) + "\n" + bounds(rows) + "\n")
        parts.append(f"### What each part is worth on {name}\n\n{ablation_table(runs)}\n")
    if any(row["policy"] == "joint" for row in changed):
        parts += [CHANGED, sensitivity_table(changed) + "\n"]
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
            draw({name: each for name, each in groups.items() if each}, PAGE.parent / "pictures" / f"results-{task}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
