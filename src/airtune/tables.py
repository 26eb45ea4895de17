"""Reports as tables for the terminal, and comparisons as CSV and JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from airtune.compare import Comparison, PolicyReport
from airtune.files import csv_bytes, told, write_atomic, write_json
from airtune.paired import Estimate, Paired
from airtune.report import KindReport, RunReport

NONE = "–"
"""Shown where there is no number."""


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A quantity with so many significant digits, thousands grouped; a dash for None and NaN.

    >>> number(12345.6, "J"), number(0.01234, "s"), number(None), number(7.0)
    ('12,346 J', '0.0123 s', '–', '7.00')
    """
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return f"{'−' if value < 0 else ''}∞ {unit}".rstrip()
    return f"{value:,.{decimals(value, digits)}f} {unit}".rstrip()


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that show a finite value to so many significant digits, at most 9.

    >>> decimals(0.01234), decimals(1234.0), decimals(0.0)
    (4, 0, 2)
    """
    before = math.floor(math.log10(abs(value))) + 1 if value else 1
    return min(max(digits - before, 0), 9)


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent.

    >>> percent(0.8125), percent(None)
    ('81.2 %', '–')
    """
    return NONE if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def interval(value: Estimate | Paired | None, scale: float = 1.0, digits: int | None = None, sign: bool = False) -> str:
    """A mean, with ± half the width of its interval where there is one, to as many decimals.

    digits: decimals; None for three significant digits of the mean.

    >>> interval(Estimate(0.8, 0.012, 3), scale=100, digits=1), interval(Estimate(0.8, None, 1), 100, 1, sign=True)
    ('80.0 ± 1.2', '+80.0')
    """
    if value is None:
        return NONE
    mean = scale * value.mean
    places = decimals(mean) if digits is None else digits
    spread = "" if value.half_width is None else f" ± {scale * value.half_width:,.{places}f}"
    return f"{mean:{'+' if sign else ''},.{places}f}{spread}"


def last_name(model: str) -> str:
    """A model's name, of a folder the last part.

    >>> last_name("/models/bert-base"), last_name("google/bert")
    ('bert-base', 'google/bert')
    """
    return Path(model).name if Path(model).is_absolute() else model


def render_run(report: RunReport) -> RenderableType:
    """One run as a table of totals and one of device classes."""
    s = report.summary
    heading = Text.assemble((f"{s['policy']} on {s['task']}", "bold"), f"   {last_name(s['model'])}, seed {s['seed']}")
    if not report.finished:
        heading.append(f"   not ended, {s['rounds']} rounds so far", "yellow")
    totals = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    totals.add_column(style="dim")
    totals.add_column(justify="right")
    totals.add_column(style="dim")
    share = s["energy_j"] / s["budget_j"] if s["budget_j"] > 0 else None
    for row in (
        ("Accuracy", percent(s["accuracy"]), f"best {percent(report.best_accuracy)}"),
        ("Energy", number(s["energy_j"], "J", 4), f"{percent(share)} of the budget, {number(s['budget_j'], 'J', 4)}"),
        ("  computing", number(s["energy_compute_j"], "J", 4), ""),
        ("  transmitting", number(s["energy_transmit_j"], "J", 4), ""),
        ("Worst device", number(s["max_overspend_ratio"], "×"), "its energy over its budget"),
        ("Uploads delivered", percent(s["delivery_rate"]), "of those scheduled"),
        ("Fairness", number(report.jain), "Jain's index of delivered uploads"),
        ("Modules used", bars(s["module_histogram"]), _counts(s["module_histogram"])),
        ("Tokens", number(s["tokens"], digits=1), "trained on"),
        ("Risk bound", number(s["bound"]), "estimated, Theorem 1"),
        ("  tighter", number(s.get("bound_tight")), "estimated, Theorem 2: unbiased gradients, independent devices"),
        ("Privacy", *_privacy(report)),
        ("Certified gap", percent(report.gap_median, 3), "median of (P1)"),
        ("Deciding", number(report.decide_median_s, "s"), "median per round"),
        ("Wall time", number(s["wall_s"], "s"), f"{s['rounds']} rounds"),
    ):
        if row[1] != NONE:
            totals.add_row(*row)
    return Group(heading, "", totals, "", render_kinds(report.kinds))


def _privacy(report: RunReport) -> tuple[str, str]:
    """ε of the worst device, and for what; a dash without differential privacy."""
    epsilon, chosen = report.summary.get("epsilon"), report.privacy
    if epsilon is None:
        return NONE, ""
    drawn = "; noise from the run's seed" if chosen["noise"] == "seeded" else ""
    return f"ε {number(epsilon)}", f"at δ {chosen['delta']:g}, {chosen['mechanism']}, worst device{drawn}"


def render_kinds(kinds: Sequence[KindReport]) -> Table:
    """Device classes as a table."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("Class")
    for name in ("Devices", "Scheduled", "Delivered", "Mean module", "J per device"):
        table.add_column(name, justify="right")
    for kind in kinds:
        delivered = percent(kind.delivered / kind.scheduled if kind.scheduled else None)
        row = (str(kind.devices), str(kind.scheduled), delivered, number(kind.module_mean), number(kind.energy_j))
        table.add_row(Text(kind.kind), *row)
    return table


def render_comparison(comparison: Comparison, width: int = 80) -> RenderableType:
    """Policies side by side as columns, the reference first, in as many tables as the width [characters] asks for."""
    heading = Text.assemble(
        (f"Policies on {comparison.task}", "bold"), f"   {last_name(comparison.model)}, against {comparison.reference}"
    )
    parts: list[RenderableType] = [heading, ""]
    step = max((width - 32) // 16, 1)
    for first in range(0, len(comparison.policies), step):
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("", style="dim", no_wrap=True)
        shown = comparison.policies[first : first + step]
        for policy in shown:
            table.add_column(Text(policy.policy), justify="right", no_wrap=True)
        columns = [facts(policy, target_too=has_target(comparison)) for policy in shown]
        for label in columns[0]:
            table.add_row(Text(label), *(column[label] for column in columns))
        parts += [table, ""]
    return Group(*parts, Text(note_of([comparison]), "dim"))


PAIRS = "Differences and savings are paired by seed. "
NOTE = (
    "Energy and time to the target are those until its first crossing on the dev subset, a round as long as its "
    "deadline; the target is {target}."
)


def has_target(comparison: Comparison) -> bool:
    """Whether there is an accuracy to be reached: one that was asked for, or the reference's for another policy."""
    names = [policy.policy for policy in comparison.policies]
    return comparison.target is not None or (len(names) > 1 and comparison.reference in names)


def note_of(comparisons: Sequence[Comparison]) -> str:
    """What the intervals and the target are; of one policy by itself, only what its column has."""
    target = comparisons[0].target
    goal = "the reference's last accuracy" if target is None else percent(target)
    single = all(len(policy.seeds) == 1 for comparison in comparisons for policy in comparison.policies)
    parts = ["One seed: no intervals. " if single else "± is a 95 % t-interval over seeds. "]
    alone = any(one.reference not in [policy.policy for policy in one.policies] for one in comparisons)
    parts += [PAIRS] if any(len(one.policies) > 1 for one in comparisons) else []
    parts += [NOTE.format(target=goal)] if any(map(has_target, comparisons)) else []
    parts += [f" Where no run of {comparisons[0].reference} has ended, nothing is set against it."] if alone else []
    return "".join(parts).strip()


def render_sweep(compared: Sequence[tuple[str, Comparison]]) -> RenderableType:
    """Points of a sweep, by name, as one table with a row per point and policy, the reference first."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("Point", "Policy"):
        table.add_column(name)
    shown = (
        "Seeds",
        "Accuracy [%]",
        "  difference [points]",
        "Energy [J]",
        "To the target [J]",
        "Uploads delivered [%]",
    )
    for name in shown:
        table.add_column(name.strip(), justify="right")
    for point, comparison in compared:
        for row, policy in enumerate(comparison.policies):
            values = facts(policy)
            table.add_row(Text("" if row else point), Text(policy.policy), *(values[name] for name in shown))
    return Group(table, "", Text(note_of([comparison for _, comparison in compared]), "dim"))


def facts(policy: PolicyReport, *, target_too: bool = True) -> dict[str, str]:
    """One policy's column: what, with its unit → value. Means are over seeds, the worst device is of all seeds."""
    share = policy.energy_j.mean / policy.budget_j if policy.budget_j > 0 else None
    to_target = {
        "To the target [J]": reached(policy, policy.energy_to_target_j),
        "To the target [s]": reached(policy, policy.time_to_target_s),
        "  saving, paired [%]": interval(policy.saving, 100, 1, sign=True),
    }
    return {
        "Seeds": str(len(policy.seeds)),
        "Accuracy [%]": interval(policy.accuracy, 100, 1),
        "  difference [points]": interval(policy.difference, 100, 1, sign=True),
        "  bootstrap 95 % [points]": between(policy.difference),
        "  ahead on seeds": NONE
        if policy.difference is None
        else f"{policy.difference.above} of {policy.difference.n}",
        "Energy [J]": interval(policy.energy_j),
        "  computing [J]": number(policy.energy_compute_j),
        "  transmitting [J]": number(policy.energy_transmit_j),
        "  of the budget [%]": NONE if share is None else f"{100 * share:.0f}",
        "  worst device [× budget]": number(policy.max_overspend_ratio),
        "Accuracy per kJ [%/kJ]": interval(policy.accuracy_per_kj, 100),
        **(to_target if target_too else {}),
        "Uploads delivered [%]": interval(policy.delivery_rate, 100, 1),
        "Wall time [s]": number(policy.wall_s),
    }


def between(difference: Paired | None) -> str:
    """The bootstrap interval of a paired difference in points; a dash where there is none.

    >>> between(Paired(0.01, 0.02, 3, -0.002, 0.021, 2))
    '-0.2 … +2.1'
    """
    if difference is None or difference.low is None or difference.high is None:
        return NONE
    return f"{100 * difference.low:+.1f} … {100 * difference.high:+.1f}"


def reached(policy: PolicyReport, cost: Estimate | None) -> str:
    """What reaching the target cost, or that it was not reached and by how many seeds it was."""
    if cost is not None:
        return interval(cost)
    if policy.paired == 0:
        return NONE
    return "not reached" if policy.reached == 0 else f"by {policy.reached} of {policy.paired}"


def write_comparison(comparison: Comparison, out: Path) -> tuple[Path, Path]:
    """Write compare.csv (a row per policy) and compare.json into a folder, which is made. Raises AirtuneError."""
    with told(out, "choose a folder that can be written"):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "compare.csv", csv_bytes([flat(policy) for policy in comparison.policies]))
        write_json(out / "compare.json", asdict(comparison))
    return out / "compare.csv", out / "compare.json"


def flat(policy: PolicyReport) -> dict[str, Any]:
    """One policy as CSV columns; what it is on each seed is left to compare.json."""
    record = columns(policy, _ESTIMATES)
    del record["per_seed"]
    paired = policy.difference
    ends = (None, None, None) if paired is None else (paired.low, paired.high, paired.above)
    record |= dict(zip(("difference_low", "difference_high", "difference_above"), ends, strict=True))
    return record | {"seeds": " ".join(map(str, policy.seeds))}


def columns(row: Any, estimates: Sequence[str]) -> dict[str, Any]:
    """A dataclass as CSV columns: an estimate becomes NAME and NAME_ci95 (half width), None an empty cell."""
    record: dict[str, Any] = {}
    for field in fields(row):
        name, value = field.name, getattr(row, field.name)
        if name in estimates:
            record[name] = None if value is None else value.mean
            record[f"{name}_ci95"] = None if value is None else value.half_width
        else:
            record[name] = value
    return record


_ESTIMATES = (
    "accuracy", "difference", "energy_j", "accuracy_per_kj", "energy_to_target_j", "time_to_target_s", "saving",
    "delivery_rate",
)  # fmt: skip


def bars(counts: Sequence[int]) -> str:
    """Counts of modules 0…M as small bars."""
    top = max(counts, default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[math.ceil(8 * count / top) if top else 0] for count in counts)


def _counts(counts: Sequence[int]) -> str:
    total = sum(counts) or 1
    return "  ".join(f"{'idle' if m == 0 else m} {100 * count / total:.0f} %" for m, count in enumerate(counts))
