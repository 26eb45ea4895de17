"""The two files of a deployment: what the server is told, and the few lines of a device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from airtune.config.values import STRICT, Count, Positive
from airtune.physics.devices import CLASSES
from airtune.settings import read_tables
from airtune.types import AirtuneError

Kind = TypeVar("Kind")
Address = Annotated[str, Field(pattern=r"^.+:\d{1,5}$")]
"""HOST:PORT."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Slot:
    """One device that may take part; its place in the list is its number."""

    name: str
    key: Path | None = None
    """Its public key, relative to the file; without TLS there are none."""
    kind: str = "phone_mid"
    """Device class until the device says which it is."""

    @model_validator(mode="after")
    def _known(self) -> "Slot":
        if self.kind not in CLASSES:
            raise ValueError(f"kind: no device class {self.kind!r}; there are {', '.join(CLASSES)}")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerConfig:
    """server.toml."""

    address: Address
    """HOST:PORT where devices reach the server."""
    secure: bool = True
    """TLS, and only devices whose key is listed."""
    radio: Literal["measured", "simulated"] = "measured"
    """measured: the controller is fed by what devices report, and an upload is lost if it does not come in time;
    simulated: channels, device classes and lost uploads are those of `airtune run` with the same seed."""
    emulated: bool = False
    """Each device in a network namespace of this machine, its uplink at the rate that the controller gave it, down
    where the simulated channel loses the upload; `airtune deploy local` lays the cables."""
    min_devices: Count = 1
    """A round begins once so many have said that they are there."""
    overhead_s: Positive = 30.0
    """What Flower may add to a round's deadline: it asks for messages every 3 s and starts a process for each."""
    log: str | None = None
    """TOOL or TOOL:TARGET, as in `airtune run --log`: where a copy of every round's values goes."""
    report_s: Positive = 60.0
    """How long a round waits for devices that came to tell of themselves."""
    device: tuple[Slot, ...]

    @model_validator(mode="after")
    def _slots(self) -> "ServerConfig":
        names = [slot.name for slot in self.device]
        if not names or len(set(names)) < len(names):
            raise ValueError("device: name at least one, and none twice")
        if self.secure and any(slot.key is None for slot in self.device):
            raise ValueError("device: with TLS every one needs a key; secure = false does without")
        if self.emulated and self.radio != "simulated":
            raise ValueError('emulated: outages are those of radio = "simulated"')
        if self.min_devices > len(names):
            raise ValueError(f"min_devices: {self.min_devices} of {len(names)} devices")
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeviceConfig:
    """device.toml."""

    name: str
    """As in the server's list."""
    server: Address
    """HOST:PORT of the server."""
    kind: str = "phone_mid"
    """Device class: power of the radio, energy budget, and whatever cannot be measured."""
    secure: bool = True
    certificate: Path | None = None
    """Certificate of the authority that signed the server's, relative to this file."""
    key: Path | None = None
    """The device's private key."""
    data_dir: Path | None = None
    """Folder of the device's own samples, in the form of docs/data.md; None for the task's public ones."""
    share: Annotated[int, Field(ge=0)] | None = None
    """Only this device's part of the samples, as `airtune run` deals them; None for all there are."""
    model: Path | None = None
    """Folder of the frozen model; None for where the run's configuration has it."""
    compute: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    threads: Count | None = None
    memory_byte: Positive | None = None
    """Memory that training may use [byte]; None for what is free."""
    uplink_bit_per_s: Positive | None = None
    """Throughput to the server [bit/s]; None to measure it where the system tells (Linux with `ss`)."""
    local_noise: Positive | None = None
    """Least noise multiplier of local differential privacy; a run with less gets no update (docs/privacy.md)."""
    retry_s: Positive = 5.0
    """Pause before a broken connection is taken up again; each time longer, up to two minutes, if it breaks at once."""

    @model_validator(mode="after")
    def _whole(self) -> "DeviceConfig":
        if self.kind not in CLASSES:
            raise ValueError(f"kind: no device class {self.kind!r}; there are {', '.join(CLASSES)}")
        if self.secure and (self.certificate is None or self.key is None):
            raise ValueError("certificate and key: both are needed; secure = false does without")
        return self


def read_toml(path: Path, kind: type[Kind]) -> Kind:
    """A file of the deployment.

    Raises:
        AirtuneError: no such file, not TOML, unknown keys or bad values; in one line.
    """
    return checked(read_tables(str(path)), kind, str(path))


def checked(values: Mapping[str, Any], kind: type[Kind], where: str) -> Kind:
    """A configuration from plain values; raises AirtuneError with all its mistakes in one line."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        told = [(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors(include_url=False)]
        faults = [f"{key + ': ' if key else ''}{what.removeprefix('Value error, ')}" for key, what in told]
        raise AirtuneError(f"{where}: {'; '.join(faults)}") from None
