"""The inference risk gap: Theorems 1 and 2, (9)–(12). Proofs and assumptions in docs/theory.md."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.types import AirtuneError, FloatK, FloatKM, FloatM


def bound_step(bound: float, phi: float, contraction: float, step: float) -> float:
    """Risk-gap bound B_{t+1} = (1−ημ) B_t + (η/2) Φ_t, (9).

    Starting from B_0 = R(θ_0) − R*, T steps give the right-hand side of Theorem 1.

    Args:
        bound: B_t ≥ 0.
        phi: Φ_t, (10).
        contraction: 1 − ημ in [0, 1).
        step: η > 0, at most 1/L for the theorem to hold.

    Raises:
        AirtuneError: a contraction outside [0, 1) or a step that is not positive.

    """
    if not 0.0 <= contraction < 1.0 or not step > 0.0:
        raise AirtuneError(f"the bound needs contraction 1−ημ in [0, 1) and step η > 0, got {contraction} and {step}")
    return contraction * bound + 0.5 * step * phi


def horizon_weight(t: int, rounds: int, contraction: float) -> float:
    """What round t counts for in the bound after the last round: w_t ∝ (1−ημ)^{T−1−t}, mean 1 over t = 0…T−1.

    Args:
        t: the round.
        rounds: T.
        contraction: 1 − ημ in [0, 1).

    """
    return rounds * (1.0 - contraction) * contraction ** (rounds - 1 - t) / (1.0 - contraction**rounds)


def divergence_phi(
    weight: FloatK,
    gamma_sq: NDArray[np.float64],
    delta: NDArray[np.float64],
    noise: NDArray[np.float64],
    module: NDArray[np.int64],
    success_probability: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Round divergence Φ_t = Σ_k ω_k [Γ_k² (1 − π_k (1−δ_m)) + π_k v_{k,m}], (10).

    Leading axes (…) are independent rounds; the constants may have them or not.

    Args:
        weight: ω_k, sums to 1, shape K.
        gamma_sq: Γ_k², A3, shape (…, K).
        delta: δ_m, A4, shape (…, M).
        noise: v_{k,m}, A5, shape (…, K, M).
        module: m_k in 0…M, shape (…, K); 0 sits out and contributes ω Γ² whatever its π.
        success_probability: π_k in [0, 1], shape (…, K).

    Returns:
        Φ_t, shape (…), a scalar for one round.

    Raises:
        AirtuneError: a module outside 0…M or a π outside [0, 1].

    """
    loss, error = _chosen(delta, noise, module, success_probability)
    missed = gamma_sq * (1.0 - success_probability * (1.0 - loss))
    return np.asarray(np.sum(weight * (missed + success_probability * error), axis=-1))


def divergence_tight(
    weight: FloatK,
    gamma_sq: NDArray[np.float64],
    delta: NDArray[np.float64],
    noise: NDArray[np.float64],
    module: NDArray[np.int64],
    success_probability: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Tighter divergence Φ'_t = Σ_k ω_k Γ_k² [δ+(1−π)²(1−δ)] + Σ_k ω_k² [π(1−π)(1−δ)Γ_k² + π v_{k,m}], (12).

    Valid for unbiased gradients and deliveries and errors that are independent across devices (Theorem 2); `noise` is
    then a variance. Never above (10) of the same arguments. Arguments, shapes and errors as in `divergence_phi`.
    """
    loss, error = _chosen(delta, noise, module, success_probability)
    kept, lost = 1.0 - loss, 1.0 - success_probability
    bias = gamma_sq * (loss + lost**2 * kept)
    variance = success_probability * (lost * kept * gamma_sq + error)
    return np.asarray(np.sum(weight * bias + weight**2 * variance, axis=-1))


class Chosen(NamedTuple):
    """Constants of the modules that were chosen, shape (…, K)."""

    loss: NDArray[np.float64]
    """δ_{m_k}; 1 for a device that sits out."""
    error: NDArray[np.float64]
    """v_{k,m_k}; 0 for a device that sits out."""


def _chosen(
    delta: NDArray[np.float64],
    noise: NDArray[np.float64],
    module: NDArray[np.int64],
    success_probability: NDArray[np.float64],
) -> Chosen:
    """δ and v of the modules that were chosen; refuses modules and probabilities that cannot be."""
    modules = delta.shape[-1]
    if np.any((module < 0) | (module > modules)):
        raise AirtuneError(f"modules must lie in 0…{modules}, got {module.min()}…{module.max()}")
    if not np.all((success_probability >= 0.0) & (success_probability <= 1.0)):
        raise AirtuneError("success probabilities must lie in [0, 1]")
    active = module > 0
    column = np.where(active, module - 1, 0)[..., None]
    delta = np.broadcast_to(delta[..., None, :], (*module.shape, modules))
    noise = np.broadcast_to(noise, (*module.shape, modules))
    return Chosen(
        np.where(active, np.take_along_axis(delta, column, axis=-1)[..., 0], 1.0),
        np.where(active, np.take_along_axis(noise, column, axis=-1)[..., 0], 0.0),
    )


def utility(weight: FloatK, gamma_sq: FloatK, delta: FloatM, noise: FloatKM) -> FloatKM:
    """Delivered learning utility U_{k,m} = ω_k [Γ_k² (1−δ_m) − v_{k,m}], (11).

    Φ_t = Σ_k ω_k Γ_k² − Σ_k U_{k,m_k} π_k, so the round that minimises (10) maximises Σ U π. Negative where a module's
    estimation error exceeds the gradient it captures: sitting out is better.

    Args:
        weight: ω_k, shape K.
        gamma_sq: Γ_k², shape K.
        delta: δ_m, shape M.
        noise: v_{k,m}, K×M.

    Returns:
        K×M.

    """
    return weight[:, None] * (gamma_sq[:, None] * (1.0 - delta) - noise)
