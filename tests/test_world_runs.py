"""Whole runs in worlds of other kinds: resumed bit for bit, and refused where they cannot go on."""

import importlib.util
import json
import math

import numpy as np
import pandas as pd
import pytest
from tests.test_experiment import begun

from airtune.build import build
from airtune.cli import run_cli
from airtune.experiment import resume, run
from airtune.physics.link import OutageLink
from airtune.types import AirtuneError

needs_sionna = pytest.mark.skipif(
    importlib.util.find_spec("sionna") is None, reason="Sionna is not installed (pip install 'airtune[sionna]')"
)


@pytest.fixture
def trace(tmp_path):
    """Four rounds of six devices."""
    t, device = np.divmod(np.arange(24), 6)
    rng = np.random.default_rng(0)
    path = tmp_path / "trace.csv"
    table = {"round": t, "device": device, "gain_db": rng.normal(-95, 6, 24)}
    table |= {"throughput_bit_per_s": rng.uniform(0, 1e6, 24), "available": (rng.random(24) < 0.9).astype(int)}
    pd.DataFrame(table).to_csv(path, index=False)
    return path


def same(first, second):
    for name in ("rounds.jsonl", "devices.jsonl", "state.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def resumed_equals_whole(tiny_config, tmp_path, monkeypatch, **changes):
    run(tiny_config(tmp_path / "whole", **changes))
    resume(begun(tiny_config, tmp_path / "cut", monkeypatch, **changes))
    same(tmp_path / "whole", tmp_path / "cut")
    return [row for row in (tmp_path / "whole/devices.jsonl").read_text().splitlines() if '"delivered":true' in row]


def test_a_run_over_a_trace_resumes_bit_for_bit(tiny_config, tmp_path, monkeypatch, trace):
    changes = {"world": {"kind": "trace"}, "trace": {"file": trace}}
    assert resumed_equals_whole(tiny_config, tmp_path, monkeypatch, **changes)


def test_a_changed_trace_is_refused(tiny_config, tmp_path, monkeypatch, trace):
    path = begun(tiny_config, tmp_path / "run", monkeypatch, world={"kind": "trace"}, trace={"file": trace})
    before = trace.read_bytes()
    trace.write_bytes(before.replace(b"0,0,-", b"0,0,-1", 1))
    with pytest.raises(AirtuneError, match="the trace has changed since the run began"):
        resume(path)
    trace.write_bytes(before)
    assert resume(path)["rounds"] == 4


def test_a_bad_trace_is_one_line_and_exit_code_2(tiny, tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("round,device,gain_db\n0,0,-90\n")
    options = ["--world.kind", "trace", "--trace.file", str(tmp_path / "bad.csv"), "--out", str(tmp_path / "run")]
    assert run_cli(["run", tiny, *options]) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith("bad.csv: has 1 devices; fleet.devices 1 would be right, got 6") and "\n" not in told


def test_a_ceiling_holds_in_the_rows_and_is_what_deliveries_obey(tiny_config, tmp_path):
    """(16) over whole runs: a lower ceiling, more band for each upload; a rate that nothing reaches changes nothing."""
    most = {}
    for ceiling in (None, 1000.0, 0.5):
        config = tiny_config(tmp_path / str(ceiling), world={"max_efficiency_bit_per_s_hz": ceiling})
        link = build(config).system.cell.link
        assert isinstance(link, OutageLink) and link.max_efficiency_bit_per_s_hz == (ceiling or math.inf)
        run(config)
        rows = [json.loads(line) for line in (config.out / "devices.jsonl").read_text().splitlines()]
        sent = [row for row in rows if row["module"] > 0]
        payload_bit = build(config).learner.modules.payload_bit
        most[ceiling] = max(
            payload_bit[row["module"] - 1] / (row["bandwidth_hz"] * config.world.deadline_s) for row in sent
        )
        assert any(row["delivered"] for row in sent)
    assert most[1000.0] == pytest.approx(most[None], rel=1e-6)
    assert 0.2 < most[0.5] <= 0.5 < most[None]


@needs_sionna
def test_over_nr_tables_the_ceiling_is_theirs_unless_told(tiny_config, tmp_path):
    def ceiling(**changes):
        return build(tiny_config(tmp_path / "run", **changes)).system.cell.link.max_efficiency_bit_per_s_hz

    nr = {"world": {"kind": "sionna"}}
    assert ceiling(**nr) == pytest.approx(4.25, abs=0.01)
    assert ceiling(**nr, sionna={"mcs_table": 2}) == pytest.approx(5.71, abs=0.01)
    assert ceiling(**nr, sionna={"reserve": 0.0}) == pytest.approx(4.68, abs=0.01)
    assert ceiling(**nr, sionna={"deliveries": "rayleigh"}) == math.inf
    assert ceiling(world={"kind": "sionna", "max_efficiency_bit_per_s_hz": 2.0}) == 2.0


@needs_sionna
@pytest.mark.parametrize("scenario", ["umi", "rma"])
def test_a_run_over_sionna_resumes_bit_for_bit(tiny_config, tmp_path, monkeypatch, scenario):
    changes = {
        "world": {"kind": "sionna", "vehicle_speed_mps": 10.0, "snr_gap_db": 15.0},
        "fleet": {"vehicle": 0.5},
        "sionna": {"scenario": scenario, "indoor": 0.3, "fading_speed_mps": 0.8},
    }
    assert resumed_equals_whole(tiny_config, tmp_path, monkeypatch, **changes)
