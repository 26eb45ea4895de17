"""`airtune deploy server`: SuperLink and the run on it, kept going until the run has ended."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from airtune.deploy.children import end, environment, is_alive, need_flower, start, stop
from airtune.deploy.config import ServerConfig, read_toml
from airtune.deploy.federation import Journal
from airtune.deploy.refusals import Refusals
from airtune.deploy.server import key_line, run_config
from airtune.deploy.service import FAILURE, PROCESS
from airtune.files import locked, write_toml
from airtune.types import AirtuneError

CONNECTION = "deployment"
"""What Flower's own commands call the SuperLink."""
START_S = 600.0
"""How long a process of Flower may take until it shows that it runs."""
ATTEMPTS = 20
"""Starts without a finished round before the run is given up."""


class Host:
    """Starts SuperLink, lets the devices' keys in, and starts the run; again whenever one of them dies.

    Args:
        folder: what `airtune deploy init` wrote.
        beat: called about once a second; for whoever keeps devices going beside.
    """

    def __init__(self, folder: Path, beat: Callable[[], None] = lambda: None) -> None:
        need_flower()
        self.folder = folder.absolute()
        self.config = read_toml(folder / "server.toml", ServerConfig)
        self.journal = Journal(self.folder / "events.jsonl")
        self._state = self.folder / "state"
        self._refusals = Refusals(self._state / "superlink.log")
        self._env = environment(self._state / "flower")
        self.beat = beat
        self._port = int(self.config.address.rpartition(":")[2])

    def run(self) -> Path:
        """Carry the run to its end; returns its folder.

        Raises:
            AirtuneError: the run cannot go on as things are, or Flower does not start.
        """
        self._state.mkdir(exist_ok=True)
        run_config(self.folder)
        with locked(self._state):
            (self.folder / FAILURE).unlink(missing_ok=True)
            self._end_rounds()
            self.beat()
            link: subprocess.Popen[bytes] | None = None
            try:
                left, reached = ATTEMPTS, self._reached()
                while left:
                    if link is not None and link.poll() is not None:
                        self.journal.note("died", device="server", reason=f"SuperLink, with code {link.returncode}")
                        link = None
                    link = link or self._link()
                    if self._attempt(link):
                        return self.folder / "run"
                    left = left - 1 if self._reached() == reached else ATTEMPTS
                    reached = self._reached()
            finally:
                if link is not None:
                    stop(link)
                self._end_rounds()
        raise AirtuneError(f"{self.folder}: {ATTEMPTS} starts without a finished round; see {self._state}")

    def _link(self) -> subprocess.Popen[bytes]:
        """SuperLink, ready, and knowing the devices' keys."""
        if self._listens():
            self._give_up(f"something listens on port {self._port} already")
        host = self.config.address.rpartition(":")[0]
        here = host in ("localhost", "127.0.0.1")
        command = [sys.executable, "-m", "airtune.deploy.flower.superlink"]
        command += ["--host", "127.0.0.1" if here else "0.0.0.0"]
        command += ["--port", str(self._port), "--database", str(self._state / "superlink.db")]
        command += ["--disable-runtime-dependency-installation"]
        certificates = self.folder / "certificates"
        connection: dict[str, Any] = {"address": f"127.0.0.1:{self._port}", "insecure": True}
        if self.config.secure:
            command += ["--ssl-certfile", str(certificates / "server.crt"), "--ssl-keyfile"]
            command += [str(certificates / "server.key"), "--ssl-ca-certfile", str(certificates / "ca.crt")]
            command += ["--enable-supernode-auth"]
            connection = {"address": f"127.0.0.1:{self._port}", "root-certificates": str(certificates / "ca.crt")}
        else:
            command += ["--insecure"]
        home = self._state / "flower"
        home.mkdir(exist_ok=True)
        write_toml(home / "config.toml", {"superlink": {"default": CONNECTION, CONNECTION: connection}})
        link = start(command, self._env, self._state / "superlink.log")
        self._until(self._listens, link)
        if self.config.secure:
            self._let_in()
        return link

    def _let_in(self) -> None:
        """Register every listed key that SuperLink's database does not hold yet."""
        known = self._state / "registered"
        before = set(known.read_text(encoding="ascii").splitlines()) if known.exists() else set[str]()
        for slot in self.config.device:
            path = self.folder / (slot.key or "")
            if key_line(path) in before:
                continue
            told = self._flwr("supernode", "register", str(path), CONNECTION, "--name", slot.name)
            if not told.get("success") and "already in use" not in str(told.get("error-message")):
                self._give_up(f"Flower does not take the key of {slot.name}, {path}")
            with known.open("a", encoding="ascii") as file:
                file.write(key_line(path) + "\n")

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), 1.0).close()
        except OSError:
            return False
        return True

    def _attempt(self, link: subprocess.Popen[bytes]) -> bool:
        """Start the run and follow it; whether it has ended."""
        (self.folder / PROCESS).unlink(missing_ok=True)
        identity = "key" if self.config.secure else "name"
        given = f'deployment="{self.folder}" identity="{identity}"'
        told = self._flwr("run", str(self.folder / "app"), CONNECTION, "--run-config", given)
        if not told.get("run-id"):
            if link.poll() is not None:
                return False
            self._give_up("Flower does not start the run")
        if not self._until(lambda: self._pid() is not None or self._ended(), link):
            return False
        while True:
            pid = self._pid()
            if pid is None or not is_alive(pid):
                if self._ended():
                    return True
                self.journal.note("died", device="server", reason="the process that runs the rounds")
                self._flwr("stop", str(told["run-id"]), CONNECTION)
                return False
            if link.poll() is not None:
                self._end_rounds()
                return self._ended()
            self._pause()

    def _ended(self) -> bool:
        """Whether the run has its summary; raises AirtuneError if it says that it cannot go on."""
        if (self.folder / FAILURE).exists():
            raise AirtuneError((self.folder / FAILURE).read_text(encoding="utf-8"))
        return (self.folder / "run" / "summary.json").exists()

    def _reached(self) -> int:
        """How far the rows reach [byte]."""
        rows = self.folder / "run" / "rounds.jsonl"
        return rows.stat().st_size if rows.exists() else 0

    def _pid(self) -> int | None:
        try:
            return int((self.folder / PROCESS).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _end_rounds(self) -> None:
        """End the process that runs the rounds: it outlives its SuperLink and holds the run's lock."""
        pid = self._pid()
        if pid is not None:
            end(pid, "flwr-serverapp")
        (self.folder / PROCESS).unlink(missing_ok=True)

    def _until(self, there: Callable[[], bool], link: subprocess.Popen[bytes]) -> bool:
        """Wait for something of Flower; False if SuperLink ended meanwhile."""
        limit = time.monotonic() + START_S
        while not there():
            if link.poll() is not None:
                if not self._state.joinpath("superlink.db").exists():
                    self._give_up(f"SuperLink ended with code {link.returncode}")
                return False
            if time.monotonic() > limit:
                self._give_up(f"nothing after {START_S:.0f} s")
            self._pause()
        return True

    def _pause(self) -> None:
        self.beat()
        for reason in self._refusals.new():
            self.journal.note("refused", reason=reason)
        time.sleep(1.0)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        """What a command of Flower's own says; nothing if it fails, which is told in the log."""
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        with (self._state / "flwr.log").open("a", encoding="utf-8") as log:
            log.write(f"$ flwr {' '.join(arguments)}\n{done.stdout}{done.stderr}\n")
        told = done.stdout[done.stdout.find("{") :]
        try:
            return json.loads(told)
        except ValueError:
            return {}

    def _give_up(self, reason: str) -> NoReturn:
        raise AirtuneError(f"{self.folder}: {reason}; see {self._state}/superlink.log and flwr.log")
