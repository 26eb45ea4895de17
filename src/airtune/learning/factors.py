"""Sums of low-rank products by their stacked factors: the singular value decomposition without the dense matrix."""

from dataclasses import dataclass

import torch
from torch import Tensor


def product_svd(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, Vᵀ of BA [out × in] from B [out × n] and A [n × in], by a QR of each factor and an SVD of their small core.

    With B = Q_B R_B and Aᵀ = Q_A R_A, BA = Q_B (R_B R_Aᵀ) Q_Aᵀ. The core has min(out, n) × min(in, n) entries. float64.

    Returns:
        U [out × s], S [s] falling, Vᵀ [s × in], with s = min(out, in, n).
    """
    left, right = torch.linalg.qr(b.double()), torch.linalg.qr(a.double().t())
    inner = torch.linalg.svd(left.R @ right.R.t(), full_matrices=False)
    return left.Q @ inner.U, inner.S, inner.Vh @ right.Q.t()


@dataclass(slots=True)
class Stack:
    """Σ_k w_k B_k A_k as stacked factors, made shorter without loss whenever they outgrow the matrix."""

    b: Tensor
    """[out × n], float64."""
    a: Tensor
    """[n × in], float64."""

    @classmethod
    def empty(cls, out_features: int, in_features: int) -> "Stack":
        """The sum of nothing."""
        return cls(torch.zeros(out_features, 0).double(), torch.zeros(0, in_features).double())

    def add(self, b: Tensor, a: Tensor, weight: float) -> None:
        """Take up w B A."""
        self.b = torch.cat([self.b, weight * b.double()], dim=1)
        self.a = torch.cat([self.a, a.double()])
        if self.a.shape[0] > 2 * min(self.b.shape[0], self.a.shape[1]):
            u, s, vh = product_svd(self.b, self.a)
            self.b, self.a = u * s, vh


def balanced_factors(b: Tensor, a: Tensor, rank: int, size: float) -> tuple[Tensor, Tensor]:
    """The best rank-r approximation of BA in its singular vectors, greatest first: B' = U S / size, A' = size Vᵀ.

    Rows of A' have norm `size`; components without energy have B' = 0 and can still learn.

    Args:
        b: [out × n], n ≥ r or n = 0.
        a: [n × in].
        rank: r.
        size: norm of the rows of A'.

    Returns:
        B' [out × r], A' [r × in], float64.
    """
    u, s, vh = product_svd(b, a)
    return (u * s)[:, :rank] / size, size * vh[:rank]
