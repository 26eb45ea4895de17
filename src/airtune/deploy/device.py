"""`airtune deploy device`: the process that holds a device's model and samples, and the SuperNode beside it."""

import subprocess
import tempfile
import threading
import time
from pathlib import Path

from airtune.deploy.children import ends_on_sigterm, environment, free_port, need_flower, start, stop
from airtune.deploy.config import DeviceConfig
from airtune.deploy.folder import read_device
from airtune.deploy.relay import attend, listen
from airtune.deploy.uplink import throughput_bit_per_s


def join(path: Path) -> None:
    """Take part in a federation until interrupted.

    Args:
        path: device.toml.

    Raises:
        AirtuneError: the file is not right, or Flower is not there.
    """
    config = read_device(path)
    need_flower()
    from airtune.build import use_threads
    from airtune.deploy.trainer import Trainer

    use_threads(config.threads)
    ends_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="airtune-") as place:  # a socket's path must be short
        door = Path(place) / "door"
        server = listen(door)
        link = Link(config, path.absolute().parent, door)
        trainer = Trainer(config, lambda: throughput_bit_per_s(config.server), lambda: link.lost)
        link.start()
        try:
            while True:
                attend(server, trainer.answer)
        finally:
            link.stop()


STEADY_S = 120.0
"""A SuperNode that lived so long was in; one that did not is given longer and longer pauses."""
PAUSE_MAX_S = 120.0


class Link(threading.Thread):
    """A SuperNode that is started again whenever it ends: its server may be away, or not know its key yet."""

    def __init__(self, config: DeviceConfig, folder: Path, door: Path) -> None:
        super().__init__(daemon=True)
        self._config = config
        self._folder = folder
        self._door = door
        self._node: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self.lost = 0
        """How often a SuperNode has ended that should not have."""

    def run(self) -> None:
        """Keep a SuperNode going."""
        env, log = environment(self._folder / "state" / "flower"), self._folder / "state" / "supernode.log"
        print(f"{self._config.name}: a device of {self._config.server}; log in {log}", flush=True)
        pause_s = self._config.retry_s
        while not self._over.is_set():
            began = time.monotonic()
            self._node = start(self._command(), env, log)
            code = self._node.wait()
            if not self._over.is_set():
                self.lost += 1
                print(f"{self._config.name}: the SuperNode ended with code {code}, see {log}; again", flush=True)
            pause_s = self._config.retry_s if time.monotonic() - began > STEADY_S else min(2.0 * pause_s, PAUSE_MAX_S)
            self._over.wait(pause_s)

    def stop(self) -> None:
        """End the SuperNode, for good."""
        self._over.set()
        if self._node is not None:
            stop(self._node)

    def _command(self) -> list[str]:
        config = self._config
        command = ["flower-supernode", "--superlink", config.server, "--port", str(free_port())]
        command += ["--node-config", f'socket="{self._door}"']
        if config.secure:
            command += ["--root-certificates", str(config.certificate), "--auth-supernode-private-key", str(config.key)]
        else:
            command += ["--insecure"]
        return command
