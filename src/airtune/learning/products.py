"""Products with frozen weights on a CPU, by oneDNN where torch has it.

torch multiplies float32 matrices on x86 with MKL, which leaves half the width of the vector units of processors that
are not Intel's idle; oneDNN's kernels, which torch carries for compiled models, do not. Both round as float32 does.
"""

import os
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Factors: TypeAlias = tuple[Tensor, Tensor]
"""A [r × in] and B [out × r]."""
KERNELS = 64
"""Kernels that oneDNN keeps; its own 1,024 would take hundreds of megabytes, since hardly any shape comes again."""
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read by oneDNN when it is first used
LEAST_ROWS = 32
"""Products of fewer rows are left to torch: they are not worth a kernel of their own."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, other: Tensor | None = None) -> Tensor:
    """x Wᵀ + b + other by oneDNN, outside autograd.

    Args:
        x: [N × in], float32.
        weight: [out × in], of any strides.
        bias: [out].
        other: [N × out].
    """
    operation: Any = torch.ops.mkldnn._linear_pointwise  # what torch's own compiler calls
    if other is None:
        return operation(x, weight, bias, "none", [], "")
    return operation.binary(x, other, weight, bias, "add")


@cache
def available() -> bool:
    """Whether this torch has oneDNN's products and they give what its own give."""
    if not torch.backends.mkldnn.is_available():
        return False
    whole = torch.arange(6.0)
    x, weight, bias = whole.view(3, 2), whole.view(2, 3).t(), whole[:3]
    want = functional.linear(x, weight, bias)
    try:
        return bool(
            torch.equal(product(x, weight, bias), want) and torch.equal(product(x, weight, bias, want), 2 * want)
        )
    except (RuntimeError, TypeError, AttributeError, NotImplementedError):
        return False


def suits(x: Tensor) -> bool:
    """Whether oneDNN is to multiply x [… × in]."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and available()
    )


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        return product(gradients[0].contiguous(), ctx.weight.t()), None, None


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b [… × out] of x [… × in], with a gradient for x alone: it keeps no activation."""
    if not suits(x):
        return functional.linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1])
    return _Frozen.apply(flat, weight.detach(), bias).view(*x.shape[:-1], -1)  # pyright: ignore[reportOptionalMemberAccess]


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        rest: Factors | None,
        scale: float,
    ) -> Tensor:
        wide = a if rest is None else torch.cat([a, rest[0]])
        tall = b if rest is None else torch.cat([b, rest[1]], dim=1)
        low = x @ wide.t()  # thin: what oneDNN gains is less than a kernel costs
        ctx.save_for_backward(x, low, wide, tall)
        ctx.weight, ctx.rank, ctx.scale = weight, len(a), scale
        return product(x, weight, bias).addmm_(low, tall.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, low, wide, tall = ctx.saved_tensors
        d, rank, (need_x, _, _, need_a, need_b, *_) = gradients[0].contiguous(), ctx.rank, ctx.needs_input_grad
        of_low = (d @ tall).mul_(ctx.scale)
        of_x = product(d, ctx.weight.t()).addmm_(of_low, wide) if need_x else None
        of_a = of_low[:, :rank].t() @ x if need_a else None
        of_b = (d.t() @ low[:, :rank]).mul_(ctx.scale) if need_b else None
        return of_x, None, None, of_a, of_b, None, None


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors, rest: Factors | None, scale: float
) -> Tensor:
    """x Wᵀ + b + scale · (x Aᵀ Bᵀ + x A′ᵀ B′ᵀ) in one node of the graph; gradients for x, A and B alone.

    Args:
        x: [… × in] that suits oneDNN.
        weight: W [out × in].
        bias: [out].
        factors: A [r × in] and B [out × r].
        rest: A′ and B′, not trained.
        scale: factor of the low-rank terms.
    """
    flat = x.reshape(-1, x.shape[-1])
    y: Any = _Adapted.apply(flat, weight.detach(), bias, *factors, rest, scale)
    return y.view(*x.shape[:-1], -1)


class FrozenLinear(nn.Linear):
    """A linear layer that is not trained, over the parameters of another."""

    def __init__(self, base: nn.Linear) -> None:
        biased = "bias" in dict(base.named_parameters())
        super().__init__(base.in_features, base.out_features, biased, device="meta")
        self.weight, self.bias = base.weight, base.bias

    def forward(self, input: Tensor) -> Tensor:
        """Map [… × in] to [… × out]."""
        return frozen_linear(input, self.weight, self.bias)


def freeze_products(backbone: nn.Module) -> None:
    """Put a `FrozenLinear` in place of every frozen linear layer of a backbone."""
    for name, child in list(backbone.named_modules()):
        if type(child) is nn.Linear and not child.weight.requires_grad:
            backbone.set_submodule(name, FrozenLinear(child))
