"""The inference risk gap: Theorem 1, (9)–(11). Proof and assumptions in docs/theory.md."""

import numpy as np

from airtune.types import AirtuneError, FloatK, FloatKM, FloatM, IntK


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


def divergence_phi(
    weight: FloatK,
    gamma_sq: FloatK,
    delta: FloatM,
    noise: FloatKM,
    module: IntK,
    success_probability: FloatK,
) -> float:
    """Round divergence Φ_t = Σ_k ω_k [Γ_k² (1 − π_k (1−δ_m)) + π_k v_{k,m}], (10).

    Args:
        weight: ω_k, sums to 1, shape K.
        gamma_sq: Γ_k², A3, shape K.
        delta: δ_m, A4, shape M.
        noise: v_{k,m}, A5, K×M.
        module: m_k in 0…M, shape K; 0 sits out and contributes ω Γ² whatever its π.
        success_probability: π_k in [0, 1], shape K.

    Raises:
        AirtuneError: a module outside 0…M or a π outside [0, 1].

    """
    if np.any((module < 0) | (module > len(delta))):
        raise AirtuneError(f"modules must lie in 0…{len(delta)}, got {module.min()}…{module.max()}")
    if not np.all((success_probability >= 0.0) & (success_probability <= 1.0)):
        raise AirtuneError("success probabilities must lie in [0, 1]")
    active = module > 0
    column = np.where(active, module - 1, 0)
    delta_k = np.where(active, delta[column], 1.0)
    noise_k = np.where(active, noise[np.arange(len(module)), column], 0.0)
    missed = gamma_sq * (1.0 - success_probability * (1.0 - delta_k))
    return float(np.sum(weight * (missed + success_probability * noise_k)))


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
