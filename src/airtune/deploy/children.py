"""Processes of Flower that belong to one of ours: they log to a file and end with it, however it ends (Linux)."""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from airtune.types import AirtuneError

_PR_SET_PDEATHSIG = 1
GRACE_S = 10.0
"""How long a process may take to end before it is killed."""


def need_flower() -> None:
    """Raises AirtuneError, telling what to install, if Flower is not there."""
    if find_spec("flwr") is None or shutil.which("flower-supernode", path=_path()) is None:
        raise AirtuneError(
            "deploy needs Flower: pip install 'airtune[deploy]' in an environment of its own (docs/deploy.md)"
        )


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes: programs beside this interpreter, no telemetry, `home` for its files."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "FLWR_HOME": str(home), "PATH": _path()}


def start(command: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process; its output is appended to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for the process that ends them in order
            preexec_fn=_end_with_parent,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def own_command(*arguments: str) -> list[str]:
    """A command of airtune, for another process."""
    return [sys.executable, "-c", "from airtune.cli import main; main()", *arguments]


def free_port() -> int:
    """A TCP port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ends_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that it cleans up."""

    def stopped(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stopped)


def end(pid: int, name: str) -> None:
    """End a process that is not a child of ours, gently first, if it is still the program of that name (Linux)."""
    try:
        if name.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return
        os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + GRACE_S
        while is_alive(pid) and time.monotonic() < limit:
            time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and waits for its parent does not (Linux)."""
    try:
        os.kill(pid, 0)
        with suppress(OSError):
            return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _end_with_parent() -> None:
    """In the new process: be told to end when the parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
