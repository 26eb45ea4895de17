import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune import files, rows
from airtune.record import FORMAT, RunFolder
from airtune.types import AirtuneError


def round_row(t: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(rows.RoundRow.__required_keys__, 0.0)
    return row | {"t": t, "status": "ok", "bound_kind": "estimated", "modules": [1, 0, 1], "loss": math.nan}


def device_rows(t: int, count: int = 2) -> list[dict[str, Any]]:
    row = dict.fromkeys(rows.DeviceRow.__required_keys__, np.float64(0.1))
    return [
        row | {"t": t, "device": np.int64(k), "kind": "phone_low", "delivered": np.bool_(True)} for k in range(count)
    ]


def timing_row(t: int) -> dict[str, Any]:
    return dict.fromkeys(rows.TimingRow.__required_keys__, 0.5) | {"t": t}


def append(folder: RunFolder, t: int) -> None:
    folder.append_round(round_row(t), device_rows(t), timing_row(t))


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {name: (folder.path / name).read_bytes() for name in ("rounds.jsonl", "devices.jsonl", "timings.jsonl")}


@pytest.fixture
def folder(tmp_path: Path):
    with RunFolder.create(tmp_path / "a" / "run", {"name": "x"}, {"python": "3"}) as made:
        yield made


def test_layout_and_configuration(tmp_path: Path):
    config = {"name": "é", "seed": 3, "out": None, "modules": {"ranks": (2, 4), "revision": None}, "dir": tmp_path}
    with RunFolder.create(tmp_path / "run", config, {"commit": None, "threads": 2}) as folder:
        assert folder.read_config() == {
            "name": "é",
            "seed": 3,
            "modules": {"ranks": [2, 4]},
            "dir": str(tmp_path),
        }
        assert folder.read_environment() == {"commit": None, "threads": 2}
        assert folder.read_summary() is None
        assert folder.load_checkpoint() is None
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"format": 1}
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "config.toml", "environment.json", "run.json"}


def test_create_refuses_a_folder_with_content(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(AirtuneError, match="is not empty"):
        RunFolder.create(tmp_path, {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(AirtuneError, match="a file of that name exists"):
        RunFolder.create(tmp_path / "notes.txt", {}, {})


def killed_while_made(path: Path, names: tuple[str, ...]) -> Path:
    """What kill -9 leaves before run.json is there."""
    path.mkdir(parents=True)
    for name in (".lock", *names):
        (path / name).write_bytes(b"half")
    return path


@pytest.mark.parametrize(
    "names",
    [
        (),
        (".config.toml.tmp",),
        ("config.toml",),
        ("config.toml", ".environment.json.tmp"),
        ("config.toml", "environment.json", ".run.json.tmp"),
    ],
)
def test_a_folder_that_was_never_finished_counts_as_empty(tmp_path: Path, names: tuple[str, ...]):
    path = killed_while_made(tmp_path / "run", names)
    with RunFolder.create(path, {"seed": 3}, {"threads": 2}) as folder:
        assert folder.read_config() == {"seed": 3}
        assert folder.read_environment() == {"threads": 2}
    assert {p.name for p in path.iterdir()} == {".lock", "config.toml", "environment.json", "run.json"}


def test_what_is_not_ours_is_not_overwritten(tmp_path: Path):
    (tmp_path / "config.toml").write_text("mine")  # no lock beside it: no run wrote it
    killed_while_made(tmp_path / "run", ("config.toml", "notes.txt"))
    for path in (tmp_path, tmp_path / "run"):
        with pytest.raises(AirtuneError, match=r"is not empty; choose another$"):
            RunFolder.create(path, {}, {})
    assert (tmp_path / "config.toml").read_text() == "mine"


def test_open_refuses_what_it_cannot_read(folder: RunFolder, tmp_path: Path):
    with pytest.raises(AirtuneError, match="is not a run folder"):
        RunFolder.open(tmp_path / "nowhere")
    (folder.path / "run.json").write_text('{"format": 2}')
    with pytest.raises(AirtuneError) as told:
        RunFolder.open(folder.path)
    assert str(told.value) == f"run folder {folder.path} was written by format 2; this airtune reads {FORMAT}"
    for text in ("{", "[1]"):
        (folder.path / "run.json").write_text(text)
        with pytest.raises(AirtuneError):
            RunFolder.open(folder.path)


def test_rows_come_back_and_nan_is_null(folder: RunFolder):
    for t in range(3):
        append(folder, t)
    read = RunFolder.open(folder.path)
    assert [row["t"] for row in read.read_rounds()] == [0, 1, 2]
    assert [(row["t"], row["device"]) for row in read.read_devices()] == [(t, k) for t in range(3) for k in range(2)]
    assert read.read_rounds()[0]["loss"] is None
    assert read.read_rounds()[0]["modules"] == [1, 0, 1]
    assert read.read_devices()[0]["gain"] == 0.1
    assert read.read_devices()[0]["delivered"] is True
    assert len(read.read_timings()) == 3
    assert "NaN" not in (folder.path / "rounds.jsonl").read_text()


def test_a_row_without_a_field_is_refused_and_nothing_is_written(folder: RunFolder):
    short = round_row(0)
    del short["phi"]
    with pytest.raises(AirtuneError, match="lacks phi"):
        folder.append_round(short, device_rows(0), timing_row(0))
    assert not (folder.path / "devices.jsonl").exists()
    with pytest.raises(AirtuneError, match="it lacks accuracy"):
        folder.write_summary({key: 0 for key in rows.Summary.__required_keys__ if key != "accuracy"})


@pytest.mark.parametrize("name", ["rounds.jsonl", "devices.jsonl", "timings.jsonl"])
@pytest.mark.parametrize("torn", [b'{"t": 3, "de', b'{"t": 3}', b"\x00\x00\n", b'{"t": 3}\n{"t":'])
def test_truncate_drops_later_rounds_and_torn_lines(folder: RunFolder, name: str, torn: bytes):
    for t in range(2):
        append(folder, t)
    kept = contents(folder)
    append(folder, 2)
    with (folder.path / name).open("ab") as file:
        file.write(torn)
    folder.truncate_to(2)
    assert contents(folder) == kept
    append(folder, 2)
    assert [row["t"] for row in folder.read_rounds()] == [0, 1, 2]


def test_truncate_to_nothing_and_beyond_the_rows(folder: RunFolder):
    folder.truncate_to(0)
    append(folder, 0)
    before = contents(folder)
    with pytest.raises(AirtuneError, match="rows should reach round 4"):
        folder.truncate_to(5)
    assert contents(folder) == before
    folder.truncate_to(0)
    assert set(contents(folder).values()) == {b""}


def test_reading_forgives_only_a_torn_last_line(folder: RunFolder):
    append(folder, 0)
    path = folder.path / "rounds.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"t": 1')
    assert [row["t"] for row in folder.read_rounds()] == [0]
    path.write_bytes(b"garbage\n" + whole)
    with pytest.raises(AirtuneError, match="line 1 is damaged"):
        folder.read_rounds()


@given(cut=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_killed_while_appending_resumes_bit_identically(tmp_path_factory: pytest.TempPathFactory, cut: int):
    with RunFolder.create(tmp_path_factory.mktemp("runs") / "run", {}, {}) as folder:
        for t in range(3):
            append(folder, t)
        whole = contents(folder)
        # Round 2's bytes reach the disk only in part: the files are written one after the other.
        start = {name: data.index(b'"t":2') for name, data in whole.items()}
        left = cut
        for name in ("devices.jsonl", "timings.jsonl", "rounds.jsonl"):
            begin = whole[name].rindex(b"\n", 0, start[name]) + 1
            kept = min(left, len(whole[name]) - begin)
            left -= kept
            os.truncate(folder.path / name, begin + kept)
        folder.truncate_to(2)
        append(folder, 2)
        assert contents(folder) == whole


def test_checkpoint_round_trip_is_exact_and_deterministic(folder: RunFolder):
    shared = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    frozen = np.array([0.1, np.nan, np.inf])
    frozen.flags.writeable = False
    tensors = {
        "a": shared,
        "view": shared.T,
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "queue_j": frozen,
        "none": np.zeros((0, 3)),
        "count": np.array(7),
    }
    meta = {"t": 3, "bound": 0.1 + 0.2, "list": [1, None]}
    folder.save_checkpoint(tensors, meta)
    first = (folder.path / "state.safetensors").read_bytes()
    loaded = folder.load_checkpoint()
    assert loaded is not None
    back, described = loaded
    assert described == meta
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        expected = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        assert back[name].dtype == expected.dtype
        assert back[name].shape == expected.shape
        assert torch.equal(torch.nan_to_num(back[name]), torch.nan_to_num(expected))
    folder.save_checkpoint(tensors, meta)
    assert (folder.path / "state.safetensors").read_bytes() == first
    with pytest.raises(AirtuneError, match="finite JSON"):
        folder.save_checkpoint({}, {"bound": math.nan})


def test_a_damaged_checkpoint_is_told(folder: RunFolder):
    folder.save_checkpoint({"a": torch.ones(3)}, {"t": 1})
    path = folder.path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(AirtuneError, match="is damaged"):
        folder.load_checkpoint()


def fail_after(monkeypatch: pytest.MonkeyPatch, good: int):
    """Let so many files be written, then half of one, and then the disk is full."""
    real, count = files.write_all, iter(range(1000))

    def write(file: Any, data: bytes) -> None:
        if next(count) < good:
            return real(file, data)
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("airtune.files.write_all", write)
    monkeypatch.setattr("airtune.record.write_all", write)


@pytest.mark.parametrize("good", [0, 1, 2])
def test_disk_full_leaves_the_rows_as_they_were(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, good: int):
    append(folder, 0)
    before = contents(folder)
    with monkeypatch.context() as patch:
        fail_after(patch, good)
        with pytest.raises(AirtuneError) as told:
            append(folder, 1)
    expected = f"run folder {folder.path}: No space left on device; free space and `airtune resume {folder.path}`"
    assert str(told.value) == expected
    assert contents(folder) == before


def test_disk_full_leaves_the_old_checkpoint_and_no_half_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    folder.save_checkpoint({"a": torch.ones(3)}, {"t": 1})
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with monkeypatch.context() as patch:
        fail_after(patch, 0)
        with pytest.raises(AirtuneError, match="No space left"):
            folder.save_checkpoint({"a": torch.zeros(3)}, {"t": 2})
        with pytest.raises(AirtuneError, match="No space left"):
            folder.write_summary(dict.fromkeys(rows.Summary.__required_keys__))
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_create_on_a_full_disk_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        fail_after(patch, 1)
        with pytest.raises(AirtuneError, match="No space left"):
            RunFolder.create(tmp_path / "run", {"a": 1}, {"b": 1})
    RunFolder.create(tmp_path / "run", {"a": 1}, {"b": 1}).close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_really_full_device(folder: RunFolder):
    (folder.path / "devices.jsonl").symlink_to("/dev/full")
    with pytest.raises(AirtuneError, match="No space left on device; free space"):
        append(folder, 0)


def test_one_writer_at_a_time_and_no_stale_lock(folder: RunFolder):
    code = (
        "import sys; from pathlib import Path\n"
        "from airtune.record import RunFolder; from airtune.types import AirtuneError\n"
        "try: RunFolder.open(Path(sys.argv[1]), write=True)\n"
        "except AirtuneError as error: sys.exit(str(error))"
    )
    command = [sys.executable, "-c", code, str(folder.path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "another process is writing it" in second.stderr
    RunFolder.open(folder.path).read_rounds()  # reading is free
    folder.close()
    assert (folder.path / ".lock").exists()
    assert subprocess.run(command, check=False).returncode == 0
    RunFolder.open(folder.path, write=True).close()


def test_a_folder_opened_for_reading_is_not_written(folder: RunFolder):
    append(folder, 0)
    read = RunFolder.open(folder.path)
    with pytest.raises(AirtuneError, match="open for reading"):
        append(read, 1)
    with pytest.raises(AirtuneError, match="open for reading"):
        read.truncate_to(0)
    with pytest.raises(AirtuneError, match="open for reading"):
        read.save_checkpoint({}, {})


def test_plain_makes_json_ready_values():
    value = {1: np.float32("nan"), "b": (np.int64(2), np.array([1.0, np.inf])), "c": Path("x"), "d": True, "e": None}
    assert rows.plain(value) == {"1": None, "b": [2, [1.0, None]], "c": "x", "d": True, "e": None}
