"""How a run under way is doing, from its folder alone: how far it is, who delivers, and what happened lately."""

import contextlib
import json
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from airtune.files import in_use
from airtune.record import RunFolder
from airtune.report import Rows

RECENT = 10
"""Rounds that count as lately."""


@dataclass(frozen=True, slots=True)
class DeviceHealth:
    """One device over the last `RECENT` rounds."""

    name: str
    """Its number, or what a deployment calls it."""
    kind: str
    connected: bool | None
    """Whether it was there last; None of a simulated device."""
    scheduled: int
    delivered: int
    last_delivered: int | None
    """Round of its last delivery in the whole run, from 1; None if there was none."""
    lost: str | None
    """Why its last upload that was lost does not count, as a deployment tells it."""
    spent_j: float
    """Energy in the whole run [J]."""
    battery: float | None
    """State of charge that it reported last."""


@dataclass(frozen=True, slots=True)
class Health:
    """A run as its folder shows it."""

    path: Path
    """Run folder."""
    state: Literal["finished", "running", "stopped", "waiting"]
    """waiting: a deployment whose first round has not begun; running: a process holds the folder's lock; stopped: none
    does, and it has not ended."""
    done: int
    """Rounds that have rows."""
    rounds: int
    """T."""
    age_s: float | None
    """Since the last round's rows were written [s]; None before the first."""
    round_s: float | None
    """Median wall time of the last rounds [s]."""
    accuracy: float | None
    """The last one on the dev subset."""
    energy_j: float
    scheduled: int
    """Uploads of the last rounds."""
    delivered: int
    worst: float | None
    """Energy of the worst device so far over its budget so far."""
    devices: tuple[DeviceHealth, ...]
    events: tuple[Mapping[str, Any], ...]
    """A deployment's last events, oldest first."""

    @property
    def left_s(self) -> float | None:
        """Time left at the pace of the last rounds [s]; None if nothing runs or nothing is known."""
        return None if self.round_s is None or self.state != "running" else self.round_s * (self.rounds - self.done)


def health_of(path: Path, now_s: float, events: int = RECENT) -> Health:
    """Read a run folder, or a deployment's, whose run is in `run`; also while another process writes it.

    Args:
        path: the folder.
        now_s: seconds since the epoch.
        events: how many events to tell.

    Raises:
        AirtuneError: no run there.
    """
    if (path / "server.toml").exists() and not (path / "run" / "run.json").exists():
        return _waiting(path, events)
    deployment = path if (path / "run" / "run.json").exists() else None
    folder = RunFolder.open(path / "run" if deployment else path)
    rounds, timings = folder.read_rounds(), folder.read_timings()
    happened = _events(deployment / "events.jsonl") if deployment else []
    standings: dict[str, Any] = {}
    names: list[str] = []
    if deployment:
        names = [slot["name"] for slot in tomllib.loads((deployment / "server.toml").read_text("utf-8"))["device"]]
        if (told := deployment / "devices.json").exists():
            standings = json.loads(told.read_text("utf-8"))
    lately, paces = rounds[-RECENT:], [row["wall_s"] for row in timings[-RECENT:]]
    accuracies = [row["accuracy"] for row in rounds if row["accuracy"] is not None]
    written_s = (folder.path / "rounds.jsonl").stat().st_mtime if rounds else None
    return Health(
        path=folder.path,
        state="finished" if folder.read_summary() else "running" if in_use(folder.path) else "stopped",
        done=len(rounds),
        rounds=int(folder.read_config()["rounds"]),
        age_s=None if written_s is None else max(now_s - written_s, 0.0),
        round_s=statistics.median(paces) if paces else None,
        accuracy=accuracies[-1] if accuracies else None,
        energy_j=rounds[-1]["spent_j"] if rounds else 0.0,
        scheduled=sum(row["scheduled"] for row in lately),
        delivered=sum(row["delivered"] for row in lately),
        worst=rounds[-1]["max_overspend_ratio"] if rounds else None,
        devices=_devices(folder.read_devices(), len(rounds), names, happened, standings),
        events=tuple(happened[-events:]) if events else (),
    )


def _waiting(deployment: Path, events: int) -> Health:
    """A deployment that has no run yet."""
    rounds = tomllib.loads((deployment / "run.toml").read_text("utf-8"))["rounds"]
    happened = _events(deployment / "events.jsonl")
    nothing = {"age_s": None, "round_s": None, "accuracy": None, "worst": None}
    return Health(
        path=deployment,
        state="waiting",
        done=0,
        rounds=rounds,
        energy_j=0.0,
        scheduled=0,
        delivered=0,
        devices=(),
        events=tuple(happened[-events:]) if events else (),
        **nothing,
    )


def _events(path: Path) -> list[Mapping[str, Any]]:
    """A deployment's events, without a line that is torn."""
    found: list[Mapping[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _devices(
    rows: Rows, done: int, names: Sequence[str], events: Sequence[Mapping[str, Any]], standings: Mapping[str, Any]
) -> tuple[DeviceHealth, ...]:
    """Every device that has rows, in order of number."""
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["t"] < done:
            groups.setdefault(row["device"], []).append(row)
    there = {event["device"]: event["event"] == "joined" for event in events if event["event"] in ("joined", "left")}
    return tuple(
        _device(names[k] if k < len(names) else str(k), groups[k], done, there, standings) for k in sorted(groups)
    )


def _device(
    name: str, rows: Sequence[Mapping[str, Any]], done: int, there: Mapping[str, bool], standings: Mapping[str, Any]
) -> DeviceHealth:
    lately = [row for row in rows if row["t"] >= done - RECENT and row["module"] > 0]
    return DeviceHealth(
        name=name,
        kind=rows[-1]["kind"],
        connected=there.get(name) if there else None,
        scheduled=len(lately),
        delivered=sum(bool(row["delivered"]) for row in lately),
        last_delivered=max((row["t"] + 1 for row in rows if row["delivered"]), default=None),
        lost=next((row["lost"] for row in reversed(rows) if row.get("lost")), None),
        spent_j=rows[-1]["spent_j"],
        battery=standings.get(name, {}).get("battery"),
    )
