"""Evaluation: a pass over the dev samples only where model or samples have changed, and rows as if there were one."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch

from airtune.build import build
from airtune.experiment import resume, run
from airtune.judging import Judge, _Judged
from airtune.learning.engine import Engine
from airtune.learning.lora import same_tensors
from airtune.record import RunFolder

LOSSY = {"rounds": 8, "policy": {"name": "traditional"}, "world": {"snr_gap_db": 19.0}}
"""Rounds with and without an upload that arrives."""


@pytest.fixture
def passes(monkeypatch):
    """Number of samples of each pass over dev samples."""
    real, seen = Engine.logits, []

    def counting(self, adapters, tokens, index):
        seen.append(len(index))
        return real(self, adapters, tokens, index)

    monkeypatch.setattr(Engine, "logits", counting)
    return seen


def lossy(tiny_config, out):
    return tiny_config(out, **LOSSY, task={"eval_every": 1})


def rows_of(out):
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_a_round_without_an_upload_costs_no_pass(tiny_config, tmp_path, passes):
    """A pass for θ_1, one after each delivery since, and one over the whole dev set."""
    run(lossy(tiny_config, tmp_path / "run"))
    rows = rows_of(tmp_path / "run")
    moved = [row["delivered"] > 0 for row in rows]
    assert 0 < sum(moved[1:]) < 7, "the radio of this test should deliver in some rounds only"
    assert passes == [40] * (1 + sum(moved[1:])) + [80]
    for before, after in itertools.pairwise(rows):
        assert after["delivered"] or after["accuracy"] == before["accuracy"]


def test_rows_are_those_of_a_pass_in_every_round_also_after_a_resume(tiny_config, tmp_path, passes, monkeypatch):
    run(lossy(tiny_config, tmp_path / "run"))
    spared = len(passes)
    with monkeypatch.context() as patch:
        patch.setattr(_Judged, "covers", lambda *_: False)
        run(lossy(tiny_config, tmp_path / "every"))
    assert len(passes) - spared == 9 > spared
    quiet = next(row["t"] for row in rows_of(tmp_path / "run")[1:] if not row["delivered"])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_checkpoint", stopping_at(quiet, stop))
        run(lossy(tiny_config, tmp_path / "cut"))
    assert len(rows_of(tmp_path / "cut")) == quiet + 1
    resume(tmp_path / "cut")
    for name in ("every", "cut"):
        assert (tmp_path / name / "rounds.jsonl").read_bytes() == (tmp_path / "run/rounds.jsonl").read_bytes()
        summaries = [json.loads((tmp_path / each / "summary.json").read_text()) for each in (name, "run")]
        assert all(summary.pop("wall_s") for summary in summaries) and summaries[0] == summaries[1]


def stopping_at(t, stop):
    """`save_checkpoint` that stops before the checkpoint of round t is written."""
    real = RunFolder.save_checkpoint

    def saving(self, tensors, meta):
        return stop() if meta["t"] == t + 1 else real(self, tensors, meta)

    return saving


def test_a_subset_that_is_the_whole_dev_set_is_judged_once(tiny_config, tmp_path, passes):
    config = tiny_config(tmp_path / "run", rounds=1, task={"eval_samples": 500, "eval_every": 1})
    summary = run(config)
    assert passes == [80] and summary["accuracy"] == rows_of(tmp_path / "run")[-1]["accuracy"]


def test_what_has_changed_is_judged_anew(tiny_config, tmp_path, passes):
    """Another sample, another value of one tensor; equal values in other memory are no change."""
    experiment = build(tiny_config(tmp_path / "run"))
    judge, start, index = Judge(experiment), experiment.start, np.arange(30)

    def with_average(average):
        return dataclasses.replace(start, server=dataclasses.replace(start.server, average=average))

    first = judge.judge(start, index)
    copied = with_average({name: tensor.clone() for name, tensor in start.server.average.items()})
    assert judge.judge(copied, index.copy()) is first and passes == [30]
    judge.judge(start, index[1:])
    assert passes == [30, 29]
    moved = with_average(start.server.average | {"classifier.bias": torch.tensor([0.0, 9.0])})
    assert not same_tensors(moved.server.average, start.server.average)
    judge.judge(moved, index[1:])
    judge.judge(start, index[1:])
    assert passes == [30, 29, 29, 29]


def test_each_sample_is_judged_by_its_own_model(tiny_config, tmp_path, passes, monkeypatch):
    """Two models that say one class whatever they read; they take turns over the samples asked for."""
    experiment = build(tiny_config(tmp_path / "run"))
    average = dict(experiment.start.server.average)
    models = tuple(average | {"classifier.bias": torch.tensor(bias)} for bias in ([99.0, -99.0], [-99.0, 99.0]))
    monkeypatch.setattr(type(experiment.system.method), "models", lambda *_: models)
    zeros, ones = (np.flatnonzero(experiment.learner.dev.label == label) for label in (0, 1))
    for first, second, expected in ((zeros, ones, 1.0), (ones, zeros, 0.0), (zeros, zeros, 0.6), (ones, ones, 0.4)):
        index = np.empty(5, dtype=np.int64)
        index[0::2], index[1::2] = first[:3], second[:2]
        passes.clear()
        assert Judge(experiment).judge(experiment.start, index).score == expected and passes == [3, 2]
    assert Judge(experiment).judge(experiment.start, zeros[:1]).score == 1.0, "one sample: the first model alone"
