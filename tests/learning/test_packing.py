"""Packed batches against plain padded models: logits and gradients of every architecture."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.config import LearningConfig
from airtune.learning import pruning
from airtune.learning.bucketing import Bucketer
from airtune.learning.data import TokenSet
from airtune.learning.packed import pack
from airtune.learning.packing import Packer, batcher_of
from airtune.types import AirtuneError

PACKABLE = (
    "bert",
    "roberta",
    "distilbert",
    "llama",
    "llama-no-padding",
    "mistral-window",
    "modernbert-window",
)

CPU = LearningConfig(device="cpu")
"""Where the references are."""


@pytest.fixture(params=PACKABLE)
def case(request, kit):
    return kit.setup(request.param, learning=CPU)


def test_layout_by_hand(kit):
    """Samples of 3 and 5 tokens, the longer one first."""
    tokens = kit.token_set(2, segments=True, shortest=3, longest=5)
    batch = pack(tokens, np.array([1, 0]))
    assert batch.input_ids.tolist() == [[*tokens.ids[3:8].tolist(), *tokens.ids[:3].tolist()]]
    assert batch.type_ids.tolist() == [[*tokens.type_ids[3:8].tolist(), *tokens.type_ids[:3].tolist()]]
    assert batch.position.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.rows.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 5, 5]]
    assert batch.keep[:, 0, 0].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.cells.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 0, 0]]
    assert batch.back.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (batch.first.tolist(), batch.last.tolist()) == ([0, 5], [4, 7])
    assert pack(tokens, np.array([0, 0])).keep is None


def test_short_sequences_share_rows():
    """Samples of 2, 5, 3 and 1 tokens: 5 alone, 3 and 2 in a row, 1 in a third, each token seeing its own sequence."""
    offsets = np.array([0, 2, 7, 10, 11])
    tokens = TokenSet(np.arange(11, dtype=np.int32), None, offsets, np.zeros(4, dtype=np.int64), None)
    batch = pack(tokens, np.arange(4))
    assert batch.cells.tolist() == [[2, 3, 4, 5, 6], [7, 8, 9, 0, 1], [10, 0, 0, 0, 0]]
    assert batch.back.tolist() == [8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 10]
    assert batch.seen.shape == (3, 1, 5, 5)
    assert batch.seen[1, 0].int().tolist() == [[1, 1, 1, 0, 0]] * 3 + [[0, 0, 0, 1, 1]] * 2
    assert batch.seen[2, 0].int().tolist() == [[1, 0, 0, 0, 0]] + [[0, 1, 1, 1, 1]] * 4
    assert pack(tokens, np.array([1, 1])).seen is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_rows_hold_every_token_once(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = TokenSet(np.arange(offsets[-1], dtype=np.int32), None, offsets, np.zeros(len(lengths), np.int64), None)
    batch = pack(tokens, np.arange(len(lengths)))
    assert batch.cells.flatten()[batch.back].tolist() == list(range(offsets[-1]))
    assert len(batch.cells) <= len(lengths) and batch.cells.shape[1] == max(lengths)
    sees = torch.ones(len(batch.cells), 1, max(lengths), max(lengths)) if batch.seen is None else batch.seen
    for i, length in enumerate(lengths):
        cells = batch.back[offsets[i] : offsets[i + 1]]
        rows, columns = cells // max(lengths), cells % max(lengths)
        assert len(set(rows.tolist())) == 1 and columns.tolist() == list(range(columns[0], columns[0] + length))
        assert bool(sees[rows[0], 0, columns][:, columns].all()) and int(sees[rows[0], 0, columns].sum()) == length**2


def test_packed_logits_are_the_padded_ones(case, kit):
    assert case.engine.layout == "packed"
    adapters = kit.random_adapters(case.family)
    index = np.arange(len(case.tokens))
    for chosen in (index, index[1:2], index[::-3]):
        with torch.no_grad():
            want = kit.padded_logits(kit.merged(case.plain, case.family, adapters, 2), case.tokens, chosen).numpy()
        got = case.engine.logits(adapters, case.tokens, chosen)
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())
        assert np.ptp(want, axis=0).min() > 1e-2 or len(chosen) == 1  # samples differ, so mixing them would show


def test_packed_gradients_are_the_padded_ones(case, kit):
    """Both layouts of the same adapted model: gradient of every adapter tensor and of the head."""
    adapters = kit.random_adapters(case.family)
    index = np.arange(10)
    gradients = []
    bucketed = kit.setup(case.kind, learning=replace(CPU, packing="bucketed"))
    for one in (case, bucketed):
        part = {name: tensor.clone().requires_grad_() for name, tensor in adapters.items()}
        kit.attach(one, part)
        logits = one.engine.batcher.logits(one.tokens, index)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(one.tokens.label[index])).backward()
        gradients.append({name: tensor.grad for name, tensor in part.items()})
    assert (case.engine.layout, bucketed.engine.layout) == ("packed", "bucketed")
    for name, want in gradients[1].items():
        assert want.abs().max() > 0
        torch.testing.assert_close(gradients[0][name], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "mistral-window"])
def test_pruned_gradients_are_a_plain_model_s(kit, kind):
    """In float64 against the gradient of the plain padded model's dense weights: ∂L/∂B = (α/R) ∂L/∂W Aᵀ."""
    case = kit.setup(kind, learning=CPU, double=True)
    assert case.engine.batcher.backbone.pruned
    adapters = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    index = np.arange(12)
    label = torch.from_numpy(case.tokens.label[index])
    part = {name: tensor.clone().requires_grad_() for name, tensor in adapters.items()}
    kit.attach(case, part)
    logits = case.engine.batcher.logits(case.tokens, index)
    torch.nn.functional.cross_entropy(logits, label).backward()
    dense = kit.merged(case.plain, case.family, adapters, 2)
    want = kit.padded_logits(dense, case.tokens, index)
    torch.testing.assert_close(logits, want, rtol=1e-5, atol=1e-5)
    torch.nn.functional.cross_entropy(want, label).backward()
    weights = dict(dense.named_parameters())
    scale = case.family.alpha / case.family.ranks[-1]
    for matrix in case.family.matrices:
        a, b = part[f"{matrix.name}.lora_A"], part[f"{matrix.name}.lora_B"]
        of_weight = weights[f"{matrix.name}.weight"].grad
        torch.testing.assert_close(b.grad, scale * of_weight @ a.detach().T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.grad, scale * b.detach().T @ of_weight, rtol=1e-3, atol=1e-6)


def test_pruning_that_changes_the_logits_is_undone(kit, monkeypatch):
    """Attention of the pooled token with a wrong scale: the whole last layer runs instead, still packed."""
    right = pruning.pooled_attention
    monkeypatch.setattr(pruning, "pooled_attention", lambda *given: 2.0 * right(*given))
    case = kit.setup("bert")
    assert case.engine.layout == "packed" and not case.engine.batcher.backbone.pruned
    adapters, index = kit.random_adapters(case.family), np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(kit.merged(case.plain, case.family, adapters, 2), case.tokens, index).numpy()
    got = case.engine.logits(adapters, case.tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())


def test_gradients_of_the_padded_layout_are_a_plain_model_s(kit):
    """The bucketed layout itself, against the gradient of the dense weights: ∂L/∂B = (α/R) ∂L/∂W Aᵀ."""
    case = kit.setup("bert", learning=replace(CPU, packing="bucketed"), double=True)
    adapters = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    index = np.arange(12)
    label = torch.from_numpy(case.tokens.label[index])
    part = {name: tensor.clone().requires_grad_() for name, tensor in adapters.items()}
    kit.attach(case, part)
    torch.nn.functional.cross_entropy(case.engine.batcher.logits(case.tokens, index), label).backward()
    dense = kit.merged(case.plain, case.family, adapters, 2)
    torch.nn.functional.cross_entropy(kit.padded_logits(dense, case.tokens, index), label).backward()
    weights = dict(dense.named_parameters())
    scale = case.family.alpha / case.family.ranks[-1]
    for matrix in case.family.matrices:
        a, b = part[f"{matrix.name}.lora_A"], part[f"{matrix.name}.lora_B"]
        of_weight = weights[f"{matrix.name}.weight"].grad
        torch.testing.assert_close(b.grad, scale * of_weight @ a.detach().T, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(a.grad, scale * b.detach().T @ of_weight, rtol=1e-3, atol=1e-6)


def test_roberta_positions_start_after_the_padding_index(kit):
    """Without RoBERTa's offset the logits are wrong, and the check at the start sees it."""
    case = kit.setup("roberta")
    backbone = case.model.roberta
    assert backbone.position_offset == 2
    index = np.arange(6)
    right = case.engine.logits(case.family.initial(0), case.tokens, index)
    backbone.position_offset = 0
    wrong = case.engine.logits(case.family.initial(0), case.tokens, index)
    assert np.abs(right - wrong).max() > 1e-3 * np.abs(right).max()


def test_a_model_with_its_own_attention_is_bucketed_and_still_right(kit, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        case = kit.setup("deberta")
    assert case.engine.layout == "bucketed" and not caplog.records
    adapters = kit.random_adapters(case.family)
    index = np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(kit.merged(case.plain, case.family, adapters, 2), case.tokens, index).numpy()
    np.testing.assert_allclose(
        case.engine.logits(adapters, case.tokens, index), want, rtol=0, atol=3e-5 * np.abs(want).max()
    )
    with pytest.raises(AirtuneError, match=r"^learning\.packing: this model cannot be packed \(.+\); use auto or buck"):
        batcher_of(case.model, "packed", case.tokens)
    np.testing.assert_allclose(
        case.engine.logits(adapters, case.tokens, index), want, rtol=0, atol=3e-5 * np.abs(want).max()
    )


def test_a_model_whose_packed_logits_differ_is_left_as_it_was(kit):
    """Mean pooling needs every token, and only one per sequence is handed on: found out, undone, refused."""
    case = kit.setup("modernbert-window", classifier_pooling="mean")
    assert case.engine.layout == "bucketed"
    index = np.arange(len(case.tokens))
    head = {name: tensor for name, tensor in case.family.initial(3).items() if "lora" not in name}
    with torch.no_grad():
        want = kit.padded_logits(kit.merged(case.plain, case.family, case.family.initial(3), 1), case.tokens, index)
    for _ in range(2):
        got = case.engine.logits(head, case.tokens, index)
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=3e-5 * float(want.abs().max()))
        with pytest.raises(AirtuneError, match=r"its logits differ by 0?\.?\d"):
            batcher_of(case.model, "packed", case.tokens)


def test_a_decoder_without_padding_token_uses_its_end_token(kit):
    case = kit.setup("llama-no-padding", learning=LearningConfig(packing="bucketed"))
    assert case.plain.config.pad_token_id is None and case.model.config.pad_token_id == case.model.config.eos_token_id
    index = np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(
            kit.merged(case.plain, case.family, case.family.initial(0), 2), case.tokens, index
        ).numpy()
    got = case.engine.logits(case.family.initial(0), case.tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())


def test_a_decoder_with_nothing_to_pad_with_is_refused(kit):
    with pytest.raises(AirtuneError, match=r"^model\.name: it has no pad_token_id and no eos_token_id; set one"):
        kit.setup("llama-no-padding", eos_token_id=None)


def test_chosen_layouts(kit):
    for packing, kind in (("auto", Packer), ("packed", Packer), ("bucketed", Bucketer)):
        case = kit.setup("bert", learning=LearningConfig(packing=packing))
        assert type(case.engine.batcher) is kind and case.engine.layout == kind.layout
