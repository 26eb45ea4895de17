"""A run that starts from an existing PEFT adapter: read, checked, and laid into the family's own factors."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

import torch
from torch import Tensor

from airtune.learning.lora import Adapters, Family, Matrix
from airtune.types import AirtuneError

PREFIX: Final = "base_model.model."
"""What PEFT puts before the names of the model."""

HARMLESS: Final = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base model's weights alone; pissa, olora and their like change them."""

REFUSED: Final = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "velora_config", "monteclora_config", "kasa_config",
    "arrow_config",
)  # fmt: skip
"""Keys of `adapter_config.json` with which an adapter is more, or something else, than (α/r) B A."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterSource:
    """A PEFT adapter found on this machine, and exactly which one it is."""

    path: Path
    config: Mapping[str, Any]
    """adapter_config.json."""
    tensors: Mapping[str, Tensor]
    """Its tensors by the model's own names."""
    sha256: Mapping[str, str]
    """File name → SHA-256."""

    @property
    def description(self) -> str:
        """One line for the user."""
        return f"adapter {self.path}: weights SHA-256 {self.sha256['adapter_model.safetensors'][:12]}…"


def read_adapter(path: Path) -> AdapterSource:
    """A PEFT folder's configuration and tensors; only JSON and safetensors are read.

    Raises:
        AirtuneError: no such folder, weights only as pickle or damaged, or not plain LoRA.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = path.expanduser()
    names = ("adapter_config.json", "adapter_model.safetensors")
    if not folder.is_dir():
        raise _refusal(path, "there is no such folder; a PEFT folder with adapter_config.json would be right")
    if not (folder / names[1]).is_file() and (folder / "adapter_model.bin").exists():
        raise _refusal(
            path, "only pickle weights (adapter_model.bin), which can run code when read; save it as safetensors"
        )
    for name in names:
        if not (folder / name).is_file():
            raise _refusal(path, f"holds no {name}; a saved PEFT adapter has one")
    try:
        content = {name: (folder / name).read_bytes() for name in names}
        config = json.loads(content[names[0]])
        tensors = load(content[names[1]])
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})") from None
    except (ValueError, SafetensorError) as error:
        raise _refusal(path, f"is damaged ({str(error).splitlines()[0]}); export the adapter anew") from None
    if not isinstance(config, dict):
        raise _refusal(path, "is damaged (adapter_config.json holds no object); export the adapter anew")
    config = cast("dict[str, Any]", config)
    _refuse_other_kinds(path, config)
    own = {name.removeprefix(PREFIX).removesuffix(".weight") if ".lora_" in name else name.removeprefix(PREFIX): tensor
           for name, tensor in tensors.items()}  # fmt: skip
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    return AdapterSource(folder, MappingProxyType(config), MappingProxyType(own), MappingProxyType(digests))


def _refuse_other_kinds(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is not W + (α/r) B A over the base model's own W."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _refusal(path, f"peft_type is {kind}; only LORA can be started from")
    for key in REFUSED:
        if config.get(key):
            raise _refusal(path, f"it uses {key}; only plain LoRA can be started from")
    if config.get("bias", "none") != "none":
        raise _refusal(path, f"it trains biases (bias {config['bias']}); only bias none can be started from")
    if (start := config.get("init_lora_weights", True)) not in HARMLESS:
        raise _refusal(path, f"init_lora_weights {start} changes the base model's weights; convert it to plain LoRA")


def warm_start(source: AdapterSource, family: Family, start: Mapping[str, Tensor]) -> tuple[Adapters, str]:
    """θ_0 that computes what the adapter does: (α/R) B A = (α_a/r_a) B_a A_a in the first r_a components of a matrix.

    A is the adapter's and B its B rescaled. Components beyond its rank, and matrices that it does not adapt, start as
    they would without it: B is zero there, and the function unchanged. The task head is the adapter's if it has all of
    it in the right shapes, else a fresh one.

    Args:
        source: from `read_adapter`.
        family: the nested family.
        start: the family's initial adapter.

    Returns:
        θ_0, and a line that says what became of rank and head.

    Raises:
        AirtuneError: other matrices than the family's, a rank above R, wrong shapes, a factor without the other,
            tensors that are no part of the family, or values that are not finite.
    """
    adapters = {name: tensor.clone() for name, tensor in start.items()}
    matrices = {matrix.name: matrix for matrix in family.matrices}
    adapted = dict.fromkeys(name.rsplit(".", 1)[0] for name in source.tensors if ".lora_" in name)
    if not adapted:
        raise _refusal(source.path, "holds no lora_A and lora_B; only LoRA on linear layers can be started from")
    for name in adapted:
        if name not in matrices:
            raise _refusal(
                source.path, f"adapts {name}, which the family does not; set modules.targets and modules.depths to it"
            )
        a, b = _factors(source, matrices[name], family.rank)
        adapters[f"{name}.lora_A"][: len(a)] = a
        adapters[f"{name}.lora_B"][:, : len(a)] = b * (_scale(source, name, len(a)) / family.scale)
    head = _head(source, family)
    adapters |= head
    for name, tensor in adapters.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _refusal(source.path, f"{name} is not finite; export the adapter anew")
    ranks = sorted({len(source.tensors[f"{name}.lora_A"]) for name in adapted})
    told = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return adapters, f"rank {told} on {len(adapted)} matrices, {'with its' if head else 'a fresh'} task head"


def _factors(source: AdapterSource, matrix: Matrix, rank: int) -> tuple[Tensor, Tensor]:
    """The adapter's A [r × in] and B [out × r] of a matrix, float32, r ≤ R."""
    found = [source.tensors.get(f"{matrix.name}.{factor}") for factor in ("lora_A", "lora_B")]
    a, b = found
    if a is None or b is None:
        raise _refusal(source.path, f"{matrix.name} has only one of lora_A and lora_B; export the adapter anew")
    if a.dim() == 2 and len(a) > rank:
        raise _refusal(
            source.path,
            f"{matrix.name} has rank {len(a)}, more than modules.ranks allows ({rank}); raise the largest rank, or "
            "merge the adapter into its model and start from that",
        )
    right = (matrix.in_features, matrix.out_features)
    if a.dim() != 2 or b.dim() != 2 or (a.shape[1], b.shape[0]) != right or a.shape[0] != b.shape[1] or not len(a):
        raise _refusal(
            source.path,
            f"{matrix.name} has factors {tuple(a.shape)} and {tuple(b.shape)}, not (r, {right[0]}) and ({right[1]}, r)"
            "; it belongs to another model",
        )
    return a.float(), b.float()


def _scale(source: AdapterSource, name: str, rank: int) -> float:
    """α_a/r_a of a matrix, α_a/√r_a for rank-stabilised LoRA (Kalajdzievski 2023)."""
    from peft.utils.other import get_pattern_key

    patterns = cast("object", source.config.get("alpha_pattern") or {})
    table = cast("dict[str, object]", patterns) if isinstance(patterns, dict) else {}
    alpha = table.get(get_pattern_key(list(table), name), source.config.get("lora_alpha"))
    if not isinstance(patterns, dict) or not isinstance(alpha, int | float) or not alpha > 0:
        raise _refusal(source.path, f"lora_alpha of {name} is {alpha}; a positive number would be right")
    return alpha / (rank**0.5 if source.config.get("use_rslora") else rank)


def _head(source: AdapterSource, family: Family) -> Adapters:
    """The adapter's task head, float32; empty if it lacks any of it or has it for other classes."""
    saved = {name: tensor for name, tensor in source.tensors.items() if ".lora_" not in name}
    owners = {name.split(".")[0] for name, _ in family.head}
    for name in saved:
        if name.split(".")[0] not in owners:
            raise _refusal(source.path, f"holds {name}, which is neither LoRA nor the task head; it cannot be kept")
    if any(name not in saved or tuple(saved[name].shape) != shape for name, shape in family.head):
        return {}
    return {name: saved[name].float() for name, _ in family.head}


def _refusal(path: Path, why: str) -> AirtuneError:
    return AirtuneError(f"model.adapter: {path}: {why}")
