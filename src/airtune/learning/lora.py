"""The nested family of LoRA modules over a frozen model, §1.

A global adapter holds rank R = r_M for every adapted matrix. Module (r, ℓ) is a slice of it: the first r rank
components of the matrices in the top ℓ layers, plus the task head. One scale α/R serves the whole family, so the slice
that a small module trains is exactly the global adapter with its other components set to zero.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from airtune.config import ModulesConfig
from airtune.learning.grouped import Groups
from airtune.learning.products import adapted_linear, frozen_linear, suits
from airtune.rng import Stream, generator
from airtune.types import AirtuneError

Adapters: TypeAlias = dict[str, Tensor]
"""Name → tensor: `MATRIX.lora_A` [R × in], `MATRIX.lora_B` [out × R], and the task head's parameters; with methods that
merge into the frozen weights also `MATRIX.merged` [out × in], the sum of what was merged."""

HEAD_STD = 0.02
"""Standard deviation of a new task head, as Hugging Face models initialise theirs."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One adapted linear layer of the model."""

    name: str
    layer: int
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class Family:
    """The nested family over one model: which matrices, which slices, which head."""

    matrices: tuple[Matrix, ...]
    layers: int
    """Transformer layers of the model."""
    ranks: tuple[int, ...]
    depths: tuple[int, ...]
    alpha: float
    head: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each head parameter."""

    @property
    def rank(self) -> int:
        """R, the rank of the whole global adapter."""
        return self.ranks[-1]

    @property
    def scale(self) -> float:
        """α/R, the same for every module of the family."""
        return self.alpha / self.rank

    def members(self, module: int) -> tuple[Matrix, ...]:
        """Matrices that module m = 1…M adapts: those of its top ℓ_m layers."""
        lowest = self.layers - self.depths[module - 1]
        return tuple(matrix for matrix in self.matrices if matrix.layer >= lowest)

    @property
    def head_parameters(self) -> int:
        """Parameters of the task head."""
        return sum(int(np.prod(shape)) for _, shape in self.head)

    def parameters(self, module: int, factor: Literal["lora_A", "lora_B"] | None = None) -> int:
        """d_m: adapter parameters of module m, of both factors or of one alone, and the task head."""
        members = self.members(module)
        wide = 0 if factor == "lora_B" else sum(matrix.in_features for matrix in members)
        tall = 0 if factor == "lora_A" else sum(matrix.out_features for matrix in members)
        return self.ranks[module - 1] * (wide + tall) + self.head_parameters

    def increments(self, name: str, tensor: Tensor) -> NDArray[np.int64]:
        """Which nested increment (0 … M − 1) each rank component of an adapter tensor belongs to; 0 for the head's.

        Increment j is what module j + 1 has and module j has not.
        """
        if not name.endswith((".lora_A", ".lora_B")):
            return np.zeros(1, dtype=np.int64)
        layer = next(matrix.layer for matrix in self.matrices if matrix.name == name.rsplit(".", 1)[0])
        first = sum(depth < self.layers - layer for depth in self.depths)
        count = tensor.shape[0] if name.endswith(".lora_A") else tensor.shape[1]
        return np.maximum(np.searchsorted(self.ranks, np.arange(count), side="right"), first)

    def slice(self, adapters: Mapping[str, Tensor], module: int) -> Adapters:
        """Π_m θ: views of the global adapter's tensors that module m sees."""
        rank = self.ranks[module - 1]
        part: Adapters = {name: adapters[name] for name, _ in self.head}
        for matrix in self.members(module):
            part[f"{matrix.name}.lora_A"] = adapters[f"{matrix.name}.lora_A"][:rank]
            part[f"{matrix.name}.lora_B"] = adapters[f"{matrix.name}.lora_B"][:, :rank]
        return part

    def rest(self, adapters: Mapping[str, Tensor], module: int) -> Adapters:
        """θ − Π_m θ: views of the adapter tensors beyond module m, without the head; empty for module M."""
        rank, members = self.ranks[module - 1], {matrix.name for matrix in self.members(module)}
        part: Adapters = {}
        for matrix in self.matrices:
            start = rank if matrix.name in members else 0
            if start < self.rank:
                part[f"{matrix.name}.lora_A"] = adapters[f"{matrix.name}.lora_A"][start:]
                part[f"{matrix.name}.lora_B"] = adapters[f"{matrix.name}.lora_B"][:, start:]
        return part

    def initial(self, seed: int, t: int = 0) -> Adapters:
        """θ_0: A uniform (Kaiming), B zero, a small random head; the same for every policy of a seed and a t."""
        draw = generator(seed, Stream.ADAPTER, t)
        adapters: Adapters = {}
        for matrix in self.matrices:
            limit = 1.0 / np.sqrt(matrix.in_features)
            a = draw.uniform(-limit, limit, (self.rank, matrix.in_features))
            adapters[f"{matrix.name}.lora_A"] = torch.tensor(a, dtype=torch.float32)
            adapters[f"{matrix.name}.lora_B"] = torch.zeros(matrix.out_features, self.rank)
        for name, shape in self.head:
            plain = np.zeros(shape) if name.endswith("bias") else np.ones(shape)  # ones: the scale of a norm
            values = draw.normal(0.0, HEAD_STD, shape) if len(shape) > 1 else plain
            adapters[name] = torch.tensor(values, dtype=torch.float32)
        return adapters


class NestedLinear(nn.Module):
    """A frozen linear layer with a low-rank slice on top: y = Wx + b + (α/R) B A x.

    Components beyond the slice, if the device has them, take part in the sum but are not trained.
    """

    def __init__(self, base: nn.Linear, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.rest: tuple[Tensor, Tensor] | None = None
        self.merged: Tensor | None = None
        """W with the change that a method has merged into it [out × in]; None for W as it was."""
        self.groups: tuple[Groups, ...] = ()
        """Whose rows are whose, by token or by sample, while slices are stacks [D × r × in] and [D × out × r]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [… × in] to [… × out]; without a slice this is the frozen layer alone."""
        weight, bias = self.base.weight if self.merged is None else self.merged, self.base.bias
        if self.a is not None and self.b is not None and self.a.dim() == 2 and suits(x):
            return adapted_linear(x, weight, bias, (self.a, self.b), self.rest, self.scale)
        y = frozen_linear(x, weight, bias) if self.merged is not None else self.base(x)
        if self.a is None or self.b is None:
            return y
        flat, rows = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        for a, b in ((self.a, self.b), *(() if self.rest is None else (self.rest,))):
            if a.dim() == 3:
                groups = next(one for one in self.groups if sum(one.sizes) == len(flat))
                rows = torch.add(rows, groups.product(flat, a, b), alpha=self.scale)
            else:
                rows = torch.addmm(rows, functional.linear(flat, a), b.t(), alpha=self.scale)
        return rows.view(y.shape)


def tail_norm(family: Family, part: Mapping[str, Tensor], module: int) -> Tensor:
    """Σ over the adapted matrices of ‖B‖ ‖A‖ (Frobenius), of the components of a slice that module m does without.

    This is HetLoRA's measure of what pruning loses (Cho et al., EMNLP 2024), an upper bound on the norm of their BA.
    """
    members = {matrix.name for matrix in family.members(module)}
    total = next(iter(part.values())).new_zeros(())
    for matrix in family.matrices:
        if f"{matrix.name}.lora_A" not in part:
            continue
        first = family.ranks[module - 1] if matrix.name in members else 0
        a, b = part[f"{matrix.name}.lora_A"][first:], part[f"{matrix.name}.lora_B"][:, first:]
        if a.numel() and bool(b.any()):  # the norm has no gradient at zero
            total = total + a.norm() * b.norm()
    return total


def layer_index(name: str) -> int | None:
    """The transformer layer that a module path names: its first number."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def family_of(model: nn.Module, base_prefix: str, config: ModulesConfig) -> Family:
    """Find the adapted matrices and the head of a Hugging Face classifier.

    Args:
        model: sequence-classification model.
        base_prefix: name of its backbone (`model.base_model_prefix`); all parameters outside it are the head.
        config: ranks, depths and the last names of the linear layers to adapt.

    Raises:
        AirtuneError: no such linear layer, or depths beyond the model's layers.
    """
    found: list[Matrix] = []
    last_names: set[str] = set()
    for name, child in model.named_modules():
        layer = layer_index(name)
        if not isinstance(child, nn.Linear) or layer is None or not name.startswith(base_prefix + "."):
            continue
        last = name.rsplit(".", 1)[-1]
        last_names.add(last)
        if last in config.targets:
            found.append(Matrix(name, layer, child.in_features, child.out_features))
    missing = [target for target in config.targets if target not in last_names]
    if missing:
        raise AirtuneError(
            f"modules.targets: the model has no linear layer named {', '.join(missing)}; "
            f"it has {', '.join(sorted(last_names)) or 'none inside numbered layers'}"
        )
    layers = max(matrix.layer for matrix in found) + 1
    if config.depths[-1] > layers:
        raise AirtuneError(f"modules.depths: {config.depths[-1]} is more than the model's {layers} layers")
    head = tuple(
        (name, tuple(parameter.shape))
        for name, parameter in model.named_parameters()
        if not name.startswith(base_prefix + ".")
    )
    lowest = layers - config.depths[-1]
    matrices = tuple(matrix for matrix in found if matrix.layer >= lowest)
    return Family(matrices, layers, config.ranks, config.depths, config.alpha, head)


def install(model: nn.Module, family: Family) -> dict[str, NestedLinear]:
    """Freeze the model and put a `NestedLinear` in place of each adapted matrix; returns them by name."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    installed: dict[str, NestedLinear] = {}
    for matrix in family.matrices:
        parent_name, last = matrix.name.rsplit(".", 1)
        parent = model.get_submodule(parent_name)
        base = parent.get_submodule(last)
        if not isinstance(base, nn.Linear):
            raise AirtuneError(f"{matrix.name} is already adapted; load the model anew")
        nested = NestedLinear(base, family.scale)
        setattr(parent, last, nested)
        installed[matrix.name] = nested
    return installed


def attach(
    model: nn.Module,
    installed: Mapping[str, NestedLinear],
    family: Family,
    part: Mapping[str, Tensor],
    rest: Mapping[str, Tensor] | None = None,
) -> None:
    """Make the model compute with these tensors (a slice, or the whole adapter); matrices without any stay frozen.

    Args:
        model: classifier with `installed` layers.
        installed: its adapted layers by name.
        family: the nested family.
        part: adapter tensors and head; leaves of the device's training, or the whole global adapter.
        rest: from `Family.rest`, the components beyond a slice; None for none. `MATRIX.merged` in `part` or `rest` is
            added to the frozen weight.
    """
    beyond = rest or {}
    for name, nested in installed.items():
        key_a, key_b, change = f"{name}.lora_A", f"{name}.lora_B", f"{name}.merged"
        change = part.get(change, beyond.get(change))
        nested.merged = None if change is None else nested.base.weight.detach() + change
        alone = key_a not in part
        nested.a, nested.b = (beyond.get(key_a), beyond.get(key_b)) if alone else (part[key_a], part[key_b])
        nested.rest = None if alone or key_a not in beyond else (beyond[key_a], beyond[key_b])
    for name, _ in family.head:
        owner, last = name.rsplit(".", 1)
        module = model.get_submodule(owner)
        if isinstance(getattr(module, last), nn.Parameter):
            delattr(module, last)  # a plain tensor, possibly a leaf of the device's training, takes its place
        setattr(module, last, part[name])


def add_scaled(target: Adapters, parts: Iterable[tuple[str, Tensor]], scale: float) -> None:
    """target[name] += scale · tensor over the leading components that the tensor covers, in place."""
    for name, tensor in parts:
        index = tuple(slice(0, size) for size in tensor.shape)
        target[name][index] += scale * tensor


def same_tensors(first: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names, shapes and values; views of one tensor are not read."""
    if first.keys() != other.keys():
        return False
    pairs = [(tensor, other[name]) for name, tensor in first.items()]
    return all(a.shape == b.shape for a, b in pairs) and all(
        (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or bool(torch.equal(a, b)) for a, b in pairs
    )
