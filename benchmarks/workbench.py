"""What the benchmarks of training share: MiniLM, a task's tokens, and random batches of a device."""

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.config import LearningConfig, ModelConfig, ModulesConfig, TaskConfig
from airtune.learning.assets import load_classifier, resolve_model
from airtune.learning.data import TokenSet, load_task, tokenize
from airtune.learning.engine import Engine
from airtune.learning.lora import Family, family_of, install
from airtune.learning.workload import modules_of
from airtune.types import Modules

BATCH = 16
LEARNING = LearningConfig(optimizer="adamw", rate=2e-3, head_rate=2e-3, batch_size=BATCH)
SAMPLES = 4096
"""Training samples that batches are drawn from."""


def options(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark of training has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", type=Path, help="folder with GLUE's SST-2; default: rotten-tomatoes from PyPI")
    parser.add_argument("--threads", type=int, help="torch threads; default: all cores")
    return parser


@dataclass(frozen=True, slots=True, eq=False)
class Workbench:
    """Engine, tokens and the costs of its modules."""

    engine: Engine
    tokens: TokenSet
    family: Family
    modules: Modules
    plain: Any
    """The same classifier untouched, for a loop of another kind."""
    facts: str


def workbench(
    data_dir: Path | None, threads: int | None, modules: ModulesConfig, prefix_cache_byte: int = 0
) -> Workbench:
    """MiniLM with a family of modules, and a task's tokens."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    source = resolve_model(ModelConfig())
    task = TaskConfig(name="rotten-tomatoes" if data_dir is None else "sst2", train_limit=SAMPLES)
    data = load_task(task, data_dir, 0)
    model, tokenizer = load_classifier(source, len(data.label_names))
    plain, _ = load_classifier(source, len(data.label_names))
    tokens = tokenize(data.train, tokenizer, task.max_length)
    family = family_of(model, model.base_model_prefix, modules)
    installed = install(model, family)
    length = float(tokens.lengths.mean())
    table = modules_of(model, family, installed, modules, length, length * BATCH)
    learning = replace(LEARNING, prefix_cache_byte=prefix_cache_byte)
    engine = Engine(model, family, installed, learning, tokens)
    facts = f"{source.name}, {task.name}, {length:.1f} tokens per sample, batches of {BATCH}, {count} threads"
    return Workbench(engine, tokens, family, table, plain, facts)


def batches(tokens: TokenSet, steps: int, seed: int) -> list[NDArray[np.int64]]:
    """Random samples of each of some local steps."""
    draw = np.random.default_rng(seed)
    return [draw.choice(len(tokens), BATCH, replace=False) for _ in range(steps)]
