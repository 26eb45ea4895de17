"""Whole runs under every federated LoRA method: they write what others write, and resume bit for bit."""

import json

import pytest
from tests.reference.crashes import Crash, assert_alike, crash_on

from airtune.experiment import resume, run
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


@pytest.mark.parametrize("learning", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_a_run_resumes_where_it_stopped(learning, tiny_config, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    summary = run(tiny_config(whole, learning=learning))
    assert 0.0 <= summary["accuracy"] <= 1.0
    rows = [json.loads(line) for line in (whole / "rounds.jsonl").read_text().splitlines()]
    assert sum(row["delivered"] for row in rows) > 0
    assert all((row["uplink_bit"] > 0) == (row["scheduled"] > 0) for row in rows)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, "append_round", 3)
        run(tiny_config(cut, learning=learning))
    resume(cut)
    assert_alike(cut, whole)


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
