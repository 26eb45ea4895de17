"""Runs read back for the page: grouped into scenarios, in them by policy, seeds together."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from airtune.compare import Comparison, by_policy, compare, refuse_unpaired
from airtune.record import RunFolder
from airtune.report import Rows, Run, RunReport, report_rows
from airtune.settings import flat, usual_reference
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One run on the page."""

    run: Run
    """Its summary is that of the rounds so far if it has not ended."""
    devices: Rows
    """`rows.DeviceRow`s; empty where they were not kept."""
    report: RunReport

    @property
    def name(self) -> str:
        """What a run is called in notes: its folder's name."""
        return self.run.path.resolve().name


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """Runs that differ in policy and seed alone."""

    title: str
    policies: dict[str, list[Member]]
    """Policy → runs by seed; the reference comes first."""
    comparison: Comparison | None
    """Of the runs that have ended; None if none has."""
    notes: tuple[str, ...]
    """What is not shown, and why."""

    @property
    def members(self) -> list[Member]:
        """All runs, policy by policy."""
        return [member for members in self.policies.values() for member in members]

    def drawn(self, policy: str) -> list[Member]:
        """The runs that a policy's means and curves are made of: those that have ended, or all if none has."""
        members = self.policies[policy]
        return [member for member in members if member.report.finished] or members


def gather(
    paths: Sequence[Path], reference: str | None = None, target: float | None = None
) -> tuple[list[Scenario], list[str]]:
    """Scenarios in order of appearance, and a line for every run that has nothing to show.

    Args:
        paths: run folders.
        reference: policy that the others are compared with; None for the usual one.
        target: accuracy on the dev subset whose energy and time are told; None for the reference's last.

    Raises:
        AirtuneError: no run folder, a policy with a seed twice, or no run of the reference.

    """
    groups: list[list[Member]] = []
    empty: list[str] = []
    for path in paths:
        member = _member(path)
        if member is None:
            empty.append(f"{path.resolve().name} has no finished round yet and is left out.")
            continue
        alike = (group for group in groups if _dials(group[0].run) == _dials(member.run))
        home = next((group for group in alike if _same(group[0].run, member.run)), None)
        groups.append([member]) if home is None else home.append(member)
    merged = _merged(groups)
    titles = _titles([group[0].run for group in merged])
    return [_scenario(title, group, reference, target) for title, group in zip(titles, merged, strict=True)], empty


def _member(path: Path) -> Member | None:
    folder = RunFolder.open(path)
    rounds = folder.read_rounds()
    if not rounds:
        return None
    devices = folder.read_devices()
    report = report_rows(folder, rounds, devices)
    run = Run(path, report.summary, rounds, folder.read_config(), folder.read_environment())
    return Member(run, devices, report)


def _same(one: Run, other: Run) -> bool:
    with contextlib.suppress(AirtuneError):
        refuse_unpaired(one, other)
        return True
    return False


def _dials(run: Run) -> dict[str, object]:
    """Settings of the policy besides which one it is."""
    return {key: value for key, value in run.config["policy"].items() if key not in ("name", "module", "file")}


def _merged(groups: Sequence[list[Member]]) -> list[list[Member]]:
    """Scenarios: policies with dials of their own go together, but no policy twice, as at the points of a sweep."""
    merged: list[list[Member]] = []
    for group in groups:
        own = _policies(group)
        apart = (other for other in merged if own.isdisjoint(_policies(other)))
        home = next((other for other in apart if _same(other[0].run, group[0].run)), None)
        merged.append(group) if home is None else home.extend(group)
    return merged


def _policies(group: Sequence[Member]) -> set[str]:
    return {str(member.run.summary["policy"]) for member in group}


def _scenario(title: str, members: Sequence[Member], reference: str | None, target: float | None) -> Scenario:
    groups = by_policy([member.run for member in members])  # refuses a seed given twice
    reference = reference if reference is not None else usual_reference(list(groups))
    if reference not in groups:
        raise AirtuneError(f"no run of the reference policy {reference} on {title}; there are {', '.join(groups)}")
    of_run = {member.run.path: member for member in members}
    names = [reference, *(name for name in groups if name != reference)]
    policies = {name: [of_run[run.path] for run in groups[name].values()] for name in names}
    ended = [member.run for member in members if member.report.finished]
    notes = [
        f"{member.name} has not ended, {len(member.run.rounds)} of {member.run.config.get('rounds', '?')} rounds so "
        "far: it is left out of the table of policies, and drawn only where no other run of its policy has ended."
        for member in members
        if not member.report.finished
    ]
    comparison = compare(ended, reference, target, partial=True) if ended else None
    return Scenario(title, policies, comparison, tuple(notes))


def _titles(firsts: Sequence[Run]) -> list[str]:
    """A name for each scenario: its task, and the settings in which the scenarios differ."""
    flats = [flat(run.config) for run in firsts]
    shared = (
        "policy.name",
        "policy.module",
        "policy.file",
        "seed",
        "out",
        "threads",
        "workers",
        "name",
        "data_dir",
        "task.name",
    )
    keys = [key for key in dict.fromkeys(key for each in flats for key in each) if not key.startswith(shared)]
    differing = [key for key in keys if len({str(each.get(key)) for each in flats}) > 1]
    titles: list[str] = []
    for run, each in zip(firsts, flats, strict=True):
        parts = [f"{key.removeprefix('task.')} {each.get(key, 'not set')}" for key in differing]
        more = [f"and {len(parts) - 4} more settings"] if len(parts) > 4 else []
        titles.append(", ".join([str(run.summary["task"]), *parts[:4], *more]))
    return [f"{title} ({titles[:i].count(title) + 1})" if titles.count(title) > 1 else title
            for i, title in enumerate(titles)]  # fmt: skip
