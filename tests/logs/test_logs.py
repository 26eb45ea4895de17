"""Live logs: what arrives equals the rows, resuming goes on, and no log can change or stop a run."""

import dataclasses
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import tomli_w

from airtune.cli import run_cli
from airtune.deploy.children import free_port
from airtune.experiment import resume, run
from airtune.logs.log import RunLog, Start, Watched, log_of, values_of
from airtune.record import RunFolder
from airtune.settings import dump
from airtune.types import AirtuneError

ROWS = ("rounds.jsonl", "devices.jsonl")


class ListLog:
    """A log into a list that fails at a given step."""

    def __init__(self, fails_at=None, fails=RuntimeError):
        self.starts, self.got, self.ends = [], [], []
        self._fails_at, self._fails = fails_at, fails

    def begin(self, start: Start) -> str | None:
        self.starts.append(start)
        return f"id of {start.name}"

    def values(self, step, values):
        if step == self._fails_at:
            raise self._fails("server\nis gone")
        self.got.append((step, dict(values)))

    def end(self, *, finished):
        self.ends.append(finished)


def rows_of(path: Path):
    return RunFolder.open(path).read_rounds()


def expected(path: Path) -> dict[int, dict[str, float]]:
    """Step → values, straight from rounds.jsonl."""
    found = {}
    for row in rows_of(path):
        flat = {k: v for k, v in row.items() if isinstance(v, int | float) and k != "t"}
        flat |= {f"{k}/{i}": v for k in ("modules", "delta") for i, v in enumerate(row[k])}
        flat |= {f"measures/{name}": v for name, v in (row["measures"] or {}).items()}
        found[row["t"] + 1] = flat
    return found


def test_a_log_gets_every_round_and_the_summary_and_changes_nothing(tiny_config, tmp_path):
    log = ListLog()
    assert isinstance(log, RunLog)
    run(tiny_config(tmp_path / "plain"))
    summary = run(tiny_config(tmp_path / "logged"), log=log)
    for name in ROWS:
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "logged" / name).read_bytes()
    (start,) = log.starts
    assert (start.name, start.group, start.first, start.known_as) == ("logged", "tiny", 1, None)
    assert start.config["policy"]["name"] == "joint"
    *rounds, (last, totals) = log.got
    assert dict(rounds) == expected(tmp_path / "logged")
    assert (last, totals["summary/energy_j"]) == (4, summary["energy_j"])
    assert log.ends == [True]
    assert json.loads((tmp_path / "logged/log.json").read_text()) == {"list": "id of logged"}


def test_a_failing_log_is_told_once_and_the_run_goes_on(tiny_config, tmp_path, capsys):
    log = ListLog(fails_at=2)
    run(tiny_config(tmp_path / "r"), log=log)
    told = capsys.readouterr().err
    assert told == "airtune: warning: --log: list failed and gets no more, the run goes on: server is gone\n"
    assert [step for step, _ in log.got] == [1]
    assert len(rows_of(tmp_path / "r")) == 4


def test_a_resumed_run_goes_on_in_its_log(tiny_config, tmp_path):
    out, first, second = tmp_path / "r", ListLog(fails_at=3, fails=KeyboardInterrupt), ListLog()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(out), log=first)
    assert first.ends == [False]
    resume(out, log=second)
    (start,) = second.starts
    assert (start.first, start.known_as) == (4, "id of r")  # round 3 was written before the interruption
    assert [step for step, _ in second.got] == [4, 4]
    run(tiny_config(tmp_path / "whole"))
    for name in ROWS:
        assert (tmp_path / "whole" / name).read_bytes() == (out / name).read_bytes()


def test_a_log_that_cannot_begin_is_one_line(tmp_path):
    class BadLog(ListLog):
        def begin(self, start):
            raise OSError("no such\n server")

    with RunFolder.create(tmp_path / "r", {"seed": 0}, {}) as folder, pytest.raises(AirtuneError) as told:
        Watched(BadLog(), folder, "g", first=1)
    assert str(told.value) == "--log: bad cannot begin: no such server"


def test_values_of_a_row_leave_out_what_is_no_number():
    row = {"t": 1, "accuracy": None, "status": "ok", "ok": True, "loss": 0.5, "bad": float("nan"), "modules": [1, 2]}
    assert values_of(row, "x/") == {"x/loss": 0.5, "x/modules/0": 1.0, "x/modules/1": 2.0}


@pytest.mark.parametrize("spec", ["mlflow", "wandb:project", "trackio", "tensorboard:dir"])
def test_a_missing_library_is_one_line(spec, monkeypatch, capsys, tmp_path):
    tool = spec.partition(":")[0]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_cli(["run", "demo", "--out", str(tmp_path / "r"), "--log", spec]) == 2
    assert capsys.readouterr().err == f"airtune: --log: {tool} is not installed; pip install 'airtune[{tool}]'\n"
    assert not (tmp_path / "r").exists()


def test_another_tool_is_one_line(capsys, tmp_path):
    for command in (["run", "demo"], ["compare", "demo"], ["resume", str(tmp_path)]):
        assert run_cli([*command, "--log", "printer:x"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("airtune: --log: no tool 'printer'; there are tensorboard, mlflow, wandb, trackio")
        assert told.count("\n") == 1


# With the real libraries, where they are installed


def half_and_half(make, out: Path, spec: str) -> dict[int, dict[str, float]]:
    """A run that is interrupted after two rounds and resumed, both with a log of their own; returns what it holds."""

    class Stopping:
        def __init__(self, inner):
            self.inner = inner
            self.__class__.__name__ = type(inner).__name__

        def begin(self, start):
            return self.inner.begin(start)

        def values(self, step, values):
            self.inner.values(step, values)
            if step == 2:
                raise KeyboardInterrupt

        def end(self, *, finished):
            self.inner.end(finished=finished)

    with pytest.raises(KeyboardInterrupt):
        run(make(out), log=Stopping(log_of(spec)))
    resume(out, log=log_of(spec))
    return expected(out)


def same(got: dict[int, dict[str, float]], wanted: dict[int, dict[str, float]], **tolerance):
    assert got.keys() == wanted.keys()
    for step, values in wanted.items():
        logged = {name: value for name, value in got[step].items() if not name.startswith("summary/")}
        assert logged == pytest.approx(values, **tolerance)


def test_tensorboard(tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = half_and_half(tiny_config, tmp_path / "r", f"tensorboard:{tmp_path / 'boards'}")
    events = EventAccumulator(str(tmp_path / "boards/r"))
    events.Reload()
    got: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            got.setdefault(event.step, {})[name] = event.value
    same(got, wanted, rel=1e-6)  # single precision
    assert "config/text_summary" in events.Tags()["tensors"]
    assert "summary/energy_j" in got[4]


def test_tensorboard_goes_to_the_run_folder_by_default(tiny_config, tmp_path):
    pytest.importorskip("tensorboard")
    run(dataclasses.replace(tiny_config(tmp_path / "r"), rounds=1), log=log_of("tensorboard"))
    assert list((tmp_path / "r/tensorboard").glob("events*"))


def test_prometheus_serves_the_last_round_while_the_run_lasts(tiny_config, tmp_path):
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    port = free_port()
    url = f"http://127.0.0.1:{port}/metrics"
    inner, pages = log_of(f"prometheus:{port}"), []

    class Scraped:
        begin, end = inner.begin, inner.end

        def values(self, step, values):
            inner.values(step, values)
            pages.append(urllib.request.urlopen(url).read().decode())

    run(tiny_config(tmp_path / "r"), log=Scraped())
    wanted = expected(tmp_path / "r")
    for step, page in zip((*wanted, 4), pages, strict=True):
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        assert {sample.labels["run"] for sample in samples} == {"r"}
        got = {(sample.name, sample.labels["entry"]): sample.value for sample in samples}
        assert got["airtune_round", ""] == step
        for name, value in wanted[step].items():
            first, _, entry = name.partition("/")
            assert got[f"airtune_{first}", entry] == pytest.approx(value), name
    assert got["airtune_summary_rounds", ""] == 4
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)


def test_a_port_that_is_none_is_one_line():
    pytest.importorskip("prometheus_client")
    with pytest.raises(
        AirtuneError, match="--log: prometheus:x: prometheus:PORT or prometheus:HOST:PORT would be right"
    ):
        log_of("prometheus:x")


def test_every_run_of_a_comparison_is_logged(tiny_config, tmp_path, capsys):
    pytest.importorskip("tensorboard")
    config = dump(tiny_config(tmp_path / "unused", rounds=2))
    plain = {k: v for k, v in config.items() if v is not None and not isinstance(v, dict)}
    tables = {k: {n: x for n, x in v.items() if x is not None} for k, v in config.items() if isinstance(v, dict)}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(plain | tables))
    command = [
        "compare",
        str(tmp_path / "tiny.toml"),
        "--policies",
        "joint,traditional",
        "--out",
        str(tmp_path / "all"),
    ]
    assert run_cli([*command, "--log", f"tensorboard:{tmp_path / 'boards'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "boards").iterdir()) == ["joint-s0", "traditional-s0"]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tiny_config, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    wanted = half_and_half(tiny_config, tmp_path / "r", f"mlflow:{uri}")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params["policy.name"] == "joint" and found.data.params["modules.ranks"] == "[2, 4, 4]"
    got: dict[int, dict[str, float]] = {}
    for name in found.data.metrics:
        for metric in client.get_metric_history(found.info.run_id, name):
            got.setdefault(metric.step, {})[name] = metric.value
    same(got, wanted)
    assert "summary/energy_j" in got[4]


def leveldb_records(data: bytes, block: int = 32768):
    """Records of a LevelDB log, of which the file's own header of 7 bytes has been taken off."""
    record, at = b"", 7  # blocks are counted from the start of the file
    while at - 7 + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        head = data[at - 7 : at]
        size, kind = int.from_bytes(head[4:6], "little"), head[6:7]
        if not kind or kind == b"\0":
            return
        record += data[at : at + size]
        at += 7 + size
        if kind in b"\1\4":  # whole, or the last part
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tiny_config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    wanted = half_and_half(tiny_config, tmp_path / "r", "wandb:project")
    assert wandb.run is None
    wandb.teardown()  # its writer is another process
    got: dict[int, dict[str, float]] = {}
    names = set()
    for file in sorted((tmp_path / "r/wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(file.read_bytes()[7:]):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                names.add((record.run.project, record.run.display_name, record.run.run_id))
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                values = {name: json.loads(value) for name, value in items.items() if not name.startswith("_")}
                got.setdefault(record.history.step.num, {}).update(values)
    assert len(names) == 1 and next(iter(names))[:2] == ("project", "r")
    same(got, wanted)


@pytest.mark.filterwarnings("ignore")
def test_trackio(tiny_config, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    for module in ("trackio.utils", "trackio.sqlite_storage"):
        monkeypatch.setattr(f"{module}.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    wanted = half_and_half(tiny_config, tmp_path / "r", "trackio:project")
    (found,) = trackio.Api().runs("project")
    assert found.name == "r"
    from trackio.sqlite_storage import SQLiteStorage

    got: dict[int, dict[str, float]] = {}
    for entry in SQLiteStorage.get_logs("project", "r"):
        got.setdefault(entry["step"], {}).update({k: v for k, v in entry.items() if k not in ("step", "timestamp")})
    same(got, wanted)
    assert found.config["policy.name"] == "joint"
