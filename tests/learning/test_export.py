"""A run's adapter as PEFT itself reads it."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

from airtune.config import LearningConfig, ModelConfig, ModulesConfig
from airtune.learning import export
from airtune.learning.assets import load_classifier, resolve_model
from airtune.learning.engine import Engine
from airtune.learning.export import export_merged, export_peft
from airtune.learning.lora import family_of, install
from airtune.types import AirtuneError

LABELS = ("bad", "so-so", "good")
CARD = "---\ntags:\n- airtune\n---\n# Card\n"


@pytest.fixture
def base(tmp_path, kit):
    """Save a tiny model and a tokenizer; returns a function of the architecture."""

    def make(kind):
        folder = tmp_path / "base"
        plain = kit.plain_model(kind)
        plain.save_pretrained(folder)
        words = tmp_path / "words.txt"
        words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(59))]))
        BertTokenizerFast(vocab=str(words), model_max_length=32).save_pretrained(folder)
        return folder

    return make


def engine_of(folder, kit, kind, depths=(2, 4)):
    source = resolve_model(ModelConfig(name=str(folder)))
    model, _ = load_classifier(source, len(LABELS))
    config = ModulesConfig(ranks=(2, 4), depths=depths, targets=kit.KINDS[kind][2], alpha=8.0)
    family = family_of(model, model.base_model_prefix, config)
    tokens = kit.token_set()
    return source, Engine(model, family, install(model, family), LearningConfig(), tokens), tokens


def peft_logits(folder, adapter, kit, tokens, index):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
    with warnings.catch_warnings():  # of PEFT's own making
        warnings.simplefilter("ignore", FutureWarning)
        peft_model = PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        return kit.padded_logits(peft_model, tokens, index).numpy()


@pytest.mark.parametrize("depths", [(2, 4), (1, 2)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_peft_gives_our_logits(base, tmp_path, kit, kind, depths):
    folder = base(kind)
    source, engine, tokens = engine_of(folder, kit, kind, depths)
    adapters = kit.random_adapters(engine.family)
    export_peft(tmp_path / "deep" / "adapter", adapters, engine.family, source, LABELS)
    index = np.arange(len(tokens))
    want = engine.logits(adapters, tokens, index)
    got = peft_logits(folder, tmp_path / "deep" / "adapter", kit, tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * np.abs(want).max())
    start = engine.logits(engine.family.initial(0), tokens, index)
    assert np.abs(got - start).max() > 0.1 * np.abs(want).max()  # the adapter matters


def test_the_written_configuration(base, tmp_path, kit):
    """It names the base by Hub id and commit, else by folder; its lists are in order, so exports are equal bytes."""
    folder = base("bert")
    source, engine, _ = engine_of(folder, kit, "bert")
    hub = dataclasses.replace(source, kind="hub", name="org/base", revision="c0ffee")
    adapters = kit.random_adapters(engine.family)
    written = {}
    for out, origin in (("one", source), ("two", source), ("hub", hub)):
        export_peft(tmp_path / out, adapters, engine.family, origin, LABELS)
        written[out] = {path.name: path.read_bytes() for path in (tmp_path / out).iterdir()}
    assert written["one"] == written["two"]
    for out, name, revision in (("one", str(folder), None), ("hub", "org/base", "c0ffee")):
        config = json.loads(written[out]["adapter_config.json"])
        assert (config["base_model_name_or_path"], config["revision"]) == (name, revision)
        assert config["target_modules"] == sorted(matrix.name for matrix in engine.family.matrices)
        assert config["modules_to_save"] == sorted({"classifier", *config["modules_to_save"]})
    assert written["hub"]["adapter_model.safetensors"] == written["one"]["adapter_model.safetensors"]


def test_an_earlier_adapter_is_replaced_and_nothing_else_left(base, tmp_path, kit):
    folder = base("bert")
    source, engine, tokens = engine_of(folder, kit, "bert")
    out, index = tmp_path / "out" / "adapter", np.arange(5)
    for seed in (1, 2):
        adapters = kit.random_adapters(engine.family, seed)
        export_peft(out, adapters, engine.family, source, LABELS)
        if seed == 1:
            (out / "left-over").write_text("of the first")
        np.testing.assert_allclose(
            peft_logits(folder, out, kit, tokens, index), engine.logits(adapters, tokens, index), atol=1e-4
        )
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]
    names = {path.name for path in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names and "left-over" not in names


@pytest.mark.parametrize("step", ["write", "move"])
def test_a_failed_export_keeps_the_earlier_adapter(base, tmp_path, kit, monkeypatch, step):
    folder = base("bert")
    source, engine, _ = engine_of(folder, kit, "bert")
    out = tmp_path / "out" / "adapter"
    export_peft(out, kit.random_adapters(engine.family), engine.family, source, LABELS)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if step == "write":
        monkeypatch.setattr(BertTokenizerFast, "save_pretrained", full)
    else:
        real = export.Path.rename
        monkeypatch.setattr(export.Path, "rename", lambda path, to: full() if path.name == "new" else real(path, to))
    with pytest.raises(AirtuneError, match=r"^--out .*adapter: No space left on device; free space or"):
        export_peft(out, kit.random_adapters(engine.family, 9), engine.family, source, LABELS)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]


def test_a_folder_of_something_else_is_refused(base, tmp_path, kit):
    folder = base("bert")
    source, engine, _ = engine_of(folder, kit, "bert")
    adapters = kit.random_adapters(engine.family)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for out in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(AirtuneError, match=r"exists and is no adapter folder; choose another$"):
            export_peft(out, adapters, engine.family, source, LABELS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    export_peft(tmp_path / "empty", adapters, engine.family, source, LABELS)
    assert (tmp_path / "empty" / "adapter_config.json").exists()


def with_changes(adapters, family, rank, seed=5):
    """The adapter and, for every matrix but the first, a dense change of the given rank as FLoRA and FedEx keep it."""
    draw = torch.Generator().manual_seed(seed)
    changes = {}
    for number, matrix in enumerate(family.matrices):
        left = torch.randn(matrix.out_features, rank, generator=draw)
        right = torch.randn(rank, matrix.in_features, generator=draw)
        changes[f"{matrix.name}.merged"] = (0.05 if number else 0.0) * (left @ right)
    return adapters | changes


@pytest.mark.parametrize("rank", [1, 6, 40])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_peft_carries_what_was_merged_into_the_frozen_weights(base, tmp_path, kit, kind, rank):
    folder = base(kind)
    source, engine, tokens = engine_of(folder, kit, kind)
    family, index = engine.family, np.arange(len(tokens))
    plain = kit.random_adapters(family)
    adapters = with_changes(plain, family, rank)
    export_peft(tmp_path / "adapter", adapters, family, source, LABELS)
    want = engine.logits(adapters, tokens, index)
    got = peft_logits(folder, tmp_path / "adapter", kit, tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))
    assert np.abs(got - engine.logits(plain, tokens, index)).max() > 0.05 * np.abs(want).max()
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    written = load_file(tmp_path / "adapter/adapter_model.safetensors")
    for number, matrix in enumerate(family.matrices):  # the same product, at the rank of the sum and no higher
        a, b = (written[f"base_model.model.{matrix.name}.{x}.weight"].double() for x in ("lora_A", "lora_B"))
        dense = adapters[f"{matrix.name}.merged"].double()
        dense += 2.0 * adapters[f"{matrix.name}.lora_B"].double() @ adapters[f"{matrix.name}.lora_A"].double()
        alpha = config["alpha_pattern"].get(matrix.name, config["lora_alpha"])
        np.testing.assert_allclose(alpha / len(a) * (b @ a), dense, atol=1e-5)
        assert len(a) == (min(4 + rank, *dense.shape) if number else 4) == np.linalg.matrix_rank(dense.float())


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_the_merged_model_is_a_plain_one(base, tmp_path, kit, kind, changed):
    folder = base(kind)
    source, engine, tokens = engine_of(folder, kit, kind)
    adapters, index = kit.random_adapters(engine.family), np.arange(len(tokens))
    export_peft(tmp_path / "adapter", adapters, engine.family, source, LABELS)
    if changed:
        adapters = with_changes(adapters, engine.family, 3)
    for name in ("one", "two"):
        export_merged(tmp_path / name, adapters, engine.family, source, LABELS, CARD)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not any(info.values()) and type(model).__module__.startswith("transformers.")
    with torch.no_grad():
        got = kit.padded_logits(model.eval(), tokens, index).numpy()
    want = engine.logits(adapters, tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max()))
    assert [model.config.id2label[i] for i in range(3)] == list(LABELS) and model.config.label2id["good"] == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "one")("w1 w2")["input_ids"] == [2, 6, 7, 3]
    written = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert written[0] == written[1] and "adapter_config.json" not in written[0]
    assert all(str(tmp_path).encode() not in content for content in written[0].values())
    if not changed:  # PEFT's own merge gives the same weights
        plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
        for name, tensor in theirs.state_dict().items():
            np.testing.assert_allclose(model.state_dict()[name], tensor, atol=1e-6, err_msg=name)


def test_a_merged_model_replaces_only_one_of_ours(base, tmp_path, kit):
    folder = base("bert")
    source, engine, _ = engine_of(folder, kit, "bert")
    adapters = kit.random_adapters(engine.family)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_peft(tmp_path / "adapter", adapters, engine.family, source, LABELS, CARD)
    for out in (folder, tmp_path / "adapter"):
        with pytest.raises(AirtuneError, match=r"exists and is no model that airtune exported; choose another$"):
            export_merged(out, adapters, engine.family, source, LABELS, CARD)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for _ in range(2):
        export_merged(tmp_path / "out", adapters, engine.family, source, LABELS, CARD)
    assert (tmp_path / "out/README.md").read_text() == (tmp_path / "adapter/README.md").read_text() == CARD
    with pytest.raises(AirtuneError, match=r"exists and is no adapter folder; choose another$"):
        export_peft(tmp_path / "out", adapters, engine.family, source, LABELS, CARD)
