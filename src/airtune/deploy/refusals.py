"""Whom SuperLink turned away, read from its log; the run itself never hears of them."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_REFUSED = re.compile(rb'(\S+):\d+ - "POST /v1/fleet/[a-z-]+ HTTP/[\d.]+" (401|412)')
"""An access of the devices' API with a key that is not registered (412), or without a right signature (401)."""
PAUSE_S = 60.0
"""An address that keeps trying is told of once in so long."""


class Refusals:
    """New refusals in a log, whenever asked.

    Args:
        log: SuperLink's.
        clock: seconds; replaced in tests.
    """

    def __init__(self, log: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._place = log.stat().st_size if log.exists() else 0
        self._told: dict[str, float] = {}

    def new(self) -> Iterator[str]:
        """What was refused since the last time, in words; each address once a minute."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._place)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._place += len(text)
        for address, code in _REFUSED.findall(text):
            host, now = address.decode(errors="replace"), self._clock()
            if now - self._told.get(host, -PAUSE_S) >= PAUSE_S:
                self._told[host] = now
                why = "its key is not listed" if code == b"412" else "its signature is not right"
                yield f"a node at {host}: {why}"
