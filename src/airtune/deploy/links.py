"""Links of an emulated cell: a network namespace for each device, its uplink shaped by `tc` (Linux, root, iproute2).

The base station is this machine's own network; device k has an address, a cable (veth) and a queue (tbf) of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from airtune.types import AirtuneError

BASE = "10.77.0.1"
"""Address of the base station."""
DEVICES_MAX = 250
"""So many addresses there are."""
_UPLINK = "uplink"
"""The device's end of its cable."""
FRAME_BYTE = 1514
"""A full frame of Ethernet [byte]."""
_IPV4 = 0x0800
_WHERE = "/usr/sbin:/sbin"
"""Where iproute2 lies if it is not on PATH."""


class Links:
    """The cables of a cell; `with Links(4) as links` lays them and takes them away.

    Args:
        count: number of devices.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> "Links":
        """Lay the cables.

        Raises:
            AirtuneError: this system does not let us, or another emulation uses them.
        """
        if reason := missing():
            raise AirtuneError(f"emulated links: {reason}")
        if not 0 < self.count <= DEVICES_MAX:
            raise AirtuneError(f"emulated links: from 1 to {DEVICES_MAX} devices, not {self.count}")
        for k in range(self.count):
            if self.there(k) and _told("ip", "netns", "pids", namespace(k)).strip():
                raise AirtuneError(f"emulated links: another emulation is running in namespace {namespace(k)}")
        try:
            for k in range(self.count):
                self._lay(k)
        except AirtuneError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Take the cables away, and the namespaces with whatever of Flower still runs there."""
        for k in range(self.count):
            _remove(k)

    def there(self, k: int) -> bool:
        """Whether device k has its namespace."""
        return namespace(k) in {line.split()[0] for line in _told("ip", "netns", "list").splitlines() if line}

    def inside(self, k: int, command: Sequence[str]) -> list[str]:
        """The command that runs a command in device k's namespace."""
        return [_program("ip"), "netns", "exec", namespace(k), *command]

    def shape(self, k: int, rate_bit_per_s: float) -> None:
        """Let device k send at that rate, in bits of whole frames a second; what waits is kept, not dropped."""
        burst = max(2 * FRAME_BYTE, round(rate_bit_per_s / 800))
        held = max(1 << 16, round(rate_bit_per_s / 8))
        queue = ["tbf", "rate", f"{round(rate_bit_per_s)}bit", "burst", f"{burst}b", "limit", f"{held}b"]
        _told("tc", "-n", namespace(k), "qdisc", "replace", "dev", _UPLINK, "root", *queue)

    def free(self, k: int) -> None:
        """Let device k send as fast as the machine can; no error if it may already."""
        with suppress(AirtuneError):
            _told("tc", "-n", namespace(k), "qdisc", "delete", "dev", _UPLINK, "root")

    def down(self, k: int) -> None:
        """Take device k's link down."""
        _told("ip", "-n", namespace(k), "link", "set", _UPLINK, "down")

    def up(self, k: int) -> None:
        """Take device k's link up."""
        _told("ip", "-n", namespace(k), "link", "set", _UPLINK, "up")

    def ear(self, k: int) -> socket.socket:
        """A socket that hears, without waiting, every IPv4 frame that comes from device k; raises AirtuneError."""
        try:
            ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_IPV4))
            ear.bind((_cable(k), _IPV4))
        except OSError as error:
            raise AirtuneError(f"emulated links: cannot listen on {_cable(k)}: {error.strerror}") from None
        ear.setblocking(False)
        return ear

    def _lay(self, k: int) -> None:
        own, cable, address = namespace(k), _cable(k), f"10.77.0.{k + 2}"
        _remove(k)  # what a process that was killed has left
        _told("ip", "netns", "add", own)
        _told("ip", "link", "add", cable, "type", "veth", "peer", "name", _UPLINK, "netns", own)
        _told("ip", "address", "add", BASE, "peer", address, "dev", cable)
        _told("ip", "-n", own, "address", "add", address, "peer", BASE, "dev", _UPLINK)
        _told("ip", "link", "set", cable, "up")
        for name in ("lo", _UPLINK):
            _told("ip", "-n", own, "link", "set", name, "up")


def namespace(k: int) -> str:
    """Name of device k's network namespace."""
    return f"airtune-{k}"


def missing() -> str | None:
    """Why links cannot be emulated here; None if they can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if absent := [name for name in ("ip", "tc") if shutil.which(_program(name)) is None]:
        return f"there is no {' nor '.join(absent)}; install iproute2"
    probe = f"airtune-probe-{os.getpid()}"
    try:
        _told("ip", "netns", "add", probe)
        _told("ip", "-n", probe, "link", "add", _UPLINK, "type", "veth", "peer", "name", "other")
        queue = "tbf rate 1mbit burst 4kb limit 64kb".split()
        _told("tc", "-n", probe, "qdisc", "replace", "dev", _UPLINK, "root", *queue)
    except AirtuneError as error:
        return str(error)
    finally:
        with suppress(AirtuneError):
            _told("ip", "netns", "delete", probe)
    return None


def _remove(k: int) -> None:
    """Take away what there is of device k; a namespace lives as long as a process in it."""
    with suppress(AirtuneError):
        for pid in _told("ip", "netns", "pids", namespace(k)).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    for what in (["link", "delete", _cable(k)], ["netns", "delete", namespace(k)]):
        with suppress(AirtuneError):
            _told("ip", *what)


def _cable(k: int) -> str:
    """The base station's end of device k's cable."""
    return f"airtune{k}"


def _program(name: str) -> str:
    return shutil.which(name) or shutil.which(name, path=_WHERE) or name


def _told(name: str, *arguments: str) -> str:
    """What a command of iproute2 prints; raises AirtuneError with what it says if it fails."""
    try:
        done = subprocess.run([_program(name), *arguments], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        raise AirtuneError(f"{name} {' '.join(arguments)}: no end after 30 s") from None
    if done.returncode:
        raise AirtuneError(f"{name} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout
