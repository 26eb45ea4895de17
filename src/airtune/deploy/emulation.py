"""Rounds over emulated links: uplinks at the rate that the controller gave, outages, and how long uploads took."""

import json
import math
import select
import socket
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from airtune.deploy.links import Links
from airtune.deploy.messages import Limits
from airtune.types import AirtuneError

ROWS = "links.jsonl"
"""An upload a line, in the deployment's folder."""
LARGE_BYTE = 1200
"""Only an upload has frames of so many bytes: asking for tasks, acknowledging them and signs of life are smaller."""
PAUSE_S = 2.0
"""Longest silence within an upload [s]."""
WAIT_S = 0.05
"""Longest time between two looks at whether the round is over [s]."""


class Upload(TypedDict):
    """A row of links.jsonl."""

    t: int
    device: str
    payload_bit: int
    """S."""
    rate_bit_per_s: float
    """S / τ_up, the rate of the link."""
    predicted_s: float
    """τ_up."""
    measured_s: float | None
    """From the upload's first byte to its last; None of what did not arrive."""
    wire_bit: int
    """What went over the link meanwhile: the payload and all framing."""
    faded: bool
    """Whether the link was taken down."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """Some uploads; means over those that arrived, NaN without any."""

    arrived: int
    lost: int
    predicted_s: float
    measured_s: float
    slower: float
    """Measured over predicted time."""
    framing: float
    """Bits on the wire over bits of payload."""


@dataclass(slots=True)
class Uplink:
    """One device's uplink in a round."""

    limits: Limits
    faded: bool
    """Whether the channel loses this upload."""
    seen_s: list[float] = field(default_factory=list)
    size_byte: list[int] = field(default_factory=list)
    """Moment and size of each frame that the device sent."""
    begun: bool = False
    cut: bool = False
    """Whether its link has been taken down."""

    def hear(self, ear: socket.socket) -> None:
        """Note the frames that have come since."""
        now_s = time.monotonic()
        with suppress(BlockingIOError):
            while True:
                size_byte = ear.recv_into(bytearray(1), 1, socket.MSG_TRUNC)
                self.seen_s.append(now_s)
                self.size_byte.append(size_byte)
                self.begun |= size_byte >= LARGE_BYTE

    def row(self, t: int, device: str) -> Upload:
        """What was predicted and what was seen."""
        payload_bit = round(self.limits.rate_bit_per_s * self.limits.uplink_s)
        upload_s, upload_byte = upload_of(np.array(self.seen_s), np.array(self.size_byte), payload_bit)
        return {
            "t": t,
            "device": device,
            "payload_bit": payload_bit,
            "rate_bit_per_s": self.limits.rate_bit_per_s,
            "predicted_s": self.limits.uplink_s,
            "measured_s": None if self.faded else upload_s,
            "wire_bit": 8 * upload_byte,
            "faded": self.faded,
        }


class EmulatedUplinks:
    """Shapes the uplinks of a round and watches them.

    Args:
        links: the cell's cables.
        rows: file that a row for each upload is appended to.
        names: of the devices.
    """

    def __init__(self, links: Links, rows: Path, names: Sequence[str]) -> None:
        self._links = links
        self._rows = rows
        self._names = names
        for k in range(links.count):  # a round that was killed leaves some down
            links.up(k)

    @contextmanager
    def round(self, t: int, limits: Mapping[int, Limits], faded: Collection[int]) -> Generator[None]:
        """Within it uplinks have the rates of their limits; those that fade go down when the upload begins."""
        uplinks = {k: Uplink(own, k in faded) for k, own in limits.items() if own.rate_bit_per_s > 0}
        over, faults = threading.Event(), list[Exception]()
        with ExitStack() as stack:
            ears = {stack.enter_context(self._links.ear(k)): k for k in uplinks}
            for k, uplink in uplinks.items():
                self._links.shape(k, uplink.limits.rate_bit_per_s)
            watcher = threading.Thread(target=self._watch, args=(uplinks, ears, over, faults), daemon=True)
            watcher.start()
            try:
                yield
            finally:
                over.set()
                watcher.join()
                for k, uplink in uplinks.items():
                    self._links.free(k)
                    if uplink.cut:
                        self._links.up(k)
        if faults:
            raise faults[0]
        with self._rows.open("a", encoding="utf-8") as file:
            for k, uplink in uplinks.items():
                file.write(json.dumps(uplink.row(t, self._names[k])) + "\n")

    def _watch(
        self,
        uplinks: Mapping[int, Uplink],
        ears: Mapping[socket.socket, int],
        over: threading.Event,
        faults: list[Exception],
    ) -> None:
        """Listen until the round is over; what goes wrong is put into `faults` for the round's own thread."""
        try:
            while not over.is_set():
                for ear in select.select(list(ears), [], [], WAIT_S)[0]:
                    k = ears[ear]
                    uplinks[k].hear(ear)
                    if uplinks[k].faded and uplinks[k].begun and not uplinks[k].cut:
                        self._links.down(k)
                        uplinks[k].cut = True
        except (AirtuneError, OSError) as error:
            faults.append(error)


def upload_of(
    seen_s: NDArray[np.float64], size_byte: NDArray[np.int64], payload_bit: float
) -> tuple[float | None, int]:
    """Length of an upload [s] and its bytes, from the frames that a device sent; None if it did not all come.

    It lasts from its first large frame to the last of all, and the first one's own time on the link. The first one is
    the earliest with no pause between it and the last bits of the payload: what is left of an upload that was cut in
    the round before comes earlier.

    Args:
        seen_s: when each frame had come, ascending, shape n.
        size_byte: its size, shape n.
        payload_bit: S, which the upload has at least.
    """
    large = np.flatnonzero(size_byte >= LARGE_BYTE)
    if len(large) < 2:
        return None, 0
    last = int(large[-1])
    ahead_byte = np.cumsum(size_byte[last::-1])[::-1]  # from each frame to the last
    whole = int(np.searchsorted(-ahead_byte, -payload_bit / 8.0, side="right")) - 1
    pause = np.flatnonzero(np.diff(seen_s[large]) > PAUSE_S)
    begins = large[np.concatenate([[0], pause + 1])]
    first = int(begins[max(int(np.searchsorted(begins, whole, side="right")) - 1, 0)])
    byte = int(ahead_byte[first])
    if first == last or 8 * byte < payload_bit:
        return None, byte
    return float(seen_s[last] - seen_s[first]) * byte / (byte - int(size_byte[first])), byte


def read_uploads(folder: Path) -> list[Upload]:
    """The rows of a deployment's folder."""
    return [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]


def told_by(key: Literal["device", "payload_bit"], rows: Sequence[Upload]) -> dict[str | int, Uploads]:
    """Figures of the uploads of each device or of each size, ascending."""
    told: dict[str | int, Uploads] = {}
    for value in sorted({row[key] for row in rows}):
        own = [row for row in rows if row[key] == value]
        seen = [(row, row["measured_s"]) for row in own if row["measured_s"] is not None]
        told[value] = Uploads(
            len(seen),
            len(own) - len(seen),
            _mean([row["predicted_s"] for row, _ in seen]),
            _mean([measured_s for _, measured_s in seen]),
            _mean([measured_s / row["predicted_s"] for row, measured_s in seen]),
            _mean([row["wire_bit"] / row["payload_bit"] for row, _ in seen]),
        )
    return told


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
