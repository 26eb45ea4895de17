"""`airtune deploy`: a real federation over Flower."""

import dataclasses
from pathlib import Path

import tyro

from airtune.commands.arguments import name_first, options, parse, quiet_libraries, settings_of
from airtune.commands.shown import report
from airtune.tables import number
from airtune.types import AirtuneError

USAGE = """usage: airtune deploy COMMAND …

  init NAME_OR_FILE --out DIR [--address HOST:PORT --devices 5 --insecure …settings]
                         write a deployment: run, server, certificates, and a folder for each device
  server DIR             start SuperLink and the run, or go on with it after a crash
  device device.toml     take part as a device; its data stay here
  local NAME_OR_FILE --out DIR [--devices 5 --insecure …settings]
                         server and all devices as processes of this machine; the same command again goes on

airtune deploy COMMAND --help tells more; docs/deploy.md is the guide."""


def deploy_command(arguments: list[str]) -> None:
    """airtune deploy init|server|device|local."""
    command = arguments.pop(0) if arguments else "--help"
    match command:
        case "init":
            print(_init(arguments))
        case "server":
            _server(arguments)
        case "device":
            _device(arguments)
        case "local":
            _local(arguments)
        case "--help" | "-h":
            print(USAGE)
        case _:
            raise AirtuneError(f"deploy: no command {command!r}; there are init, server, device and local")


@dataclasses.dataclass
class _Made:
    """Write the folder of a deployment; every setting of `airtune run` applies."""

    out: Path
    """Folder to write."""
    devices: int | None = None
    """Number of devices; None for the configuration's."""
    address: str = "localhost:9443"
    """HOST:PORT where devices reach the server."""
    insecure: bool = False
    """Without TLS, and with any node taken for the device that it says it is; for trials on a network of your own."""
    radio: str = "measured"
    """measured: channels and devices as they report themselves; simulated: channels, device classes and lost uploads
    of `airtune run` with the same seed."""
    shares: bool = False
    """Each device takes its share of the task's public samples, as in a simulation, in place of data of its own."""
    min_devices: int = 1
    """A round begins once so many are there."""
    overhead_s: float = 30.0
    """What Flower may add to a round's deadline [s]."""
    log: str | None = None
    """TOOL or TOOL:TARGET, as in `airtune run`: copies every round's values there."""


@dataclasses.dataclass
class _MadeHere(_Made):
    emulate: bool = False
    """Each device in a network namespace of its own, its uplink at the rate that the controller gave it, outages as
    links that go down (Linux, root, iproute2); implies --radio simulated."""


SWITCHES = ("insecure", "shares", "emulate")


def _init(arguments: list[str]) -> str:
    name = name_first(arguments, "deploy init")
    asked, rest = options(_Made, arguments, f"airtune deploy init {name}", SWITCHES)
    _write(name, asked, rest, threads=None)
    first = f"{asked.out}/devices/*"
    return (
        f"{asked.out}: start `airtune deploy server {asked.out}`, carry each of {first} to its device, "
        "and start `airtune deploy device device.toml` there"
    )


def _write(name: str, asked: _Made, rest: list[str], threads: int | None, emulated: bool = False) -> None:
    """Write the folder that was asked for."""
    from airtune.deploy.children import need_flower

    need_flower()
    from airtune.deploy.config import ServerConfig, checked
    from airtune.deploy.folder import slots_of, write_folder

    given = [] if asked.devices is None else ["--fleet.devices", str(asked.devices)]
    config = settings_of(name, [*rest, *given], f"airtune deploy init {name}")
    slots = slots_of(config)
    values = {"address": asked.address, "radio": asked.radio, "min_devices": asked.min_devices}
    values |= {"overhead_s": asked.overhead_s, "log": asked.log, "device": slots, "secure": False}
    values["emulated"] = emulated
    server = checked(values, ServerConfig, "deploy init")
    write_folder(asked.out, config, server, secure=not asked.insecure, shares=asked.shares, threads=threads)


@dataclasses.dataclass
class _Folder:
    """Start SuperLink and the run of a deployment; the same command goes on with it after a crash."""

    folder: tyro.conf.Positional[Path]
    """What `airtune deploy init` wrote."""


def _server(arguments: list[str]) -> None:
    folder = parse(_Folder, arguments, "airtune deploy server").folder
    from airtune.deploy.children import ends_on_sigterm
    from airtune.deploy.hosting import Host

    ends_on_sigterm()
    report(Host(folder).run())


@dataclasses.dataclass
class _File:
    """Take part as a device until Ctrl-C; samples and model stay on this machine."""

    file: tyro.conf.Positional[Path]
    """device.toml."""


def _device(arguments: list[str]) -> None:
    file = parse(_File, arguments, "airtune deploy device").file
    quiet_libraries()
    from airtune.deploy.device import join

    join(file)


def _local(arguments: list[str]) -> None:
    name = name_first(arguments, "deploy local")
    asked, rest = options(_MadeHere, arguments, f"airtune deploy local {name}", SWITCHES)
    if asked.emulate:
        asked = _emulated(asked)
    if not (asked.out / "server.toml").exists():
        _write(name, dataclasses.replace(asked, shares=True), rest, threads=1, emulated=asked.emulate)
    from airtune.deploy.children import ends_on_sigterm
    from airtune.deploy.local import run_local

    ends_on_sigterm()
    report(run_local(asked.out))
    if asked.emulate:
        _uploads(asked.out)


def _emulated(asked: _MadeHere) -> _MadeHere:
    """The same with the base station's address; raises AirtuneError if links cannot be emulated here."""
    from airtune.deploy.links import BASE, missing

    if reason := missing():
        raise AirtuneError(f"deploy local --emulate: {reason}")
    port = asked.address.rpartition(":")[2]
    return dataclasses.replace(asked, address=f"{BASE}:{port}", radio="simulated")


def _uploads(folder: Path) -> None:
    """Table of the uploads over emulated links."""
    from rich.console import Console
    from rich.table import Table

    from airtune.deploy.emulation import read_uploads, told_by

    table = Table("Uplink", title="Uploads over emulated links", title_justify="left", box=None)
    for name in ("Arrived", "Lost", "Predicted s", "Measured s", "Measured / predicted", "Wire / payload"):
        table.add_column(name, justify="right")
    for device, told in told_by("device", read_uploads(folder)).items():
        figures = (told.predicted_s, told.measured_s, told.slower, told.framing)
        table.add_row(str(device), str(told.arrived), str(told.lost), *(number(figure) for figure in figures))
    Console().print(table)
