"""A run's adapter as a standard PEFT folder, or merged into its base as a plain Transformers folder."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airtune.learning.assets import ModelSource, load_model, quiet
from airtune.learning.factors import product_svd
from airtune.learning.lora import Family, Matrix
from airtune.learning.server import is_merged
from airtune.types import AirtuneError


def export_peft(
    out: Path,
    adapters: Mapping[str, Tensor],
    family: Family,
    source: ModelSource,
    label_names: Sequence[str],
    card: str | None = None,
) -> None:
    """Write the global adapter and task head so that plain `PeftModel.from_pretrained` loads them.

    What a method has merged into a frozen weight is written with the adapter, of as high a rank as that takes
    (`whole_change`).

    Args:
        out: folder, created or atomically replaced if it holds an adapter already.
        adapters: global adapter.
        family: its nested family.
        source: base model; the adapter's configuration names its Hub id and commit, or its folder.
        label_names: class names; none for a language model.
        card: text of README.md; None for PEFT's own.

    Raises:
        AirtuneError: `out` is something else than an adapter folder, or cannot be written.
    """
    if not _replaceable(out, lambda: (out / "adapter_config.json").exists()):
        raise AirtuneError(f"--out {out}: exists and is no adapter folder; choose another")
    model, tokenizer = load_model(source, len(label_names))
    peft_model = _adapted(model, whole_change(adapters, family), adapters, family, source, bool(label_names))

    def write(folder: Path) -> None:
        peft_model.save_pretrained(folder, save_embedding_layers=False)
        _settle_order(folder / "adapter_config.json")

    _write(out, write, tokenizer, card)


def export_merged(
    out: Path,
    adapters: Mapping[str, Tensor],
    family: Family,
    source: ModelSource,
    label_names: Sequence[str],
    card: str,
) -> None:
    """Write the model with W + (α/R) B A, all else that was merged, and the task head: no PEFT is needed to load it.

    Args:
        out: folder, created or atomically replaced if it holds a model that airtune exported.
        adapters: global adapter.
        family: its nested family.
        source: base model.
        label_names: class names; they become the configuration's `id2label`.
        card: text of README.md; its tag `airtune` is what tells the folder from a model of the user's own.

    Raises:
        AirtuneError: `out` is something else than such a folder, or cannot be written.
    """
    if not _replaceable(out, lambda: _exported_model(out)):
        raise AirtuneError(f"--out {out}: exists and is no model that airtune exported; choose another")
    model, tokenizer = load_model(source, len(label_names))
    merge(model, adapters, family)
    if label_names:
        model.config.id2label = dict(enumerate(label_names))
        model.config.label2id = {name: number for number, name in enumerate(label_names)}
    _write(out, model.save_pretrained, tokenizer, card)


def merge(model: Any, adapters: Mapping[str, Tensor], family: Family) -> None:
    """Add every change to the model's frozen weights, W + merged + (α/R) B A, in float64; and set its task head."""
    own = dict(model.named_parameters())
    with torch.no_grad():
        for matrix in family.matrices:
            weight = own[f"{matrix.name}.weight"]
            a, b = (adapters[f"{matrix.name}.{factor}"].double() for factor in ("lora_A", "lora_B"))
            total = weight.double() + family.scale * (b @ a)
            change = adapters.get(f"{matrix.name}.merged")
            weight.copy_(total if change is None else total + change.double())
        for name, _ in family.head:
            own[name].copy_(adapters[name])


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The change of one frozen weight, (α/r) B A."""

    a: Tensor
    """[r × in]."""
    b: Tensor
    """[out × r]."""
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return len(self.a)


def whole_change(adapters: Mapping[str, Tensor], family: Family) -> dict[str, Factors]:
    """Matrix → the factors of merged + (α/R) B A.

    Without anything merged they are A and B as they are. Else they come from the singular value decomposition of both
    together, at its numerical rank r in float32 and with α = r.
    """
    return {matrix.name: _factors(adapters, family, matrix) for matrix in family.matrices}


def _factors(adapters: Mapping[str, Tensor], family: Family, matrix: Matrix) -> Factors:
    """The factors of one matrix; a merged change is dense, so they are in effect the SVD of a dense ΔW [out × in]."""
    a, b = adapters[f"{matrix.name}.lora_A"], adapters[f"{matrix.name}.lora_B"]
    merged = adapters.get(f"{matrix.name}.merged")
    if merged is None or not bool(merged.any()):
        return Factors(a, b, family.alpha)
    left = torch.cat([merged.double(), family.scale * b.double()], dim=1)
    right = torch.cat([torch.eye(matrix.in_features).double(), a.double()])
    u, s, vh = product_svd(left, right)
    floor = float(s[0]) * max(merged.shape) * torch.finfo(torch.float32).eps  # as numpy.linalg.matrix_rank
    rank = max(int((s > floor).sum()), 1)
    root = s[:rank].sqrt()
    return Factors((root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float(), float(rank))


def _adapted(
    model: Any,
    change: Mapping[str, Factors],
    adapters: Mapping[str, Tensor],
    family: Family,
    source: ModelSource,
    classifier: bool = True,
) -> Any:
    """The model under PEFT's adapter of these factors; ranks and α other than the largest go into its patterns."""
    from peft import LoraConfig, TaskType, get_peft_model

    largest = max(change.values(), key=lambda factors: factors.rank)
    config = LoraConfig(
        r=largest.rank,
        lora_alpha=largest.alpha,  # pyright: ignore[reportArgumentType]
        rank_pattern={name: pair.rank for name, pair in change.items() if pair.rank != largest.rank},
        alpha_pattern={name: pair.alpha for name, pair in change.items() if pair.alpha != largest.alpha},  # pyright: ignore[reportArgumentType]
        target_modules=list(change),
        modules_to_save=sorted({name.split(".")[0] for name, _ in family.head}) or None,
        task_type=TaskType.SEQ_CLS if classifier else TaskType.CAUSAL_LM,
    )
    with warnings.catch_warnings():  # PEFT reads an attribute that Transformers deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        peft_model: Any = get_peft_model(model, config)
    written: Any = peft_model.peft_config["default"]
    written.base_model_name_or_path = source.name if source.kind == "hub" else str(source.path)
    written.revision = source.revision if source.kind == "hub" else None
    _copy(peft_model, change, adapters)
    return peft_model


def _copy(peft_model: Any, change: Mapping[str, Factors], adapters: Mapping[str, Tensor]) -> None:
    """Put our tensors into PEFT's parameters; every one must find its place."""
    own = dict(peft_model.named_parameters())
    with torch.no_grad():
        for name, pair in change.items():
            own[f"base_model.model.{name}.lora_A.default.weight"].copy_(pair.a)
            own[f"base_model.model.{name}.lora_B.default.weight"].copy_(pair.b)
        for name, tensor in adapters.items():
            if not name.endswith((".lora_A", ".lora_B")) and not is_merged(name):
                head, rest = name.split(".", 1)
                own[f"base_model.model.{head}.modules_to_save.default.{rest}"].copy_(tensor)


def _settle_order(path: Path) -> None:
    """Sort the lists that PEFT holds as sets, so that equal adapters are written as equal bytes."""
    config: dict[str, Any] = json.loads(path.read_text())
    for key in ("modules_to_save", "target_modules"):
        if config[key] is not None:
            config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replaceable(out: Path, ours: Callable[[], bool]) -> bool:
    """Whether nothing is lost that we did not write: no such path, an empty folder, or one that is ours."""
    return not out.exists() or (out.is_dir() and (not any(out.iterdir()) or ours()))


def _exported_model(out: Path) -> bool:
    """Whether a folder holds a model and a card that is tagged as airtune's."""
    card = out / "README.md"
    return (out / "config.json").exists() and card.is_file() and "\n- airtune\n" in card.read_text(errors="replace")


def _write(out: Path, write: Callable[[Path], object], tokenizer: Any, card: str | None) -> None:
    """Have a folder written beside its place, with tokenizer and card, then put it in the place of an earlier one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            with quiet():
                write(folder / "new")
            tokenizer.save_pretrained(folder / "new")
            if card is not None:
                (folder / "new" / "README.md").write_text(card, encoding="utf-8")
            if out.exists():
                out.rename(folder / "old")
            (folder / "new").rename(out)
        finally:
            if (folder / "old").exists() and not out.exists():
                (folder / "old").rename(out)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise AirtuneError(f"--out {out}: {error.strerror or error}; free space or choose another folder") from error
