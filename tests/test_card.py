"""Model cards: what the Hub reads, the run's figures, and a command that gives the run again."""

import dataclasses
import json
import math
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard

from airtune.card import command
from airtune.config import LearningConfig, ModelConfig, ModulesConfig, RunConfig
from airtune.experiment import export, run
from airtune.settings import dump, override, presets, read_config


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """Two equal runs in different places, and the first one's summary and rows."""
    root = tmp_path_factory.mktemp("runs")
    summary = run(tiny_config(root / "one"))
    run(tiny_config(root / "two"))
    return root, summary, [json.loads(line) for line in (root / "one/rounds.jsonl").read_text().splitlines()]


def figures_of(text):
    """The first table, name → value."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in rows if len(row) == 2}


def test_the_hub_reads_it(finished):
    root, summary, _ = finished
    card = ModelCard.load(root / "one/adapter/README.md")
    assert card.data.library_name == "peft" and {"airtune", "lora", "federated-learning"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_config, result.metric_type) == ("nyu-mll/glue", "sst2", "accuracy")
    assert result.metric_value == summary["accuracy"] and card.data.datasets == ["nyu-mll/glue"]


def test_its_figures_are_those_of_the_rows(finished):
    root, summary, rows = finished
    text = (root / "one/adapter/README.md").read_text()
    figures = figures_of(text)
    assert figures["accuracy"] == f"{summary['accuracy']:.4f} on 80 dev samples"
    scheduled, delivered = sum(row["scheduled"] for row in rows), sum(row["delivered"] for row in rows)
    assert figures["uploads delivered"].startswith(f"{delivered} of {scheduled} (") and delivered > 0
    for part in ("compute", "transmit"):
        told = float(figures[f"energy, {part}"].removesuffix(" J"))
        assert math.isclose(told, sum(row[f"energy_{part}_j"] for row in rows), rel_tol=1e-5)
    assert figures["rounds"] == "4 of 4" and figures["devices"].startswith("6, ")
    assert (figures["policy"], figures["method"]) == ("joint", "nested")
    assert float(figures["bound on the loss, estimated"]) == pytest.approx(rows[-1]["bound"], rel=1e-5)
    assert figures["certificate of the decisions"].endswith(f"{max(row['certificate'] for row in rows):.3g} at most")
    environment = json.loads((root / "one/environment.json").read_text())
    digests = [environment["model"]["sha256"]["model.safetensors"], *environment["data"]["sha256"].values()]
    assert len(digests) == 3 and all(f" {digest} |" in text for digest in digests)


@pytest.mark.parametrize("merged", [False, True])
def test_equal_runs_have_equal_cards_without_places(finished, tmp_path, merged):
    root, *_ = finished
    cards = []
    for name in ("one", "two"):
        export(root / name, tmp_path / name, merged=merged)
        cards.append((tmp_path / name / "README.md").read_text())
    assert cards[0] == cards[1] and str(root.parent) not in cards[0] and "/" not in cards[0].split("## Reproduce")[1]
    if not merged:
        assert cards[0] == (root / "one/adapter/README.md").read_text()
    front = yaml.safe_load(cards[0].split("---\n")[1])
    assert front["library_name"] == ("transformers" if merged else "peft") and "base_model" not in front
    assert ("from peft" in cards[0]) is not merged


def test_an_unfinished_run_has_no_result(finished, tmp_path):
    root, *_ = finished
    (root / "two/summary.json").unlink()
    export(root / "two", tmp_path / "adapter")
    text = (tmp_path / "adapter/README.md").read_text()
    assert "model-index" not in text and figures_of(text)["accuracy"] == "not known: the run has not ended"


def test_what_fedsa_exports_has_no_accuracy_of_its_own(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "run", learning={"method": "fedsa", "average": 0.0}))
    text = (tmp_path / "run/adapter/README.md").read_text()
    assert "model-index" not in text and "of the devices' own models" in figures_of(text)["accuracy"]


@pytest.mark.parametrize("name", sorted(presets()))
def test_the_command_gives_the_configuration(name):
    base = read_config(name)
    changed = dataclasses.replace(
        base,
        rounds=7,
        model=ModelConfig(name="org/some-model", revision="c0ffee"),
        modules=ModulesConfig(ranks=(3, 5), depths=(1, 2), targets=("q_proj", "v_proj")),
        learning=LearningConfig(method="fedit", balanced_batches=False),
        policy=dataclasses.replace(base.policy, name="traditional", module=2),
    )
    for config in (base, changed):
        airtune, verb, start, *options = shlex.split(command(config))
        assert (airtune, verb, start) == ("airtune", "run", name)
        assert override(read_config(start), options) == config
    assert command(base) == f"airtune run {name}"


def test_the_command_of_a_file_of_ones_own_starts_from_the_demo(tmp_path):
    config = RunConfig(name="mine", data_dir=tmp_path, model=ModelConfig(name=str(tmp_path)))
    assert command(config).startswith("airtune run demo --rounds 30 --data-dir DATA ")
    there = override(read_config("demo"), shlex.split(command(config))[3:])
    given = dump(dataclasses.replace(config, name="demo"))
    assert dump(there) == given | {"data_dir": "DATA", "model": given["model"] | {"name": "MODEL"}}
