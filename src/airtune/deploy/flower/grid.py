"""An exchange over Flower's grid. Blobs travel as one array of bytes, which Flower cuts into chunks of its own."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import Any

import httpx
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException

from airtune.deploy.federation import Node
from airtune.deploy.flower.keys import public_line

NAME = "blob"
LOST = (httpx.HTTPError, RunNotRunningException)
"""SuperLink is gone, or has ended the run."""
LANES = 32
"""Most threads that collect answers."""
POLL_S = 1.0
"""Time between two looks for answers [s]."""
LATE_S = 10.0
"""How long a message outlives the wait for its answer, lest Flower answers in its place that it expired."""


class GridExchange:
    """Nodes of a Flower run."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Sequence[Node]:
        """The SuperNodes that are online."""
        return [Node(node.node_id, public_line(node.public_key)) for node in self._grid.get_nodes()]

    def ask(self, blobs: Mapping[int, bytes], t: int, timeout_s: float) -> Mapping[int, bytes | str]:
        """Send to all at once and wait until all have answered or the time is over.

        Flower takes an answer whose upload has only begun for one that is there, and waits for the rest of it: several
        threads collect, lest a device that dies in the middle holds up the others.
        """
        about = {"message_type": MessageType.TRAIN, "ttl": timeout_s + LATE_S, "group_id": str(t)}
        messages = [Message(content=enclosed(blob), dst_node_id=node, **about) for node, blob in blobs.items()]
        until, box = time.monotonic() + timeout_s, Queue[tuple[int, bytes | str] | BaseException]()
        taken = set(self._grid.push_messages(messages))
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        nodes = {message: node for message, node in nodes.items() if message in taken}
        lanes = [dict(list(nodes.items())[lane::LANES]) for lane in range(min(LANES, len(nodes)))]
        for lane in lanes:
            Thread(target=self._collect, args=(lane, until, box), daemon=True).start()
        answers: dict[int, bytes | str] = {}
        with suppress(Empty):
            while len(answers) < len(nodes):
                match box.get(timeout=max(until - time.monotonic(), 0.0)):
                    case BaseException() as error:
                        raise error
                    case node, answer:
                        answers[node] = answer
        return answers

    def _collect(
        self, nodes: Mapping[str, int], until: float, box: "Queue[tuple[int, bytes | str] | BaseException]"
    ) -> None:
        """Put the answers to messages into a box as they come; `nodes` by message."""
        left = dict(nodes)
        try:
            while left and time.monotonic() < until:
                for message, node in list(left.items()):
                    answer = self._answer(message)
                    if answer is not None:
                        box.put((node, answer))
                        del left[message]
                time.sleep(POLL_S if left else 0.0)
        except LOST as error:  # the round's thread is told, and ends
            box.put(error)

    def _answer(self, message: str) -> bytes | str | None:
        """The answer to a message, or why it cannot be read; None while there is none."""
        try:
            for reply in self._grid.pull_messages([message]):
                return reply.error.reason if reply.has_error() else disclosed(reply.content)
        except LOST:
            raise
        except Exception as error:
            return f"its answer cannot be read: {type(error).__name__}"
        return None


def enclosed(blob: bytes) -> RecordDict:
    """A blob as the content of a message."""
    array = Array(dtype="uint8", shape=(len(blob),), stype="safetensors", data=blob)
    return RecordDict({NAME: ArrayRecord({NAME: array})})


def disclosed(content: Any) -> bytes:
    """The blob in the content of a message; empty, which nothing accepts, if there is none."""
    try:
        return bytes(content[NAME][NAME].data)
    except (KeyError, TypeError, AttributeError):
        return b""
