"""Learning problems with nested coordinates whose L, μ, R*, Γ_k, δ_m and v_{k,m} are known exactly.

Coordinates θ ∈ ℝ^d; module m keeps the first `kept[m−1]` of them. Points come in batches: N×d.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from airtune.types import FloatK, freeze

Floats = NDArray[np.float64]
SINGULAR = 1e-9
"""Eigenvalues below this share of the largest count as zero."""


class Known(Protocol):
    """A problem R = Σ_k ω_k R_k whose constants are known exactly."""

    @property
    def weight(self) -> FloatK:
        """ω_k, shape K."""
        ...

    @property
    def kept(self) -> tuple[int, ...]:
        """Coordinates that module m = 1…M keeps, the last being d."""
        ...

    @property
    def curvature(self) -> "Curvature":
        """L, μ and R*."""
        ...

    def risk(self, theta: Floats) -> Floats:
        """R at each of N points, shape N."""
        ...

    def gradients(self, theta: Floats) -> Floats:
        """∇R_k, N×K×d."""
        ...

    def draws(self, theta: Floats) -> Floats:
        """Every value that device k's stochastic gradient can take, all equally likely, N×K×J×d."""
        ...


class Curvature(NamedTuple):
    """What A1 and A2 ask for."""

    smoothness: float
    """L, A1."""
    pl: float
    """μ, A2."""
    least: float
    """R*."""


class Local(NamedTuple):
    """The least constants with which A3–A5 are true at each of N points."""

    gamma_sq: Floats
    """Γ_k² = ‖∇R_k‖², N×K."""
    delta: Floats
    """δ_m, the largest share outside module m over the devices, N×M; non-increasing, δ_M = 0."""
    noise: Floats
    """v_{k,m} = E‖Π_m(g_k − ∇R_k)‖², N×K×M."""


def local_constants(problem: Known, theta: Floats) -> Local:
    """Γ_k², δ_m and v_{k,m} at each point, exactly; `theta` is N×d."""
    gradients = problem.gradients(theta)
    error_sq = ((problem.draws(theta) - gradients[:, :, None]) ** 2).mean(axis=2)
    return from_squares(gradients**2, error_sq, problem.kept)


def from_squares(gradient_sq: Floats, error_sq: Floats, kept: tuple[int, ...]) -> Local:
    """The constants from (mean) squared coordinates of gradients and errors, each …×K×d."""
    column = np.array(kept) - 1
    total = gradient_sq.sum(axis=-1)
    outside = np.cumsum(gradient_sq[..., ::-1], axis=-1)[..., ::-1]
    missed = np.concatenate([outside, np.zeros_like(outside[..., :1])], axis=-1)[..., column + 1]
    share = missed / np.where(total > 0, total, 1.0)[..., None]
    return Local(total, share.max(axis=-2), np.cumsum(error_sq, axis=-1)[..., column])


def quadratic_curvature(hessian: Floats, linear: Floats, constant: float) -> Curvature:
    """L, μ and R* of R(θ) = ½ θᵀHθ − bᵀθ + c for a positive semidefinite H and b in its range.

    μ is the least positive eigenvalue: a rank-deficient quadratic is Polyak–Łojasiewicz with it, not strongly convex.
    """
    values, vectors = np.linalg.eigh(hessian)
    positive = values > SINGULAR * values[-1]
    along = (vectors.T @ linear)[positive]
    least = constant - 0.5 * float(np.sum(along**2 / values[positive]))
    return Curvature(float(values[-1]), float(values[positive][0]), least)


@dataclass(frozen=True, slots=True, eq=False)
class Quadratics:
    """R_k(θ) = ½ (θ−c_k)ᵀ H_k (θ−c_k), each gradient with one of J equally likely additive errors."""

    weight: FloatK
    kept: tuple[int, ...]
    hessian: Floats
    """H_k, K×d×d, positive semidefinite."""
    centre: Floats
    """c_k, K×d."""
    errors: Floats
    """K×J×d; their mean over J is the gradient's bias."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def curvature(self) -> Curvature:
        """L, μ and R*; every H_k c_k lies in the range of Σ ω H, so the least value is attained."""
        pulled = np.einsum("kij,kj->ki", self.hessian, self.centre)
        constant = 0.5 * float(np.einsum("k,ki,ki->", self.weight, self.centre, pulled))
        return quadratic_curvature(np.tensordot(self.weight, self.hessian, 1), self.weight @ pulled, constant)

    def gradients(self, theta: Floats) -> Floats:
        """∇R_k = H_k (θ − c_k), N×K×d."""
        return np.einsum("kij,nkj->nki", self.hessian, theta[:, None] - self.centre)

    def risk(self, theta: Floats) -> Floats:
        """R, shape N."""
        return 0.5 * np.einsum("k,nki,nki->n", self.weight, theta[:, None] - self.centre, self.gradients(theta))

    def draws(self, theta: Floats) -> Floats:
        """Gradient plus each error, N×K×J×d."""
        return self.gradients(theta)[:, :, None] + self.errors


def batches(samples: int, size: int, held: int | None = None) -> Floats:
    """Every mini-batch of `size` among the first `held` of n samples, as J×n weights that add up to 1."""
    chosen = list(itertools.combinations(range(samples if held is None else held), size))
    weight = np.zeros((len(chosen), samples))
    for row, batch in enumerate(chosen):
        weight[row, list(batch)] = 1.0 / size
    return weight


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """Ridge regression: R_k(θ) = 1/(2n) Σ_i (x_iᵀθ − y_i)² + λ/2 ‖θ‖², the population being device k's n samples."""

    weight: FloatK
    kept: tuple[int, ...]
    inputs: Floats
    """x, K×n×d."""
    targets: Floats
    """y, K×n."""
    penalty: float
    """λ ≥ 0; with 0 and fewer samples than coordinates R is only Polyak–Łojasiewicz."""
    batch: Floats
    """Mini-batches, J×n weights."""

    def __post_init__(self) -> None:
        freeze(self)

    @property
    def curvature(self) -> Curvature:
        """L and μ are the extreme positive eigenvalues of the Hessian; R* from the normal equations."""
        _, samples, size = self.inputs.shape
        share = self.weight / samples
        hessian = np.einsum("k,kni,knj->ij", share, self.inputs, self.inputs) + self.penalty * np.eye(size)
        linear = np.einsum("k,kni,kn->i", share, self.inputs, self.targets)
        return quadratic_curvature(hessian, linear, 0.5 * float(share @ (self.targets**2).sum(axis=1)))

    def risk(self, theta: Floats) -> Floats:
        """R, shape N."""
        fit = 0.5 * ((_scores(self.inputs, theta) - self.targets) ** 2).mean(axis=2) @ self.weight
        return fit + 0.5 * self.penalty * (theta**2).sum(axis=1)

    def gradients(self, theta: Floats) -> Floats:
        """∇R_k, N×K×d."""
        return _mean(self._each(theta), None) + self.penalty * theta[:, None]

    def draws(self, theta: Floats) -> Floats:
        """The gradient of every mini-batch, N×K×J×d."""
        return _mean(self._each(theta), self.batch) + self.penalty * theta[:, None, None]

    def _each(self, theta: Floats) -> Floats:
        return (_scores(self.inputs, theta) - self.targets)[..., None] * self.inputs


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """Logistic regression: R_k(θ) = 1/n Σ_i log(1 + exp(−x_iᵀθ)) + λ/2 ‖θ‖², inputs multiplied by their labels ±1."""

    weight: FloatK
    kept: tuple[int, ...]
    inputs: Floats
    """y x, K×n×d."""
    penalty: float
    """λ > 0."""
    batch: Floats
    """Mini-batches, J×n weights."""
    curvature: Curvature

    @classmethod
    def of(cls, weight: FloatK, kept: tuple[int, ...], inputs: Floats, penalty: float, batch: Floats) -> "Logistic":
        """With the exact extremes of the Hessian Σ ω σ'(x·θ) x xᵀ + λI over all θ, and R* by Newton's method.

        σ' is largest, ¼, at θ = 0 for all samples at once, hence L; it vanishes far out, hence μ = λ.
        """
        samples, size = inputs.shape[1:]
        gram = np.einsum("k,kni,knj->ij", weight / samples, inputs, inputs)
        smoothness = penalty + 0.25 * float(np.linalg.eigvalsh(gram)[-1])
        bare = cls(weight, kept, inputs, penalty, batch, Curvature(smoothness, penalty, 0.0))
        return cls(weight, kept, inputs, penalty, batch, Curvature(smoothness, penalty, bare._least(size)))

    def __post_init__(self) -> None:
        freeze(self)

    def risk(self, theta: Floats) -> Floats:
        """R, shape N."""
        fit = np.logaddexp(0.0, -_scores(self.inputs, theta)).mean(axis=2) @ self.weight
        return fit + 0.5 * self.penalty * (theta**2).sum(axis=1)

    def gradients(self, theta: Floats) -> Floats:
        """∇R_k, N×K×d."""
        return _mean(self._each(theta), None) + self.penalty * theta[:, None]

    def draws(self, theta: Floats) -> Floats:
        """The gradient of every mini-batch, N×K×J×d."""
        return _mean(self._each(theta), self.batch) + self.penalty * theta[:, None, None]

    def _each(self, theta: Floats) -> Floats:
        return -_sigmoid(-_scores(self.inputs, theta))[..., None] * self.inputs

    def _least(self, size: int) -> float:
        """R* by Newton steps, halved while they do not descend. The gradient's norm bounds what is left by ‖∇R‖²/2λ."""
        theta = np.zeros((1, size))
        for _ in range(50):
            gradient = (self.weight @ self.gradients(theta)[0])[None]
            if float((gradient**2).sum()) < 1e-28 * self.penalty:
                break
            chance = _sigmoid(_scores(self.inputs, theta))[0]
            curve = self.weight[:, None] * chance * (1.0 - chance) / self.inputs.shape[1]
            hessian = np.einsum("kn,kni,knj->ij", curve, self.inputs, self.inputs) + self.penalty * np.eye(size)
            move, scale = np.linalg.solve(hessian, gradient[0]), 1.0
            while scale > 1e-6 and self.risk(theta - scale * move)[0] > self.risk(theta)[0]:
                scale /= 2.0
            theta = theta - scale * move
        left = float(((self.weight @ self.gradients(theta)[0]) ** 2).sum())
        return float(self.risk(theta)[0]) - left / (2.0 * self.penalty)


def _scores(inputs: Floats, theta: Floats) -> Floats:
    """x_iᵀθ, N×K×n."""
    return np.einsum("ksi,ni->nks", inputs, theta)


def _mean(each: Floats, batch: Floats | None) -> Floats:
    """Mean over samples, or over those of each mini-batch."""
    return each.mean(axis=2) if batch is None else np.einsum("js,nksi->nkji", batch, each)


def _sigmoid(score: Floats) -> Floats:
    return 0.5 * (1.0 + np.tanh(0.5 * score))
