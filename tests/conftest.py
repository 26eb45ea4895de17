"""A tiny federation on disk: a random BERT, a learnable SST-2 in GLUE's own format, and a configuration over both."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from airtune.config import (
    FleetConfig,
    LearningConfig,
    ModelConfig,
    ModulesConfig,
    PartitionConfig,
    PolicyConfig,
    RunConfig,
    TaskConfig,
    WorldConfig,
)
from airtune.settings import dump

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GOOD = ("good", "fine", "lovely", "great", "bright")
BAD = ("bad", "dull", "awful", "poor", "grim")
OTHER = ("the", "a", "film", "actor", "plot", "is", "was", "and", "very", "music", "scene", "here")


def write_sst2(folder: Path, train: int = 600, dev: int = 80) -> Path:
    """SST-2 as GLUE ships it; the label follows from the good or bad words in each sentence."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True)
    for name, count in (("train.tsv", train), ("dev.tsv", dev)):
        lines = ["sentence\tlabel"]
        for _ in range(count):
            label = int(rng.integers(2))
            words = list(rng.choice(OTHER, int(rng.integers(3, 9))))
            for word in rng.choice(GOOD if label else BAD, 3):
                words.insert(int(rng.integers(len(words) + 1)), str(word))
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def write_bert(folder: Path) -> Path:
    """A BERT of two layers with random weights and a WordPiece tokenizer of the words above."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=32)
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("glue") / "SST-2").parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return write_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="session")
def tiny_config(tiny_data, tiny_model):
    """`tiny_config(out, **changes)`: six devices, three modules, four rounds in less than a second.

    Changes are whole values of `RunConfig`, or dictionaries that change single values of a table.
    """

    def make(out: Path, **changes) -> RunConfig:
        config = RunConfig(
            name="tiny",
            rounds=4,
            threads=1,
            data_dir=tiny_data,
            out=out,
            task=TaskConfig(name="sst2", max_length=24, eval_samples=40, eval_every=2),
            model=ModelConfig(name=str(tiny_model)),
            modules=ModulesConfig(ranks=(2, 4, 4), depths=(1, 1, 2), alpha=8.0, bits_per_parameter=64),
            fleet=FleetConfig(devices=6, weighting="samples", budget_scale=0.2),
            partition=PartitionConfig(alpha=1.0, min_samples=20),
            world=WorldConfig(bandwidth_hz=3e4, deadline_s=2.0),
            policy=PolicyConfig(v=20.0, queue_start=0.5),
            learning=LearningConfig(
                optimizer="adamw",
                rate=3e-2,
                head_rate=3e-2,
                local_steps=3,
                batch_size=8,
                server_optimizer="mean",
                server_rate=1.0,
                server_momentum=0.0,
                average=0.3,
            ),
        )
        whole = {
            key: dataclasses.replace(getattr(config, key), **value) if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        return dataclasses.replace(config, **whole)

    return make


@pytest.fixture
def tiny(tiny_config, tmp_path):
    """A TOML file of the tiny federation, two rounds."""

    def without_none(table):
        return {
            key: without_none(value) if isinstance(value, dict) else value
            for key, value in table.items()
            if value is not None
        }

    config = dataclasses.replace(tiny_config(tmp_path / "unused", rounds=2), out=None)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(without_none(dump(config))))
    return str(tmp_path / "tiny.toml")


@pytest.fixture(autouse=True)
def no_shared_learner():
    """Runs in one process share model and data; tests that change files on disk must not."""
    yield
    from sys import modules

    if "airtune.build" in modules:
        modules["airtune.build"]._learner.cache_clear()
