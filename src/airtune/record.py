"""The run folder: what a run writes, how it survives a crash, and how it is read back. Figures come from rows only.

    config.toml        the resolved configuration      rounds.jsonl    one row per round (`rows.RoundRow`)
    environment.json   versions, commit, sources       devices.jsonl   one row per device and round (`rows.DeviceRow`)
    run.json           the format number               timings.jsonl   wall times of each round (`rows.TimingRow`)
    state.safetensors  the checkpoint                  summary.json    totals at the end (`rows.Summary`)

Rows are on the disk before the checkpoint that follows them is replaced, so a run killed at any
moment resumes by `load_checkpoint` and `truncate_to`. Wall times lie apart: the other rows of a resumed run are
bit-identical to those of an uninterrupted one.
"""

import contextlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from airtune import rows
from airtune.files import locked, told, write_all, write_atomic, write_json, write_toml
from airtune.types import AirtuneError

if TYPE_CHECKING:
    import torch

FORMAT = 1
"""Number of the run-folder format that this airtune writes and reads."""


class RunFolder:
    """A run's folder on disk; a context manager that holds the write lock until it is left.

    Make it with `RunFolder.create` (new run), `RunFolder.open(path, write=True)` (resume) or `RunFolder.open(path)`
    (read; needs no lock, also while another process writes).
    """

    def __init__(self, path: Path, lock: IO[bytes] | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, config: Mapping[str, object], environment: Mapping[str, object]) -> Self:
        """Start a new run folder and lock it.

        config: the resolved configuration as plain tables (None is left out); environment: what the run ran on.
        Raises AirtuneError if the path holds anything already (`refuse_occupied`), is locked or cannot be written.
        """
        with told(path, "choose a folder that can be written"):
            if path.exists() and not path.is_dir():
                raise AirtuneError(f"run folder {path}: a file of that name exists; choose another with `out`")
            path.mkdir(parents=True, exist_ok=True)
            refuse_occupied(path)
            lock = locked(path)
            try:
                refuse_occupied(path)
                write_toml(path / "config.toml", config)
                write_json(path / "environment.json", environment)
                write_json(path / "run.json", {"format": FORMAT})
            except BaseException:
                lock.close()
                for name in ("config.toml", "environment.json", "run.json"):
                    with contextlib.suppress(OSError):
                        (path / name).unlink(missing_ok=True)
                raise
        return cls(path, lock)

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> Self:
        """Open an existing run folder, with `write` under its lock.

        Raises AirtuneError if it is no run folder, of another format, or (with `write`) in use.
        """
        with told(path):
            try:
                described = json.loads((path / "run.json").read_text(encoding="utf-8"))
            except FileNotFoundError:
                raise AirtuneError(f"{path} is not a run folder: it has no run.json") from None
            except ValueError:
                raise AirtuneError(
                    f"run folder {path}: run.json is damaged; it should hold the format number"
                ) from None
            number = cast("dict[str, object]", described).get("format") if isinstance(described, dict) else None
            if number != FORMAT:
                raise AirtuneError(f"run folder {path} was written by format {number}; this airtune reads {FORMAT}")
            return cls(path, locked(path) if write else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the write lock back; safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def adapter_path(self) -> Path:
        """Where the final adapter is exported."""
        return self.path / "adapter"

    @property
    def plots_path(self) -> Path:
        """Where this run's figures go."""
        return self.path / "plots"

    # Rows

    def append_round(
        self,
        round_row: Mapping[str, object],
        device_rows: Iterable[Mapping[str, object]],
        timing_row: Mapping[str, object],
    ) -> None:
        """Append one round's rows to the three files and force them to the disk.

        All or nothing: on OSError the files get their former lengths back before AirtuneError is raised. Rows must
        hold every field of `RoundRow`, `DeviceRow` and `TimingRow`; further fields are kept.
        """
        self._writable()
        batches = {
            "devices.jsonl": b"".join(rows.encode(row, rows.DeviceRow) for row in device_rows),
            "timings.jsonl": rows.encode(timing_row, rows.TimingRow),
            "rounds.jsonl": rows.encode(round_row, rows.RoundRow),
        }
        lengths: dict[Path, int] = {}
        with told(self.path):
            try:
                for name, data in batches.items():
                    with (self.path / name).open("ab", buffering=0) as file:
                        lengths[self.path / name] = file.tell()
                        write_all(file, data)
            except OSError:
                for path, length in lengths.items():
                    with contextlib.suppress(OSError):
                        os.truncate(path, length)
                raise

    def truncate_to(self, t: int) -> None:
        """Drop the rows of rounds ≥ t and anything torn, so that the next round to append is t.

        Cuts each file in place, which is atomic and needs no free space. Raises AirtuneError, before it cuts
        anything, if rows before t are missing.
        """
        self._writable()
        with told(self.path):
            cuts: dict[Path, int] = {}
            for name in ("rounds.jsonl", "devices.jsonl", "timings.jsonl"):
                path = self.path / name
                keep, last = 0, -1
                for row, end in rows.scan(path):
                    if row is None or row["t"] >= t:
                        break
                    keep, last = end, row["t"]
                if last != t - 1:
                    raise AirtuneError(f"{path}: rows should reach round {t - 1}, the checkpoint, but end at {last}")
                cuts[path] = keep
            for path, keep in cuts.items():
                if path.exists() and path.stat().st_size > keep:
                    with path.open("rb+") as file:
                        file.truncate(keep)
                        os.fsync(file.fileno())

    def read_rounds(self) -> list[dict[str, Any]]:
        """Rows of rounds.jsonl in order (`RoundRow`); a torn last line is left out."""
        with told(self.path):
            return rows.read(self.path / "rounds.jsonl")

    def read_devices(self) -> list[dict[str, Any]]:
        """Rows of devices.jsonl in order (`DeviceRow`); a torn last line is left out."""
        with told(self.path):
            return rows.read(self.path / "devices.jsonl")

    def read_timings(self) -> list[dict[str, Any]]:
        """Rows of timings.jsonl in order (`TimingRow`); a torn last line is left out."""
        with told(self.path):
            return rows.read(self.path / "timings.jsonl")

    # Whole files

    def save_checkpoint(self, tensors: Mapping[str, "torch.Tensor | NDArray[Any]"], meta: Mapping[str, object]) -> None:
        """Atomically replace the checkpoint; a crash leaves the old one or the new one.

        tensors: any shapes and types, copied to the CPU; meta: JSON values, finite numbers only. Raises AirtuneError.
        """
        import torch
        from safetensors.torch import save

        self._writable()
        copies = {
            name: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu().clone()
            for name, value in tensors.items()
        }
        try:
            described = json.dumps(dict(meta), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AirtuneError(f"checkpoint meta must be finite JSON values: {error}") from None
        data = save({name: value.contiguous() for name, value in copies.items()}, {"airtune": described})
        with told(self.path):
            write_atomic(self.path / "state.safetensors", data)

    def load_checkpoint(self) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]] | None:
        """Tensors (CPU) and meta of the checkpoint; None if none was written yet. Raises AirtuneError if damaged."""
        from safetensors.torch import load

        path = self.path / "state.safetensors"
        with told(self.path):
            if not path.exists():
                return None
            data = path.read_bytes()
        try:
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            return tensors, json.loads(header["__metadata__"]["airtune"])
        except Exception as error:
            raise AirtuneError(
                f"checkpoint {path} is damaged ({error}); delete the run folder and start again"
            ) from None

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration as plain tables; what was None is absent."""
        with told(self.path):
            try:
                return tomllib.loads((self.path / "config.toml").read_text(encoding="utf-8"))
            except ValueError as error:
                raise AirtuneError(f"{self.path / 'config.toml'} is not TOML: {error}") from None

    def read_environment(self) -> dict[str, Any]:
        """What the run ran on."""
        return self._read_json("environment.json") or {}

    def write_summary(self, summary: Mapping[str, object]) -> None:
        """Atomically write summary.json; it must hold every field of `rows.Summary`, more are kept."""
        self._writable()
        missing = rows.Summary.__required_keys__ - summary.keys()
        if missing:
            raise AirtuneError(f"a summary must have every field; it lacks {', '.join(sorted(missing))}")
        with told(self.path):
            write_json(self.path / "summary.json", summary)

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json (`rows.Summary`); None while the run has not ended."""
        return self._read_json("summary.json")

    def _read_json(self, name: str) -> dict[str, Any] | None:
        with told(self.path):
            try:
                return cast("dict[str, Any]", json.loads((self.path / name).read_text(encoding="utf-8")))
            except FileNotFoundError:
                return None
            except ValueError:
                raise AirtuneError(f"{self.path / name} is damaged; it should be JSON") from None

    def _writable(self) -> None:
        if self._lock is None:
            raise AirtuneError(f"run folder {self.path} is open for reading; open it with write=True")


def refuse_occupied(path: Path) -> None:
    """Raise AirtuneError if the path holds anything; what a run killed while it made its folder left counts as none."""
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set[str]()
    left = {name for name in names if name in ("config.toml", "environment.json") or re.fullmatch(r"\..*\.tmp", name)}
    if names - {".lock"} - (left if ".lock" in names else set()):
        hint = f"`airtune resume {path}` continues it, or choose another" if "run.json" in names else "choose another"
        raise AirtuneError(f"run folder {path} is not empty; {hint}")
