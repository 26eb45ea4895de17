"""Tiny random models of each architecture, random token sets and the plain padded way to run them."""

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification

from airtune.config import LearningConfig, ModulesConfig
from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine
from airtune.learning.lora import attach, family_of, install

VOCABULARY, CLASSES, LAYERS = 64, 3, 4
BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
LLAMA_LIKE = {**BERT_LIKE, "num_key_value_heads": 2}
DISTIL_LIKE = {"dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
# kind: configuration class, its settings, adapted layers, name of the layer list, segments in its tokens
KINDS = {
    "bert": ("BertConfig", BERT_LIKE, ("query", "value"), "layer", True),
    "roberta": ("RobertaConfig", {**BERT_LIKE, "pad_token_id": 1}, ("query", "value"), "layer", False),
    "distilbert": ("DistilBertConfig", DISTIL_LIKE, ("q_lin", "v_lin"), "layer", False),
    "llama": ("LlamaConfig", {**LLAMA_LIKE, "pad_token_id": 0}, ("q_proj", "v_proj"), "layers", False),
    "llama-no-padding": ("LlamaConfig", LLAMA_LIKE, ("q_proj", "v_proj"), "layers", False),
    "mistral-window": (
        "MistralConfig",
        {**LLAMA_LIKE, "pad_token_id": 0, "sliding_window": 4},
        ("q_proj", "v_proj"),
        "layers",
        False,
    ),
    "modernbert-window": (
        "ModernBertConfig",
        {
            **BERT_LIKE,
            "local_attention": 6,
            "classifier_pooling": "cls",
            "pad_token_id": 0,
            "bos_token_id": 1,
            "cls_token_id": 1,
            "eos_token_id": 2,
            "sep_token_id": 2,
        },
        ("Wqkv",),
        "layers",
        False,
    ),
    "deberta": (
        "DebertaV2Config",
        {**BERT_LIKE, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
        ("query_proj", "value_proj"),
        "layer",
        True,
    ),
}


def plain_model(kind, seed=0, classes=CLASSES, **changes):
    """A random classifier with weights large enough that every part of it matters."""
    name, settings, *_ = KINDS[kind]
    settings = {**settings, **changes}
    config = getattr(transformers, name)(vocab_size=VOCABULARY, num_labels=classes, initializer_range=0.25, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        for parameter in model.parameters():  # biases and norms start at 0 and 1, where a mistake may not show
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


def token_set(n=20, seed=0, segments=False, shortest=3, longest=18, classes=CLASSES):
    """Random samples, the first one the shortest and the second one the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, n)
    lengths[:2] = shortest, longest
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    types = None
    if segments:
        types = np.concatenate([np.arange(length) >= length // 2 for length in lengths]).astype(np.int8)
    ids = rng.integers(3, VOCABULARY, offsets[-1]).astype(np.int32)
    return TokenSet(ids, types, offsets, rng.integers(0, classes, n), None)


def padded_inputs(tokens, index, pad):
    """The samples as Transformers' own collator would pad them, to the longest of the batch."""
    longest = max(int(tokens.lengths[i]) for i in index)
    rows, masks, types = [], [], []
    for i in index:
        span = tokens.span(int(i))
        missing = longest - (span.stop - span.start)
        rows.append([*tokens.ids[span].tolist(), *[pad] * missing])
        masks.append([1] * (longest - missing) + [0] * missing)
        if tokens.type_ids is not None:
            types.append([*tokens.type_ids[span].tolist(), *[0] * missing])
    inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}
    return {**inputs, "token_type_ids": torch.tensor(types)} if types else inputs


def padded_logits(model, tokens, index):
    """Logits of a plain Transformers (or PEFT) model; a decoder without a padding token takes one sample at a time."""
    pad = model.config.pad_token_id
    if pad is None:
        return torch.cat([model(**padded_inputs(tokens, [i], 0)).logits for i in index])
    return model(**padded_inputs(tokens, index, pad)).logits


def random_adapters(family, seed=1, scale=0.3):
    """A global adapter of which every component matters."""
    draw = torch.Generator().manual_seed(seed)
    start = family.initial(seed)
    return {name: scale * torch.randn(tensor.shape, generator=draw) for name, tensor in start.items()}


def merged(plain, family, adapters: Mapping[str, torch.Tensor], module):
    """A plain copy of the model with dense W + (α/R) Σ_{i<r_m} b_i a_i^T in the top ℓ_m layers, and the head."""
    model = copy.deepcopy(plain)
    parameters = dict(model.named_parameters())
    rank, depth = family.ranks[module - 1], family.depths[module - 1]
    with torch.no_grad():
        for name, _ in family.head:
            parameters[name].copy_(adapters[name])
        for matrix in family.matrices:
            if matrix.layer < LAYERS - depth:
                continue
            a, b = adapters[f"{matrix.name}.lora_A"].double(), adapters[f"{matrix.name}.lora_B"].double()
            update = sum(torch.outer(b[:, i], a[i]) for i in range(rank))
            parameters[f"{matrix.name}.weight"] += (family.alpha / family.ranks[-1] * update).float()
    return model


def setup(kind, ranks=(2, 4), depths=(2, 4), learning=None, sample=None, double=False, **changes):
    """Plain model, family over a copy of it, the copy's installed layers, and an engine that runs the copy."""
    *_, targets, layers_pattern, segments = KINDS[kind]
    plain = plain_model(kind, **changes)
    model = copy.deepcopy(plain)
    config = ModulesConfig(ranks=ranks, depths=depths, targets=targets, alpha=8.0)
    family = family_of(model, model.base_model_prefix, config)
    installed = install(model, family)
    tokens = sample or token_set(segments=segments)
    engine = Engine(model, family, installed, learning or LearningConfig(), tokens)
    if double:
        plain.double()
        model.double()
    return SimpleNamespace(
        kind=kind,
        plain=plain,
        model=model,
        family=family,
        installed=installed,
        engine=engine,
        tokens=tokens,
        config=config,
        targets=targets,
        layers_pattern=layers_pattern,
    )


@pytest.fixture(scope="session")
def kit():
    """Everything above, for tests that cannot import one another."""
    return SimpleNamespace(
        plain_model=plain_model,
        token_set=token_set,
        padded_logits=padded_logits,
        padded_inputs=padded_inputs,
        random_adapters=random_adapters,
        merged=merged,
        setup=setup,
        attach=lambda case, part: attach(case.model, case.installed, case.family, part),
        KINDS=KINDS,
        LAYERS=LAYERS,
        CLASSES=CLASSES,
    )


@pytest.fixture(scope="session")
def reference():
    path = Path(__file__).parents[1] / "reference" / "learning_reference.py"
    spec = importlib.util.spec_from_file_location("learning_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny matrices: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
