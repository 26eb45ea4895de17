"""`airtune deploy local`: SuperLink and all SuperNodes as processes of this machine."""

import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from airtune.deploy.children import environment, own_command, start, stop
from airtune.deploy.hosting import Host
from airtune.deploy.links import Links
from airtune.types import AirtuneError


def device_command(file: Path) -> list[str]:
    """What starts the device of a device.toml."""
    return own_command("deploy", "device", str(file))


def run_local(folder: Path, command: Callable[[Path], list[str]] = device_command) -> Path:
    """Run a deployment with all its devices here; a device that dies is started again.

    Args:
        folder: what `airtune deploy init` wrote.
        command: what starts the device of a device.toml.

    Returns:
        The run's folder.

    Raises:
        AirtuneError: a device's file is not right, links cannot be emulated here, or what `Host.run` raises.
    """
    host = Host(folder)
    devices: dict[str, subprocess.Popen[bytes]] = {}
    links = Links(len(host.config.device)) if host.config.emulated else None

    def tend() -> None:
        for number, slot in enumerate(host.config.device):
            own, known = host.folder / "devices" / slot.name, devices.get(slot.name)
            if known is not None and known.poll() is None:
                continue
            log = own / "state" / "device.log"
            if known is not None and known.returncode == 2:
                raise AirtuneError(f"{slot.name}: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")
            if known is not None:
                host.journal.note("died", device=slot.name, reason=f"its process, with code {known.returncode}")
            asked = command(own / "device.toml")
            asked = asked if links is None else links.inside(number, asked)
            devices[slot.name] = start(asked, environment(own / "state" / "flower"), log)

    host.beat = tend
    with links or nullcontext():
        try:
            return host.run()
        finally:
            for process in devices.values():
                process.terminate()
            for process in devices.values():
                stop(process)
