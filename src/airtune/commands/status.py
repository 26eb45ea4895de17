"""`airtune status`."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from airtune.commands.arguments import parse
from airtune.health import RECENT, DeviceHealth, Health, health_of
from airtune.tables import NONE, number, percent
from airtune.types import AirtuneError

SHOWN = 50
"""Most devices that have a line."""
COLOURS = {"finished": "green", "running": "cyan", "stopped": "yellow", "waiting": "cyan"}


@dataclasses.dataclass
class _Status:
    """How a run or a running federation is doing: rounds, deliveries, devices, what happened lately."""

    run: tyro.conf.Positional[Path]
    """Run folder, or the folder of a deployment."""
    watch: float | None = None
    """Show it again every so many seconds, until the run has ended or Ctrl-C."""
    events: int = RECENT
    """How many of a deployment's last events to tell."""


def status_command(arguments: list[str]) -> None:
    """airtune status RUN_OR_DEPLOYMENT [--watch SECONDS]."""
    asked = parse(_Status, arguments, "airtune status")
    if asked.events < 0:
        raise AirtuneError(f"--events: at least 0 would be right, got {asked.events}")
    if asked.watch is None:
        Console().print(render(health_of(asked.run, time.time(), asked.events)))
        return
    if asked.watch <= 0:
        raise AirtuneError(f"--watch: more than 0 seconds would be right, got {asked.watch:g}")
    with Live(auto_refresh=False) as live:
        while True:
            health = health_of(asked.run, time.time(), asked.events)
            live.update(render(health), refresh=True)
            if health.state == "finished":
                return
            time.sleep(asked.watch)


def render(health: Health) -> RenderableType:
    """All there is to see."""
    heading = Text.assemble(
        (f"{health.path}", "bold"),
        "   ",
        (health.state, COLOURS[health.state]),
        f"   round {health.done}/{health.rounds}",
    )
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="dim")
    facts.add_column(justify="right")
    facts.add_column(style="dim")
    share = health.delivered / health.scheduled if health.scheduled else None
    for row in (
        ("Last round", number(health.age_s, "s"), f"ago; one takes {number(health.round_s, 's')}"),
        ("Left", number(health.left_s, "s"), "at that pace"),
        ("Accuracy", percent(health.accuracy), "on the dev subset"),
        ("Delivered", percent(share), f"of {health.scheduled} uploads of the last {RECENT} rounds"),
        ("Energy", number(health.energy_j, "J", 4), f"worst device {number(health.worst, '×')} its budget"),
    ):
        if row[1] != NONE:
            facts.add_row(*row)
    parts: list[RenderableType] = [heading, "", facts]
    if health.devices:
        least = sorted(health.devices, key=_share)[:SHOWN] if len(health.devices) > SHOWN else health.devices
        parts += ["", _devices(least)]
        if len(least) < len(health.devices):
            parts.append(Text(f"those {SHOWN} of {len(health.devices)} devices that delivered least", "dim"))
    if health.events:
        parts += ["", *(Text(_event(dict(event)), "dim", overflow="ellipsis", no_wrap=True) for event in health.events)]
    return Group(*parts)


def _share(device: DeviceHealth) -> float:
    """Share of its last uploads that were delivered; 1 if it sent none."""
    return device.delivered / device.scheduled if device.scheduled else 1.0


def _devices(devices: Sequence[DeviceHealth]) -> Table:
    """A line for each device; columns that nobody has are left out."""
    columns = {
        "Device": [device.name for device in devices],
        "Class": [device.kind for device in devices],
        "There": [NONE if device.connected is None else "yes" if device.connected else "no" for device in devices],
        "Delivered": [f"{device.delivered} of {device.scheduled}" for device in devices],
        "Last in round": [NONE if device.last_delivered is None else str(device.last_delivered) for device in devices],
        "Energy": [number(device.spent_j, "J") for device in devices],
        "Battery": [percent(device.battery, 0) for device in devices],
        "Last lost": [device.lost or NONE for device in devices],
    }
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    shown = [name for name, cells in columns.items() if set(cells) != {NONE}]
    for name in shown:
        table.add_column(name, justify="left" if name in ("Device", "Class", "There", "Last lost") else "right")
    for cells in zip(*(columns[name] for name in shown), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _event(event: dict[str, object]) -> str:
    """An event in one line."""
    at, what = str(event.get("at", ""))[:19].replace("T", " "), str(event.get("event", ""))
    where = "" if event.get("t") is None else f" round {int(str(event['t'])) + 1}"
    return f"{at}{where} {what} " + ": ".join(str(event[key]) for key in ("device", "reason") if key in event)
