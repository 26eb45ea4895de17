"""Files that are either whole or untouched, and disk trouble told in one line."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import tomli_w

from airtune.rows import plain
from airtune.types import AirtuneError


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file so that a crash leaves the old or the new one whole; OSError leaves the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            write_all(file, data)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: object) -> None:
    """Atomically write JSON, indented, without NaN (null instead)."""
    write_atomic(path, (json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_toml(path: Path, values: Mapping[str, object]) -> None:
    """Atomically write nested tables as TOML, without the keys that are None, which TOML cannot say."""
    write_atomic(path, tomli_w.dumps(_without_none(plain(values))).encode())


def csv_bytes(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as a CSV file; its columns are all their keys in order of appearance, what one lacks is an empty cell."""
    text = io.StringIO()
    names = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


@contextlib.contextmanager
def told(path: Path, hint: str | None = None) -> Generator[None]:
    """Turn OSError into one clear line."""
    try:
        yield
    except OSError as error:
        todo = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        todo = hint or f"{todo} and `airtune resume {path}`"
        raise AirtuneError(f"run folder {path}: {error.strerror or error}; {todo}") from error


def locked(path: Path) -> IO[bytes]:
    """A run folder's lock, held until the file is closed; the system drops it when its process ends: none is stale.

    Raises AirtuneError if another process holds it.
    """
    lock = (path / ".lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise AirtuneError(f"run folder {path}: another process is writing it; wait for it or choose another") from None
    except BaseException:
        lock.close()
        raise
    return lock


def in_use(path: Path) -> bool:
    """Whether a process holds a run folder's lock."""
    try:
        with (path / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def write_all(file: IO[bytes], data: bytes) -> None:
    """Write to an unbuffered file and force it to the disk."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_none(value: Any) -> Any:
    match value:
        case dict():
            table = cast("dict[str, Any]", value)
            return {key: _without_none(item) for key, item in table.items() if item is not None}
        case list():
            return [_without_none(item) for item in cast("list[Any]", value)]
        case _:
            return value
