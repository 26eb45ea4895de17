"""Rounds over emulated links: uplinks at the rate that the controller gave, outages, and how long uploads took."""

import json
import math
import threading
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from airtune.deploy.links import Links
from airtune.deploy.messages import Limits

ROWS = "links.jsonl"
"""An upload a line, in the deployment's folder."""
LOOK_S = 0.02
"""Time between two looks at the counters [s]."""
WINDOW_S = 1.0
CHATTER_BIT_PER_S = 40e3
"""A device sends more than so much in a window only while it uploads: Flower's asking for messages stays below."""
EDGE = 0.05
"""Share of an upload's bytes at its beginning and its end that its time is not taken from but extrapolated over."""


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
    """From the first byte to the last; None of what did not arrive."""
    wire_bit: int
    """What went over the link meanwhile, with all framing."""
    faded: bool
    """Whether the link was taken down."""


@dataclass(frozen=True, slots=True)
class DeviceUploads:
    """One device's uploads; means over those that arrived, NaN without any."""

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
    seen_byte: list[int] = field(default_factory=list)
    cut: bool = False
    """Whether its link has been taken down."""

    @property
    def floor_bit_per_s(self) -> float:
        """Least rate of an upload."""
        return min(0.5 * self.limits.rate_bit_per_s, CHATTER_BIT_PER_S)

    def look(self, at_s: float, sent_byte: int) -> None:
        """Note what has been sent until a moment."""
        self.seen_s.append(at_s)
        self.seen_byte.append(sent_byte)

    def uploads(self) -> bool:
        """Whether it uploads just now."""
        first = max(len(self.seen_s) - round(WINDOW_S / LOOK_S) - 1, 0)
        return 8.0 * (self.seen_byte[-1] - self.seen_byte[first]) > self.floor_bit_per_s * WINDOW_S

    def row(self, t: int, device: str) -> Upload:
        """What was predicted and what was seen."""
        upload_s, upload_byte = upload_of(np.array(self.seen_s), np.array(self.seen_byte), self.floor_bit_per_s)
        return {
            "t": t,
            "device": device,
            "payload_bit": round(self.limits.rate_bit_per_s * self.limits.uplink_s),
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
        for k, uplink in uplinks.items():
            self._links.shape(k, uplink.limits.rate_bit_per_s)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(uplinks, over), daemon=True)
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
        with self._rows.open("a", encoding="utf-8") as file:
            for k, uplink in uplinks.items():
                file.write(json.dumps(uplink.row(t, self._names[k])) + "\n")

    def _watch(self, uplinks: Mapping[int, Uplink], over: threading.Event) -> None:
        """Look at the counters until the round is over."""
        while not over.wait(LOOK_S):
            now_s, sent = time.monotonic(), self._links.sent_byte()
            for k, uplink in uplinks.items():
                uplink.look(now_s, sent[k])
                if uplink.faded and not uplink.cut and uplink.uploads():
                    self._links.down(k)
                    uplink.cut = True


def upload_of(
    seen_s: NDArray[np.float64], seen_byte: NDArray[np.int64], floor_bit_per_s: float
) -> tuple[float | None, int]:
    """Length of an upload [s] and its bytes, from a device's counter; None and 0 if there was none.

    Args:
        seen_s: moments, ascending, shape n.
        seen_byte: what had been sent until then, shape n.
        floor_bit_per_s: slower traffic is not the upload.
    """
    if len(seen_s) < 2:
        return None, 0
    before = np.interp(seen_s - WINDOW_S, seen_s, seen_byte)
    busy = np.flatnonzero(8.0 * (seen_byte - before) > floor_bit_per_s * WINDOW_S)
    if not len(busy):
        return None, 0
    first = int(np.searchsorted(seen_s, seen_s[busy[0]] - WINDOW_S))
    moment, byte = seen_s[first : busy[-1] + 1], seen_byte[first : busy[-1] + 1] - seen_byte[first]
    if not byte[-1]:
        return None, 0
    begin, end = (float(moment[np.searchsorted(byte, share * byte[-1])]) for share in (EDGE, 1.0 - EDGE))
    return (end - begin) / (1.0 - 2.0 * EDGE), int(byte[-1])


def read_uploads(folder: Path) -> list[Upload]:
    """The rows of a deployment's folder."""
    return [json.loads(line) for line in (folder / ROWS).read_text(encoding="utf-8").splitlines()]


def told_by_device(rows: Sequence[Upload]) -> dict[str, DeviceUploads]:
    """Rows as figures for each device, by name."""
    told: dict[str, DeviceUploads] = {}
    for device in sorted({row["device"] for row in rows}):
        own = [row for row in rows if row["device"] == device]
        seen = [(row, row["measured_s"]) for row in own if row["measured_s"] is not None]
        told[device] = DeviceUploads(
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
