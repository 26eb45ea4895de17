"""A deployment's folder: the run, the server, the Flower app, and one folder to carry to each device."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from airtune.config import RunConfig
from airtune.deploy.config import DeviceConfig, ServerConfig, Slot, read_toml
from airtune.experiment import placed
from airtune.files import write_toml
from airtune.settings import dump
from airtune.types import AirtuneError

USUAL = DeviceConfig(name="", server="-:0", certificate=Path("-"), key=Path("-"))
"""What device.toml need not say."""


def write_folder(
    folder: Path, config: RunConfig, server: ServerConfig, *, secure: bool, shares: bool, threads: int | None
) -> None:
    """Write all that a deployment needs.

    Args:
        folder: new or empty.
        config: the run.
        server: address and device slots, without keys.
        secure: make certificates and keys.
        shares: whether devices take their share of the task's public samples, as in a simulation.
        threads: torch threads of each device; None to leave that to the device.

    Raises:
        AirtuneError: the folder holds something already.
    """
    config = placed(config)
    if folder.exists() and any(folder.iterdir()):
        raise AirtuneError(f"{folder} is not empty; choose another, or start it with `airtune deploy server {folder}`")
    folder.mkdir(parents=True, exist_ok=True)
    slots: list[Slot] = []
    for number, slot in enumerate(server.device):
        own = folder / "devices" / slot.name
        own.mkdir(parents=True)
        slots.append(_with_key(folder, own, slot) if secure else slot)
        device = DeviceConfig(
            name=slot.name,
            server=server.address,
            kind=slot.kind,
            secure=secure,
            certificate=Path("ca.crt") if secure else None,
            key=Path("device.key") if secure else None,
            share=number if shares else None,
            data_dir=config.data_dir if shares else None,
            threads=threads,
        )
        _write(own / "device.toml", _changed(device, USUAL))
    if secure:
        from airtune.deploy.flower.keys import write_certificates

        write_certificates(folder / "certificates", server.address.rpartition(":")[0].strip("[]"))
        for slot in slots:
            (folder / "devices" / slot.name / "ca.crt").write_bytes((folder / "certificates" / "ca.crt").read_bytes())
    server = dataclasses.replace(server, device=tuple(slots), secure=secure)
    _write(folder / "server.toml", TypeAdapter(ServerConfig).dump_python(server))
    _write(folder / "run.toml", dump(dataclasses.replace(config, out=None)))
    _write(folder / "app" / "pyproject.toml", _app(folder))


def slots_of(config: RunConfig, names: str = "device-{}") -> tuple[Slot, ...]:
    """A slot for each device of the configuration."""
    return tuple(Slot(name=names.format(number)) for number in range(config.fleet.devices))


def read_device(path: Path) -> DeviceConfig:
    """device.toml with its paths absolute; raises AirtuneError."""
    config, here = read_toml(path, DeviceConfig), path.absolute().parent
    paths = {name: getattr(config, name) for name in ("certificate", "key", "data_dir", "model")}
    return dataclasses.replace(
        config, **{name: here / own.expanduser() for name, own in paths.items() if own is not None}
    )


def _with_key(folder: Path, own: Path, slot: Slot) -> Slot:
    from airtune.deploy.flower.keys import write_device_key

    public = Path("keys") / f"{slot.name}.pub"
    (folder / "keys").mkdir(exist_ok=True)
    write_device_key(own / "device.key", folder / public)
    return dataclasses.replace(slot, key=public)


def _app(folder: Path) -> dict[str, Any]:
    """pyproject.toml of the Flower app; its code is in the installed package."""
    components = {"serverapp": "airtune.deploy.flower.apps:server", "clientapp": "airtune.deploy.flower.apps:client"}
    app = {"publisher": "airtune", "components": components}
    app["config"] = {"deployment": str(folder.absolute()), "identity": "name"}
    project = {"name": "airtune-deployment", "version": _version(), "license": "Apache-2.0", "dependencies": []}
    project["description"] = "A federation of airtune; the code is in the installed package"
    return {"project": project, "tool": {"flwr": {"app": app}}}


def _version() -> str:
    """airtune's version, or 0.0.0 where it is not installed."""
    try:
        return importlib.metadata.version("airtune")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def _changed(value: Any, usual: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not as usual, so that a file of them stays short."""
    both = ((name.name, getattr(value, name.name), getattr(usual, name.name)) for name in dataclasses.fields(value))
    return {name: own for name, own, other in both if own != other}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_toml(path, values)
