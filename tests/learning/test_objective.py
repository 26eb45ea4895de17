"""Losses and gradients of scores and of responses against plain Transformers; GLUE's metrics against their formulas."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from airtune.config import LearningConfig, ModulesConfig, PartitionConfig, TaskConfig
from airtune.learning.data import TokenSet, load_task
from airtune.learning.engine import Engine, Rates
from airtune.learning.lora import attach, family_of, install
from airtune.learning.metrics import f1, matthews, pearson, spearman
from airtune.learning.objective import objective_of
from airtune.learning.partition import strata
from airtune.learning.stsb import read_scores
from airtune.types import AirtuneError

INDEX = np.array([0, 3, 1, 5])


def language_case(packing, tied):
    from dataclasses import replace

    torch.manual_seed(3)
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.LlamaConfig(
        vocab_size=40,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        pad_token_id=2,
        eos_token_id=2,
        **shape,
    )
    plain = transformers.LlamaForCausalLM(config).eval()
    model = copy.deepcopy(plain)
    modules = ModulesConfig(ranks=(2, 4), depths=(2, 3), targets=("q_proj", "v_proj"), alpha=8.0)
    family = replace(family_of(model, model.base_model_prefix, modules), head=())
    rng = np.random.default_rng(5)
    lengths = rng.integers(4, 15, 10)
    tokens = TokenSet(
        rng.integers(2, 40, lengths.sum()).astype(np.int32),
        None,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.zeros(10, np.int64),
        None,
        np.array([rng.integers(1, length) for length in lengths]),
    )
    learning = LearningConfig(packing=packing, clip_norm=1e9, optimizer="sgd")
    engine = Engine(model, family, install(model, family), learning, tokens, objective_of("language"))
    return plain, engine, tokens


def merge(plain, family, adapters):
    """A plain copy with W + (α/R) B A, the factors leaves of the graph."""
    model = copy.deepcopy(plain).double()
    leaves = {name: tensor.double().requires_grad_() for name, tensor in adapters.items()}
    for matrix in family.matrices:
        owner, last = matrix.name.rsplit(".", 1)
        linear = model.get_submodule(owner).get_submodule(last)
        weight = (
            linear.weight.detach() + family.scale * leaves[f"{matrix.name}.lora_B"] @ leaves[f"{matrix.name}.lora_A"]
        )
        del linear.weight
        linear.weight = weight
    return model, leaves


def padded(tokens, index):
    longest = int(tokens.lengths[index].max())
    ids = torch.full((len(index), longest), 2)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, i in enumerate(index):
        own = torch.from_numpy(tokens.ids[tokens.span(int(i))].astype(np.int64))
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
        start = len(own) - int(tokens.response[i])
        labels[row, start : len(own)] = own[start:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packing", ["packed", "bucketed"])
def test_a_response_is_learned_as_transformers_learns_labels(kit, packing, tied):
    plain, engine, tokens = language_case(packing, tied)
    family = engine.family
    assert engine.layout == packing and not family.head
    adapters = kit.random_adapters(family)
    model, leaves = merge(plain, family, adapters)
    loss = model(**padded(tokens, INDEX)).loss
    loss.backward()
    trained = engine.train(adapters, tokens, [INDEX], Rates(1.0, 1.0, 1.0))
    assert trained.loss == pytest.approx(loss.item(), rel=1e-4)
    largest = max(float(leaf.grad.abs().max()) for leaf in leaves.values())
    for name, leaf in leaves.items():
        assert torch.allclose(-trained.delta[name].double(), leaf.grad, atol=1e-4 * largest, rtol=1e-3), name


@pytest.mark.parametrize("packing", ["packed", "bucketed"])
def test_responses_are_judged_token_by_token(kit, packing):
    plain, engine, tokens = language_case(packing, tied=True)
    adapters = kit.random_adapters(engine.family)
    model, _ = merge(plain, engine.family, adapters)
    index = np.arange(len(tokens))
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for i in index:
            ids = tokens.ids[tokens.span(int(i))].astype(np.int64)
            logp = model(input_ids=torch.from_numpy(ids)[None]).logits[0].log_softmax(-1)
            for at in range(len(ids) - int(tokens.response[i]), len(ids)):
                right += int(logp[at - 1].argmax() == ids[at])
                loss -= float(logp[at - 1, ids[at]])
                count += 1
    scores = engine.logits(adapters, tokens, index)
    assert engine.objective.judge(scores, tokens, index) == pytest.approx(right / count)
    beside = engine.objective.beside(scores, tokens, index)
    assert beside["loss"] == pytest.approx(loss / count, rel=1e-4)
    assert beside["perplexity"] == pytest.approx(np.exp(loss / count), rel=1e-3)


def test_a_score_is_learned_by_its_squared_error(kit):
    case = kit.setup("bert", learning=LearningConfig(device="cpu"), classes=1)
    rng = np.random.default_rng(2)
    tokens = TokenSet(
        case.tokens.ids,
        case.tokens.type_ids,
        case.tokens.offsets,
        rng.uniform(0, 5, len(case.tokens)).astype("f4"),
        None,
    )
    case.engine.objective = objective_of("regression")
    start = kit.random_adapters(case.family)
    model = kit.merged(case.plain, case.family, start, 2)
    head = [name for name, _ in case.family.head]
    parameters = dict(model.named_parameters())
    out = kit.padded_logits(model, tokens, INDEX)[:, 0]
    want = ((out - torch.from_numpy(tokens.label[INDEX].copy())) ** 2).mean()
    gradients = torch.autograd.grad(want, [parameters[name] for name in head])
    attach(case.model, case.installed, case.family, {name: t.clone().requires_grad_() for name, t in start.items()})
    loss = case.engine._loss(tokens, INDEX, None)
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)
    got = torch.autograd.grad(
        loss,
        [
            case.model.get_submodule(n.rsplit(".", 1)[0])._buffers.get("x")
            or getattr(case.model.get_submodule(n.rsplit(".", 1)[0]), n.rsplit(".", 1)[1])
            for n in head
        ],
    )
    for mine, theirs in zip(got, gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)


LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30)


@given(LABELS)
def test_matthews_and_f1_are_their_formulas(pairs):
    p, y = np.array(pairs).T
    tp, fp, fn, tn = (sum(pair == kind for pair in pairs) for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
    root = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews(p, y) == pytest.approx((tp * tn - fp * fn) / root if root else 0.0)
    assert f1(p, y) == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0)


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=20))
def test_correlations_are_their_formulas(pairs):
    def direct(x, y):
        x, y = [v - sum(x) / len(x) for v in x], [v - sum(y) / len(y) for v in y]
        root = (sum(v * v for v in x) * sum(v * v for v in y)) ** 0.5
        return sum(v * w for v, w in zip(x, y, strict=True)) / root if root > 1e-12 else 0.0

    def ranks(x):
        return [sum(w < v for w in x) + (sum(w == v for w in x) + 1) / 2 for v in x]

    p, y = (list(map(float, side)) for side in zip(*pairs, strict=True))
    assert pearson(np.array(p), np.array(y)) == pytest.approx(direct(p, y), abs=1e-9)
    assert spearman(np.array(p), np.array(y)) == pytest.approx(direct(ranks(p), ranks(y)), abs=1e-9)


def test_dirichlet_takes_deciles_of_a_score_and_refuses_language():
    label = np.linspace(0, 5, 200).astype("f4")
    assert np.bincount(strata(label, "regression", PartitionConfig())).tolist() == [20] * 10
    with pytest.raises(AirtuneError, match="dirichlet skews labels"):
        strata(np.zeros(3, np.int64), "language", PartitionConfig())


GOOD = json.dumps({"instruction": "Add.", "input": "1 1", "output": "2", "group": "b"})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: not an object"),
        ('{"text": "a"}', "line 2: has text"),
        ('{"instruction": "a", "output": ""}', "line 2: 'output'"),
        ('{"prompt": 3, "response": "a"}', "line 2: 'prompt'"),
        ('{"messages": []}', "at least two"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}', "the user's"),
        ('{"messages": [{"role": "me", "content": "a"}, {"role": "assistant", "content": "b"}]}', "needs a role"),
    ],
)
def test_a_bad_line_is_told_in_one_line(tmp_path, line, told):
    (tmp_path / "train.jsonl").write_text(f"{GOOD}\n{line}\n")
    (tmp_path / "dev.jsonl").write_text(GOOD)
    with pytest.raises(AirtuneError, match=told) as caught:
        load_task(TaskConfig(name="instruct"), tmp_path, 0)
    assert "\n" not in str(caught.value)


def test_json_lines_are_read(tmp_path):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "r"}]
    rows = [
        GOOD,
        json.dumps({"prompt": "p", "response": "q", "group": "a"}),
        json.dumps({"messages": chat, "group": "b"}),
    ]
    for name in ("train.jsonl", "dev.jsonl"):
        (tmp_path / name).write_text("\n".join(rows))
    data = load_task(TaskConfig(name="instruct"), tmp_path, 0)
    assert data.kind == "language" and data.label_names == ()
    assert data.train.text_pair == ("2", "q", "r") and data.train.group.tolist() == [1, 0, 1]
    assert json.loads(data.train.text[0]) == [{"role": "user", "content": "Add.\n\n1 1"}]
    assert json.loads(data.train.text[2]) == chat[:2]


def test_stsb_in_both_forms(tmp_path):
    head = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text(head + '0\tg\tf\ty\t1\tn\tn\tA "b\tC\t3.800\n')
    data = load_task(TaskConfig(name="stsb"), tmp_path, 0)
    assert data.kind == "regression" and data.label_names == ("similarity",)
    assert data.train.text == ('A "b',) and data.train.text_pair == ("C",)
    assert data.train.label.dtype == np.float32 and data.train.label[0] == pytest.approx(3.8)
    wheel = tmp_path / "sts.csv"
    wheel.write_text("g\tf\ty\t1\t2.5\tA\tB\ng\tf\ty\t1\t5\tC\tD\tu\tv\n")
    both = read_scores(wheel, header=False)
    assert both.text == ("A", "C") and both.label.tolist() == [2.5, 5.0]
    wheel.write_text("g\tf\ty\t1\t7\tA\tB\n")
    with pytest.raises(AirtuneError, match="line 1: score '7'"):
        read_scores(wheel, header=False)
