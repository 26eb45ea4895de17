"""Training and evaluation from kept hidden states against the same engine without them."""

import gc
import os
import tempfile

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning import prefix
from airtune.learning.engine import Rates
from airtune.learning.pupil import Pupil
from airtune.learning.stacked import train_stack

RATES = Rates(adapter=5e-3, head=2e-3, server=1.0)
KINDS = ["bert", "roberta", "llama", "mistral-window"]
ROW_BYTE = 4 * 32
"""States of one token: the hidden width of the tiny models in float32."""


def settings(memory_byte, **changes):
    return LearningConfig(prefix_cache_byte=memory_byte, packing="packed", **changes)


def kept(case):
    """Where states are kept: layer → store."""
    return {depth: store for (_, depth), store in case.engine.batcher.prefix.stores.items()}


def open_files(folder):
    """Open files of this process in a folder, named or not."""
    links = (os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd"))
    return [target for link in links if os.path.exists(link) and (target := os.readlink(link)).startswith(str(folder))]


def train(case, module, adapters, whole):
    rng = np.random.default_rng(3)
    batches = [rng.choice(len(case.tokens), size) for size in (5, 6, 4)]  # with repeats
    rest = case.family.rest(adapters, module) if whole else None
    return case.engine.train(case.family.slice(adapters, module), case.tokens, batches, RATES, rest=rest)


def assert_same(got, want):
    assert got.loss == pytest.approx(want.loss, rel=1e-5) and got.tokens == want.tokens
    for name, change in want.delta.items():
        assert change.norm() > 1e-5
        assert float((got.delta[name] - change).norm()) <= 1e-3 * float(change.norm()) + 2e-6, name


@pytest.mark.parametrize("memory_byte", [10**6, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_scores_are_those_without(kit, kind, memory_byte, tmp_path, monkeypatch):
    """Cold and warm, slice and whole, in memory and in a file; only layers below all that is attached are skipped."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plain = kit.setup(kind, learning=settings(0))
    case = kit.setup(kind, learning=settings(memory_byte))
    adapters = kit.random_adapters(plain.family)
    assert plain.engine.batcher.prefix is None
    for whole, depths in ((True, set()), (False, {2})):
        want = train(plain, 1, adapters, whole)
        for _ in range(2):
            assert_same(train(case, 1, adapters, whole), want)
            assert set(kept(case)) == depths
    assert kept(case)[2].in_memory == (memory_byte > 1)
    index = np.arange(len(case.tokens))[::-1].copy()
    for module, part in ((1, case.family.slice(adapters, 1)), (2, adapters)):
        want = plain.engine.logits(part, plain.tokens, index)
        (
            np.testing.assert_allclose(
                case.engine.logits(part, case.tokens, index), want, rtol=0, atol=3e-5 * np.abs(want).max()
            ),
            module,
        )
    assert kept(case)[2].known.all() and set(kept(case)) == {2}
    assert os.listdir(tmp_path) == [] and len(open_files(tmp_path)) == (memory_byte == 1)
    del case
    gc.collect()
    assert open_files(tmp_path) == []


def test_states_are_a_plain_model_s(kit):
    """What is kept is the plain padded model's hidden states, for each real token."""
    case = kit.setup("bert", learning=settings(10**6))
    train(case, 1, kit.random_adapters(case.family), False)
    store = kept(case)[2]
    index = np.flatnonzero(store.known)
    assert 5 < len(index) < len(case.tokens)
    with torch.no_grad():
        inputs = kit.padded_inputs(case.tokens, index, 0)
        hidden = case.plain.bert(**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(store.get(index), hidden[inputs["attention_mask"].bool()], rtol=1e-4, atol=1e-4)


def test_warm_steps_run_no_layer_below(kit):
    case = kit.setup("bert", learning=settings(10**6))
    adapters, seen = kit.random_adapters(case.family), []
    for j, layer in enumerate(case.engine.batcher.backbone.layers):
        layer.register_forward_hook(lambda *_, j=j: seen.append(j))
    train(case, 1, adapters, False)
    assert set(seen) == {0, 1, 2, 3}
    seen.clear()
    train(case, 1, adapters, False)
    assert set(seen) == {2, 3}


def test_what_is_merged_into_a_frozen_weight_is_not_skipped(kit):
    """A change merged into layer 1 moves the scores of a slice of the top two layers, with states kept as without."""
    plain = kit.setup("bert", learning=settings(0))
    case = kit.setup("bert", learning=settings(10**6))
    adapters, index = kit.random_adapters(case.family), np.arange(8)
    part = case.family.slice(adapters, 1)
    before = case.engine.logits(part, case.tokens, index)
    matrix = next(matrix for matrix in case.family.matrices if matrix.layer == 1)
    part[f"{matrix.name}.merged"] = 0.3 * torch.randn(matrix.out_features, matrix.in_features)
    want = plain.engine.logits(part, plain.tokens, index)
    got = case.engine.logits(part, case.tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())
    assert np.abs(got - before).max() > 1e-2 and set(kept(case)) == {1, 2}


def test_states_do_not_depend_on_the_batch_they_first_came_in(kit):
    stores = []
    for order in (np.arange(20), np.arange(20)[::-1].copy()):
        case = kit.setup("bert", learning=settings(10**6))
        for chunk in np.split(order, 4):
            case.engine.logits(case.family.slice(kit.random_adapters(case.family), 1), case.tokens, chunk)
        stores.append(kept(case)[2].get(np.arange(20)))
    assert torch.equal(*stores)


def test_memory_stays_within_its_bound(kit, tmp_path, monkeypatch):
    """Two token sets of which the bound holds one: the second goes to a file; a third finds the disk full."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sets = [kit.token_set(12, seed=seed, segments=True) for seed in range(3)]
    bound = ROW_BYTE * max(int(tokens.offsets[-1]) for tokens in sets)
    case = kit.setup("bert", learning=settings(bound))
    plain = kit.setup("bert", learning=settings(0))
    part, index = case.family.slice(kit.random_adapters(case.family), 1), np.arange(12)
    for n, tokens in enumerate(sets):
        if n == 2:
            monkeypatch.setattr(prefix.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
        want = plain.engine.logits(part, tokens, index)
        got = case.engine.logits(part, tokens, index)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())
        assert case.engine.batcher.prefix.held_byte <= bound
    stores = list(case.engine.batcher.prefix.stores.values())
    assert [store and store.in_memory for store in stores] == [True, False, None]


def test_a_disk_that_fills_up_is_done_without(kit, monkeypatch):
    plain = kit.setup("bert", learning=settings(0))
    case = kit.setup("bert", learning=settings(1))
    part, index = case.family.slice(kit.random_adapters(case.family), 1), np.arange(12)
    monkeypatch.setattr(prefix.Store, "put", lambda *_: False)
    want = plain.engine.logits(part, plain.tokens, index)
    np.testing.assert_allclose(
        case.engine.logits(part, case.tokens, index), want, rtol=0, atol=3e-5 * np.abs(want).max()
    )
    assert kept(case) == {2: None}


def test_stacked_devices_start_from_kept_states(kit):
    plain = kit.setup("bert", learning=settings(0))
    case = kit.setup("bert", learning=settings(10**6))
    rng, adapters = np.random.default_rng(5), kit.random_adapters(case.family)
    start = case.family.slice(adapters, 1)
    jobs = [Pupil(start, [rng.choice(20, size) for _ in range(2)], RATES) for size in (4, 6)]
    want = train_stack(plain.engine, plain.tokens, jobs)
    for _ in range(2):
        for got, one in zip(train_stack(case.engine, case.tokens, jobs), want, strict=True):
            assert_same(got, one)
    assert set(kept(case)) == {2}


def test_it_is_left_off_where_logits_differ_or_the_structure_is_not_known(kit, monkeypatch):
    assert kit.setup("distilbert", learning=settings(10**6)).engine.batcher.prefix is None
    right = prefix.Store.get
    monkeypatch.setattr(prefix.Store, "get", lambda *given: 1.5 * right(*given))
    assert kit.setup("bert", learning=settings(10**6)).engine.batcher.prefix is None
