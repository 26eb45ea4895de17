"""An exchange over Flower's grid. Blobs travel as one array of bytes, which Flower cuts into chunks of its own."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from airtune.deploy.federation import Node
from airtune.deploy.flower.keys import public_line

NAME = "blob"
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
        """Send to all at once and wait until all have answered or the time is over."""
        about = {"message_type": MessageType.TRAIN, "ttl": timeout_s + LATE_S, "group_id": str(t)}
        messages = [Message(content=enclosed(blob), dst_node_id=node, **about) for node, blob in blobs.items()]
        answers: dict[int, bytes | str] = {}
        replies = self._grid.send_and_receive(messages, timeout=timeout_s)
        sent = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        for reply in replies:
            node = sent.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            answers[node] = reply.error.reason if reply.has_error() else disclosed(reply.content)
        return answers


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
