"""A run's adapter as PEFT itself reads it."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from airtune.config import LearningConfig, ModelConfig, ModulesConfig
from airtune.learning import export
from airtune.learning.assets import load_classifier, resolve_model
from airtune.learning.engine import Engine
from airtune.learning.export import export_peft
from airtune.learning.lora import family_of, install
from airtune.types import AirtuneError

LABELS = ("bad", "so-so", "good")


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
