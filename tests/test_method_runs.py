"""Whole runs under every federated LoRA method: they write what others write, and resume bit for bit."""

import json

import pytest
from safetensors.torch import load_file

from airtune.experiment import resume, run
from airtune.record import RunFolder
from airtune.types import AirtuneError

PLAIN = {"average": 0.0}  # the tiny configuration has the plain server otherwise
CASES = [
    {"method": "hetlora"},
    {"method": "flexlora", **PLAIN},
    {"method": "flora", **PLAIN},
    {"method": "fedex", **PLAIN},
    {"method": "fedsa", **PLAIN},
    {"method": "rolora", "server_optimizer": "yogi", "server_rate": 0.01, "server_momentum": 0.9},
    {"lost": "carry", "context": "slice"},
    {"lost": "inverse", "method": "ffa", "proximal": 0.1, "schedule": "linear", "warmup_rounds": 1},
]


class Stop(Exception):
    pass


@pytest.mark.parametrize("learning", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_run_resumes_where_it_stopped(learning, tiny_config, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run(tiny_config(whole, learning=learning))
    assert 0.0 <= summary["accuracy"] <= 1.0
    rows = [json.loads(line) for line in (whole / "rounds.jsonl").read_text().splitlines()]
    assert sum(row["delivered"] for row in rows) > 0
    assert all((row["uplink_bit"] > 0) == (row["scheduled"] > 0) for row in rows)
    real, calls = RunFolder.append_round, iter(range(9))

    def stopping(self, *args, **kwargs):
        if next(calls) == 2:
            raise Stop
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(RunFolder, "append_round", stopping)
        run(tiny_config(cut, learning=learning))
    resume(cut)
    for name in ("rounds.jsonl", "devices.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    one, other = (load_file(path / "state.safetensors") for path in (whole, cut))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_methods_pay_for_what_they_send(tiny_config, tmp_path):
    """Over the same devices FFA sends less up than FedIT; FLoRA's second round brings more down than its first."""
    same = {"policy": {"name": "capability", "account": "none"}, "fleet": {"budget_scale": 1e6}, "rounds": 2}
    rows = {}
    for method in ("fedit", "ffa", "flora"):
        path = tmp_path / method
        run(
            tiny_config(
                path, learning={"method": method, "context": "slice", **PLAIN}, world={"deadline_s": 3.0}, **same
            )
        )
        rows[method] = [json.loads(line) for line in (path / "rounds.jsonl").read_text().splitlines()]
    assert rows["ffa"][0]["scheduled"] == rows["fedit"][0]["scheduled"] > 0
    assert rows["ffa"][0]["uplink_bit"] < rows["fedit"][0]["uplink_bit"] == rows["flora"][0]["uplink_bit"]
    assert rows["flora"][0]["downlink_bit"] < rows["fedit"][0]["downlink_bit"]
    if rows["flora"][0]["delivered"]:
        assert rows["flora"][1]["downlink_bit"] > rows["flora"][0]["downlink_bit"]


def test_delivery_is_given_and_refused_where_power_is_chosen(tiny_config, tmp_path):
    same = {"policy": {"name": "capability", "account": "none"}, "fleet": {"budget_scale": 1e6}}
    run(tiny_config(tmp_path / "all", world={"delivery": 1.0, "deadline_s": 9.0}, **same))
    rows = [json.loads(line) for line in (tmp_path / "all/rounds.jsonl").read_text().splitlines()]
    assert all(row["delivered"] == row["scheduled"] > 0 for row in rows)
    with pytest.raises((AirtuneError, ValueError), match="neither power nor band"):
        tiny_config(tmp_path / "joint", world={"delivery": 0.7})
