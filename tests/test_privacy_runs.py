"""Whole runs under differential privacy: what is written and told, resume bit for bit, nothing changed without it."""

import json

import pytest
import torch
from benchmarks import study_privacy
from safetensors.torch import load_file
from tests.reference.crashes import Crash, assert_alike, crash_on

from airtune.experiment import resume, run
from airtune.learning.accountant import epsilon
from airtune.learning.privacy import Guard
from airtune.page.page import write_page
from airtune.report import report_run
from airtune.tables import render_run

pytest.importorskip("dp_accounting")
STRONG = {"mechanism": "central", "noise_multiplier": 4.0, "clip_norm": 0.5, "delta": 1e-4}
CASES = {
    "central": ({**STRONG}, {"method": "nested"}),
    "central-inverse": ({**STRONG}, {"method": "rolora", "lost": "inverse", "server_optimizer": "adam"}),
    "central-energy": ({**STRONG}, {"method": "fedit", "basis": "energy"}),
    "local-carry": ({**STRONG, "mechanism": "local"}, {"method": "sum", "lost": "carry", "context": "slice"}),
    "local-flora": ({**STRONG, "mechanism": "local"}, {"method": "flora", "average": 0.0}),
}


def rows_of(path, name="rounds.jsonl"):
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_a_private_run_tells_its_epsilon_and_resumes_where_it_stopped(case, tiny_config, tmp_path, monkeypatch):
    privacy, learning = CASES[case]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = tiny_config(whole, privacy=privacy, learning=learning)
    summary = run(config)
    sent, worst = {}, []
    for row in rows_of(whole, "devices.jsonl"):
        sent[row["device"]] = sent.get(row["device"], 0) + (row["module"] > 0)
        if row["device"] == 5:  # the last of the round's rows
            worst.append(max(sent.values()))
    rounds = rows_of(whole)
    assert [row["epsilon"] for row in rounds] == [epsilon(config.privacy, count) for count in worst]
    assert all(row["loss"] is None for row in rounds) and sum(row["delivered"] for row in rounds) > 0
    assert summary["epsilon"] == rounds[-1]["epsilon"] <= epsilon(config.privacy, config.rounds)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_on(patch, "append_round", 3)
        run(tiny_config(cut, privacy=privacy, learning=learning))
    resume(cut)
    assert_alike(cut, whole)


def test_without_noise_under_a_norm_that_no_update_reaches_nothing_changes(tiny_config, tmp_path, monkeypatch):
    """Both mechanisms then give the unprotected run; that one has no trace of privacy in rows and checkpoint."""
    same = {"policy": {"name": "capability", "account": "none"}, "fleet": {"budget_scale": 1e6}}
    monkeypatch.setattr(Guard, "_noise", lambda self, like, *_: {name: 0.0 * tensor for name, tensor in like.items()})
    for name, privacy in (
        ("off", {}),
        *((each, {"mechanism": each, "clip_norm": 1e3}) for each in ("central", "local")),
    ):
        run(tiny_config(tmp_path / name, privacy=privacy, **same))
    plain, state = rows_of(tmp_path / "off"), load_file(tmp_path / "off/state.safetensors")
    assert not any("epsilon" in row for row in plain) and not any("privacy" in name for name in state)
    for name in ("central", "local"):
        private = rows_of(tmp_path / name)
        assert [{**row, "loss": None} for row in plain] == [
            {key: value for key, value in row.items() if key != "epsilon"} for row in private
        ]
        kept = load_file(tmp_path / name / "state.safetensors")
        assert all(kept[each].equal(state[each]) for each in state)
        assert kept["kept/privacy/sent"].tolist() == [4] * 6


def test_noise_is_what_moves_a_private_run(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "one", privacy=STRONG))
    run(tiny_config(tmp_path / "other", privacy={**STRONG, "noise_multiplier": 8.0}))
    one, other = (load_file(tmp_path / name / "state.safetensors") for name in ("one", "other"))
    moved = [name for name in one if name.startswith("adapters/") and not one[name].equal(other[name])]
    assert moved and all(torch.isfinite(one[name]).all() for name in moved)


def test_show_and_the_model_card_tell_epsilon(tiny_config, tmp_path, capsys):
    from rich.console import Console

    for name, privacy in (("off", {}), ("on", STRONG)):
        run(tiny_config(tmp_path / name, rounds=2, privacy=privacy))
    told = capsys.readouterr().out
    assert "central differential privacy: updates clipped to 0.5" in told.replace("\n", " ")
    card = (tmp_path / "on/adapter/README.md").read_text()
    cost = rows_of(tmp_path / "on")[-1]["epsilon"]
    assert f"ε = {cost:.4g} at δ = 0.0001" in card and "protects nobody who knows it" in card
    assert "| differential privacy | none |" in (tmp_path / "off/adapter/README.md").read_text()
    console = Console(width=200)
    for name, shown in (("off", False), ("on", True)):
        with console.capture() as capture:
            console.print(render_run(report_run(tmp_path / name)))
        assert ("at δ 0.0001, central, worst device; noise from the run's seed" in capture.get()) == shown
        write_page([tmp_path / name], tmp_path / f"{name}.html", lambda config: None)
        assert ('data-label="ε"' in (tmp_path / f"{name}.html").read_text()) == shown


def test_the_study_has_a_line_for_every_point_least_noise_first():
    rows = [
        {key: str(value) for key, value in cell.key.items()}
        | {"accuracy": str(0.5 + cell.key["seed"] / 100), "epsilon": "" if cell.key["mechanism"] == "none" else "3.21"}
        for cell in study_privacy.cells(3)
    ]
    lines = study_privacy.table(rows).splitlines()
    assert lines[2] == "| none | 0 | ∞ | 51.0 ± 2.5 | 3 |" and lines[-1] == "| local | 1 | 3.21 | 51.0 ± 2.5 | 3 |"
    assert [float(line.split("|")[2]) for line in lines[3:-1]] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert len({json.dumps(cell.key) for cell in study_privacy.cells(2)}) == 2 * len(study_privacy.POINTS)
