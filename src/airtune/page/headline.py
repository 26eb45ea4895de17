"""The numbers on top: a tile per policy, the table of policies that `airtune show` prints, and a table of the runs."""

from collections.abc import Mapping, Sequence
from html import escape

from airtune.compare import PolicyReport
from airtune.page.charts import style_of
from airtune.page.data import Member, Scenario
from airtune.report import KindReport
from airtune.tables import NONE, facts, has_target, interval, number, percent

SIDE_BY_SIDE = 6
"""Policies that a table has room for as columns."""
BRIEF = (
    "Accuracy [%]", "  difference [points]", "  ahead on seeds", "Energy [J]", "  worst device [× budget]",
    "Accuracy per kJ [%/kJ]", "To the target [J]", "  saving, paired [%]", "Uploads delivered [%]",
)  # fmt: skip
"""What a row of a policy has, of `tables.facts`."""


def tiles(scenario: Scenario) -> str:
    """Accuracy, what it cost and how it differs from the reference, a tile per policy that has ended."""
    if scenario.comparison is None:
        return ""
    numbers = {name: n for n, name in enumerate(scenario.policies)}
    parts = [_tile(each, numbers[each.policy]) for each in scenario.comparison.policies]
    return f'<div class="tiles">{"".join(parts)}</div>'


def _tile(policy: PolicyReport, colour: int) -> str:
    accuracy = interval(policy.accuracy, 100, 1).partition(" ± ")
    spread = f"± {accuracy[2]} %" if accuracy[2] else "%"
    against = (
        f"{interval(policy.difference, 100, 1, sign=True)} points to the reference"
        if policy.difference is not None
        else f"{len(policy.seeds)} seed{'s' if len(policy.seeds) > 1 else ''}"
    )
    cost = f"{interval(policy.energy_j)} J · {interval(policy.delivery_rate, 100, 1)} % delivered"
    return (
        f'<div class="tile"><span class="who {style_of(colour)}"><i></i></span>'
        f'<span class="who">{escape(policy.policy)}</span>'
        f"<b>{accuracy[0]} <small>{spread}</small></b><div>{escape(cost)}</div><div>{escape(against)}</div></div>"
    )


def policy_table(scenario: Scenario) -> str:
    """Policies as columns, the reference first; as blocks on a narrow screen. Empty if no run has ended.

    Of more policies than fit side by side, a row each with the figures that matter, and all figures to be unfolded.
    """
    if scenario.comparison is None:
        return ""
    policies = scenario.comparison.policies
    target_too = has_target(scenario.comparison)
    columns = {policy.policy: facts(policy, target_too=target_too) for policy in policies}
    labels = [
        label for label in next(iter(columns.values())) if any(column[label] != NONE for column in columns.values())
    ]
    if len(policies) <= SIDE_BY_SIDE:
        return _as_columns(columns, labels, "stack" if len(policies) > 2 else "few")
    brief = [label for label in BRIEF if label in labels]
    names = [label.strip() for label in brief]
    rows = [_row(name, [column[label] for label in brief], names) for name, column in columns.items()]
    whole = f'<div class="sideways">{_as_columns(columns, labels, "few")}</div>'
    return (
        _table(("Policy", *map(_upper, names)), rows, "stack brief")
        + f"<details><summary>All figures</summary>{whole}</details>"
    )


def _as_columns(columns: Mapping[str, Mapping[str, str]], labels: Sequence[str], style: str) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    rows = "".join(
        f'<tr><th class="sub{int(label.startswith(" "))}">{escape(label.strip())}</th>'
        + "".join(_cell(column[label], name) for name, column in columns.items())
        + "</tr>"
        for label in labels
    )
    return f'<table class="{style}"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cell(text: str, label: str) -> str:
    empty = ' class="no"' if text in (NONE, "not reached") else ""
    return f'<td data-label="{escape(label)}"{empty}>{escape(text)}</td>'


def _row(title: str, values: Sequence[str], names: Sequence[str]) -> str:
    cells = "".join(_cell(value, name) for value, name in zip(values, names, strict=True))
    return f"<tr><th>{escape(title)}</th>{cells}</tr>"


def run_table(members: Sequence[Member]) -> str:
    """A row per run."""
    names = ("Rounds", "Accuracy", "Energy", "Of the budget", "Delivered", "Worst device", "Fairness", "Wall time")
    names = (*names, "ε") if any("epsilon" in member.report.summary for member in members) else names
    rows: list[str] = []
    for member in members:
        s = member.report.summary
        planned = member.run.config.get("rounds")
        rounds = f"{s['rounds']}" if member.report.finished else f"{s['rounds']} of {planned or '?'}, not ended"
        share = s["energy_j"] / s["budget_j"] if s["budget_j"] > 0 else None
        values = (
            rounds, percent(s["accuracy"]), number(s["energy_j"], "J", 4), percent(share, 0),
            percent(s["delivery_rate"]), number(s["max_overspend_ratio"], "×"), number(member.report.jain),
            number(s["wall_s"], "s"), number(s.get("epsilon")),
        )  # fmt: skip
        rows.append(_row(f"{s['policy']}, seed {s['seed']}", values[: len(names)], names))
    return _table(("Run", *names), rows)


def kind_table(kinds: Sequence[KindReport]) -> str:
    """A row per class of devices."""
    names = ("Devices", "Sent", "Delivered", "Mean module", "J each")
    rows: list[str] = []
    for kind in kinds:
        delivered = percent(kind.delivered / kind.scheduled if kind.scheduled else None)
        values = (
            str(kind.devices), str(kind.scheduled), delivered, number(kind.module_mean), number(kind.energy_j),
        )  # fmt: skip
        rows.append(_row(kind.kind, values, names))
    return _table(("Class", *names), rows, "few")


def _table(names: Sequence[str], rows: Sequence[str], style: str = "stack") -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f'<table class="{style}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
