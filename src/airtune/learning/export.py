"""A run's adapter as a standard PEFT folder."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from airtune.learning.assets import ModelSource, load_classifier
from airtune.learning.lora import Family
from airtune.types import AirtuneError


def export_peft(
    out: Path, adapters: Mapping[str, Tensor], family: Family, source: ModelSource, label_names: Sequence[str]
) -> None:
    """Write the global adapter and task head so that plain `PeftModel.from_pretrained` loads them.

    Args:
        out: folder, created or atomically replaced if it holds an adapter already.
        adapters: global adapter.
        family: its nested family.
        source: base model; the adapter's configuration names its Hub id and commit, or its folder.
        label_names: class names.

    Raises:
        AirtuneError: `out` is something else than an adapter folder, or cannot be written.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "adapter_config.json").exists())):
        raise AirtuneError(f"--out {out}: exists and is no adapter folder; choose another")
    model, tokenizer = load_classifier(source, len(label_names))
    heads = sorted({name.split(".")[0] for name, _ in family.head})
    config = LoraConfig(
        r=family.rank,
        lora_alpha=family.alpha,  # pyright: ignore[reportArgumentType]
        target_modules=[matrix.name for matrix in family.matrices],
        modules_to_save=heads,
        task_type=TaskType.SEQ_CLS,
    )
    with warnings.catch_warnings():  # PEFT reads an attribute that Transformers deprecates
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        peft_model: Any = get_peft_model(model, config)
    written: Any = peft_model.peft_config["default"]
    written.base_model_name_or_path = source.name if source.kind == "hub" else str(source.path)
    written.revision = source.revision if source.kind == "hub" else None
    _copy(peft_model, adapters)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            peft_model.save_pretrained(folder / "new", save_embedding_layers=False)
            _settle_order(folder / "new" / "adapter_config.json")
            tokenizer.save_pretrained(folder / "new")
            if out.exists():
                out.rename(folder / "old")
            (folder / "new").rename(out)
        finally:
            if (folder / "old").exists() and not out.exists():
                (folder / "old").rename(out)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise AirtuneError(f"--out {out}: {error.strerror or error}; free space or choose another folder") from error


def _settle_order(path: Path) -> None:
    """Sort the lists that PEFT holds as sets, so that equal adapters are written as equal bytes."""
    config: dict[str, Any] = json.loads(path.read_text())
    for key in ("modules_to_save", "target_modules"):
        config[key] = sorted(set(config[key]))
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _copy(peft_model: Any, adapters: Mapping[str, Tensor]) -> None:
    """Put our tensors into PEFT's parameters; every one must find its place."""
    own = dict(peft_model.named_parameters())
    with torch.no_grad():
        for name, tensor in adapters.items():
            if name.endswith((".lora_A", ".lora_B")):
                key = f"base_model.model.{name}.default.weight"
            else:
                head, rest = name.split(".", 1)
                key = f"base_model.model.{head}.modules_to_save.default.{rest}"
            own[key].copy_(tensor)
