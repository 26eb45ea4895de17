"""What the benchmark against Flower does without Flower: the loops of both sides, its figures, its refusals."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from benchmarks import bench_flower, flower_sides
from benchmarks.processes import Watch, cpu_s, pss_byte, tree
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification

from airtune.learning.data import TokenSet
from airtune.learning.lora import family_of

DEVICES, STEPS, ROUNDS = 3, 2, 2


def small_bert():
    config = BertConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        initializer_range=0.25,
        num_labels=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return BertForSequenceClassification(config).eval()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Tokens and an initial adapter as `prepare` leaves them, over a small model."""
    monkeypatch.setattr(flower_sides, "resolve_model", lambda config: None)
    monkeypatch.setattr(flower_sides, "load_classifier", lambda source, classes: (small_bert(), None))
    draw = np.random.default_rng(2)
    lengths = draw.integers(2, 12, size=20 * DEVICES)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(1, 64, size=offsets[-1])
    label = draw.integers(2, size=len(lengths))
    np.savez(tmp_path / "tokens.npz", ids=ids, type_ids=np.zeros_like(ids), offsets=offsets, label=label)
    model = small_bert()
    save_file(dict(family_of(model, "bert", flower_sides.MODULES).initial(0)), tmp_path / "start.safetensors")
    return tmp_path


def test_both_sides_reach_the_same_adapter(place):
    ours, marks = flower_sides.airtune_rounds(place, DEVICES, STEPS, ROUNDS, 1)
    peft, tokens = flower_sides.peft_client(place, torch.get_num_threads()), flower_sides.tokens_at(place)
    start = theirs = {name: tensor.clone() for name, tensor in peft.start.items()}
    for t in range(ROUNDS):  # what Flower's FedAvg does with clients of equally many samples
        peft.start, ends = theirs, []
        for device in range(DEVICES):
            peft.reset()
            peft.train(tokens, flower_sides.steps_of(tokens, DEVICES, STEPS, t, device))
            ends.append({name: tensor.detach().clone() for name, tensor in peft.trained.items()})
        theirs = {name: sum(end[name] for end in ends) / DEVICES for name in start}
    moved = torch.cat([(theirs[name] - start[name]).flatten() for name in start])
    apart = torch.cat([(theirs[name] - ours[name]).flatten() for name in start])
    assert moved.norm() > 0.1
    assert apart.norm() < 1e-4 * moved.norm()
    assert len(marks) == ROUNDS + 1 and marks == sorted(marks)


def test_devices_draw_from_their_own_samples():
    lengths = np.full(61, 3)
    tokens = TokenSet(np.zeros(183, np.int64), None, np.arange(0, 186, 3), np.zeros(61, np.int64), None)
    assert len(tokens) == len(lengths)
    drawn = [
        {int(i) for t in range(9) for batch in flower_sides.steps_of(tokens, DEVICES, 4, t, k) for i in batch}
        for k in range(DEVICES)
    ]
    assert not (drawn[0] & drawn[1] or drawn[0] & drawn[2] or drawn[1] & drawn[2])
    assert sum(map(len, drawn)) == 61


def test_figures_of_a_repetition():
    marks = [[103.0, 4.0], [110.0, 9.0], [112.0, 12.0], [115.0, 15.0]]
    figures = bench_flower.figures_of(marks, 100.0, [50, 60, 40])
    assert figures == {"round_s": 2.5, "round_cpu_s": 3.0, "tokens_s": 20.0, "start_s": 7.5}


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_side_that_lacks_rounds_is_refused(rounds):
    marks = [[float(t), float(t)] for t in range(rounds + 1)]
    with pytest.raises(SystemExit, match=f"told of {rounds} rounds where 3"):
        bench_flower.figures_of(marks, 0.0, [1, 1, 1])


@pytest.mark.parametrize(("change", "refused"), [(1e-5, False), (1e-2, True)])
def test_sides_that_differ_are_refused(tmp_path, change, refused):
    start = {"a": torch.zeros(3), "b": torch.ones(2, 2)}
    save_file(start, tmp_path / "start.safetensors")
    save_file({name: tensor + 1.0 for name, tensor in start.items()}, tmp_path / "one.safetensors")
    save_file({name: tensor + 1.0 + change for name, tensor in start.items()}, tmp_path / "other.safetensors")
    if refused:
        with pytest.raises(SystemExit, match="do not do the same"):
            bench_flower.refuse_difference(tmp_path, ["one", "other"])
    else:
        bench_flower.refuse_difference(tmp_path, ["one", "other"])


def test_the_fastest_settings_are_compared(capsys):
    def rows(*seconds):
        return [dict.fromkeys(bench_flower.HEADS, s) for s in seconds]

    bench_flower.table({"airtune-1x2": rows(4.0, 4.0), "airtune-2x1": rows(2.0, 1.0), "flower-1x2": rows(6.0, 5.0)})
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[:5] == ["best", "over", "best", "4", "(3-5)"]


def test_a_tree_of_processes_is_counted():
    spin = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    nested = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {spin + 'print(1, flush=True); input()'!r}])"
    )
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        child.stdout.readline()
        watch = Watch(child.pid, 0.01)
        pids = list(tree(child.pid))
        assert pids[0] == child.pid and len(pids) == 2
        assert 0.25 < cpu_s(pids[1]) < 5.0
        assert all(pss_byte(pid) > 1e6 for pid in pids)
        assert child.pid in set(tree(os.getpid()))
        end = time.monotonic() + 30.0
        while watch.cpu_s < 0.25 and time.monotonic() < end:
            time.sleep(0.01)
        child.communicate("\n")
        watch.end()
        assert watch.cpu_s > 0.25 and watch.peak_byte > 2e6
        assert cpu_s(child.pid) == pss_byte(child.pid) == 0
    finally:
        child.kill()
