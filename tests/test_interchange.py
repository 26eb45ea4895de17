"""Runs that start where another run ended, and what of a run other libraries read."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from airtune import experiment as module
from airtune.build import build
from airtune.checkpoint import from_checkpoint
from airtune.config import RunConfig
from airtune.experiment import export, resume, run
from airtune.judging import Judge
from airtune.types import AirtuneError

PLAIN = {"average": 0.0}
METHODS = ("nested", "flora", "fedex", "fedsa", "rolora")


@pytest.fixture(scope="module")
def ended(tiny_config, tmp_path_factory):
    """`ended(method)`: configuration and summary of a finished run under it."""
    root, runs = tmp_path_factory.mktemp("ended"), {}

    def of(method) -> tuple[RunConfig, dict]:
        if method not in runs:
            config = tiny_config(root / method, learning={"method": method, **PLAIN})
            runs[method] = config, run(config)
        return runs[method]

    return of


def going_on(config, tmp_path, **changes):
    """A run of the same data that starts from what `config`'s run exported."""
    model = dataclasses.replace(config.model, adapter=config.out / "adapter")
    return dataclasses.replace(config, out=tmp_path / "run", model=model, **changes)


def accuracy_before(config):
    experiment = build(config)
    return Judge(experiment).judge(experiment.start, np.arange(len(experiment.learner.dev))).score


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_at_the_accuracy_where_the_other_ended(tiny_config, ended, tmp_path, method):
    config, summary = ended("nested")
    again = going_on(config, tmp_path, learning=dataclasses.replace(config.learning, method=method))
    assert accuracy_before(again) == summary["accuracy"] > 0.55
    fresh = dataclasses.replace(again, model=config.model)
    assert accuracy_before(fresh) != summary["accuracy"]
    run(again)
    environment = json.loads((again.out / "environment.json").read_text())
    assert set(environment["adapter"]["sha256"]) == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_plain_run_takes_up_the_very_tensors(ended, tmp_path):
    config, _ = ended("nested")
    experiment = build(going_on(config, tmp_path))
    tensors = from_checkpoint(*module.RunFolder.open(config.out).load_checkpoint()).server.average
    assert tensors.keys() == experiment.start.adapters.keys()
    assert all(torch.equal(experiment.start.adapters[name], tensor) for name, tensor in tensors.items())


def test_resume_asks_for_the_same_adapter(ended, tmp_path, monkeypatch):
    config, _ = ended("nested")
    shutil.copytree(config.out / "adapter", tmp_path / "adapter")
    model = dataclasses.replace(config.model, adapter=tmp_path / "adapter")
    whole, torn = (dataclasses.replace(config, model=model, out=tmp_path / name) for name in ("whole", "torn"))
    run(whole)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_finish", stop)
    with pytest.raises(KeyboardInterrupt):
        run(torn)
    monkeypatch.undo()
    path = tmp_path / "adapter/adapter_config.json"
    content = path.read_text()
    path.write_text(content.replace('"lora_alpha": 8.0', '"lora_alpha": 4.0'))
    assert path.read_text() != content
    with pytest.raises(AirtuneError, match=r"the adapter has changed since the run began \(adapter .*restore it"):
        resume(torn.out)
    path.write_text(content)
    resume(torn.out)
    assert (torn.out / "adapter/README.md").read_text() == (whole.out / "adapter/README.md").read_text()
    card = (whole.out / "adapter/README.md").read_text()
    assert "--model.adapter ADAPTER" in card and "| adapter | adapter_model.safetensors |" in card
    path.unlink()
    with pytest.raises(AirtuneError, match=r"^model.adapter: .*holds no adapter_config.json"):
        run(dataclasses.replace(whole, out=tmp_path / "other"))
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # PEFT's own use of an old Transformers name
@pytest.mark.parametrize("method", ["nested", "flora", "fedex"])
def test_plain_libraries_give_the_runs_logits(ended, tmp_path, method):
    config, _ = ended(method)
    experiment = build(config)
    learner, index = experiment.learner, np.arange(len(experiment.learner.dev))
    state = from_checkpoint(*module.RunFolder.open(config.out).load_checkpoint())
    want = learner.engine.logits(state.server.average, learner.dev, index)
    export(config.out, tmp_path / "merged", merged=True)
    base = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=2)
    models = {
        1e-4: PeftModel.from_pretrained(base, config.out / "adapter").eval(),
        1e-5: AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval(),
    }
    for tolerance, model in models.items():
        got = []
        with torch.inference_mode():
            for i in index:
                ids = torch.tensor(learner.dev.ids[learner.dev.span(int(i))].astype(np.int64))[None]
                got.append(model(ids).logits[0].numpy())
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)
    written = json.loads((config.out / "adapter/adapter_config.json").read_text())
    assert (written["r"] > 4) is (method != "nested")


def test_a_merged_run_is_a_model_to_start_from(ended, tmp_path):
    config, _ = ended("flora")
    export(config.out, tmp_path / "merged", merged=True)
    model = dataclasses.replace(config.model, name=str(tmp_path / "merged"))
    summary = run(dataclasses.replace(config, model=model, out=tmp_path / "run"))
    assert summary["accuracy"] > 0.55


def test_a_higher_rank_than_the_familys_is_refused(ended, tmp_path):
    config, _ = ended("fedex")
    with pytest.raises(AirtuneError, match=r"^model\.adapter: .* has rank \d+, more than modules.ranks allows \(4\)"):
        build(going_on(config, tmp_path))
