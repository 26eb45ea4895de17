"""Blobs between two processes of one device, over a Unix socket that its owner alone may use."""

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_LENGTH = struct.Struct("!Q")
BYTE_MAX = 1 << 34
"""Longest blob [byte]."""


def ask(path: Path, blob: bytes) -> bytes:
    """Send a blob to the process that listens there and return what it answers; raises OSError."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        _send(line, blob)
        return _receive(line)


def listen(path: Path) -> socket.socket:
    """A socket at that path, in place of one that a former process left."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen()
    return server


def attend(server: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    """Answer one blob of the next caller; a caller who hangs up is forgotten."""
    line, _ = server.accept()
    with line, suppress(OSError):
        _send(line, answer(_receive(line)))


def _send(line: socket.socket, blob: bytes) -> None:
    line.sendall(_LENGTH.pack(len(blob)))
    line.sendall(blob)


def _receive(line: socket.socket) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(line, _LENGTH.size))
    if length > BYTE_MAX:
        raise OSError(f"a blob of {length} bytes")
    return _exactly(line, length)


def _exactly(line: socket.socket, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        part = line.recv(min(count, 1 << 20))
        if not part:
            raise OSError("the other side hung up")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
