"""The energy-ordered basis: LoRA factors rewritten in the singular vectors of their product, §2.

For every adapted matrix an invertible R × R matrix G is chosen and B → B G, A → G⁻¹ A: BA, hence the model, stays. All
that the server keeps about the factors goes along, so that it means the same functions and the same motion as before.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from airtune.learning.lora import Adapters
from airtune.learning.server import ServerState


def energy_change(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """G and G⁻¹ [R × R, float64] that order the components of BA by singular value, A's rows keeping their mean size a.

    With Aᵀ = Q T (QR) and B Tᵀ = U S Vᵀ, whose R × R core comes from a QR of B: B G = U S/a and G⁻¹ A = a Vᵀ Qᵀ. No
    matrix of the size of BA is formed. A step of B so moves the function as far as before, components without energy
    (all of them while B = 0) come last and can still learn, and G is orthogonal where A's rows are: random rows nearly
    are, and after the first time they stay so but for what the round trains. The sign of each component is that of its
    predecessor in A.

    Args:
        b: B [out × R].
        a: A [R × in] of full row rank.
    """
    wide, b = a.double(), b.double()
    tri = torch.linalg.qr(wide.t(), mode="r").R
    core = torch.linalg.qr(b, mode="r").R @ tri.t()
    size = wide.norm() / wide.shape[0] ** 0.5
    if not bool(core.any()) or not bool(size > 0):
        return torch.eye(len(wide)).double(), torch.eye(len(wide)).double()
    right = torch.linalg.svd(core).Vh
    change = tri.t() @ right.t() / size
    back = torch.linalg.solve(change, torch.eye(len(wide)).double())
    sign = torch.where((back @ wide * wide).sum(dim=1) < 0, -1.0, 1.0)
    return change * sign, back * sign[:, None]


def energy_ordered(adapters: Mapping[str, Tensor], server: ServerState) -> tuple[Adapters, ServerState]:
    """θ and the server's state in the energy-ordered basis of θ; the head and other tensors stay.

    - The running average takes θ's G, not its own: it stays the function it was, and stays an average of factors that
      are written in one basis.
    - Momentum is a mean of changes of θ and moves as they do: B-part m G, A-part G⁻¹ m. So θ + s m is, to first order,
      the function that it was before.
    - Second moments have no exact rule, for a diagonal does not stay diagonal. Entries of one row are taken to be
      uncorrelated: v (G ∘ G) and (G⁻¹ ∘ G⁻¹) v, which keeps them positive and, for a rotation, their sum.
    """
    changes = {
        name.removesuffix(".lora_A"): energy_change(adapters[name.removesuffix("A") + "B"], adapters[name])
        for name in adapters
        if name.endswith(".lora_A")
    }

    def rewritten(part: Mapping[str, Tensor], power: int = 1) -> Adapters:
        new = dict(part)
        for name, (change, back) in changes.items():
            a, b = part[f"{name}.lora_A"], part[f"{name}.lora_B"]
            new[f"{name}.lora_A"] = (back**power @ a.double()).to(a.dtype)
            new[f"{name}.lora_B"] = (b.double() @ change**power).to(b.dtype)
        return new

    average, momentum, square = rewritten(server.average), rewritten(server.momentum), rewritten(server.square, 2)
    return rewritten(adapters), replace(server, average=average, momentum=momentum, square=square)
