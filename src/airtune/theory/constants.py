"""The constants of the bound. Known exactly on quadratic test problems, estimates on a transformer."""

from dataclasses import dataclass

import numpy as np

from airtune.config import ConstantsConfig
from airtune.types import FloatK, FloatKM, FloatM, IntK, Modules, freeze


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """What Theorem 1 needs to know of the learning problem, K devices and M modules."""

    gamma_sq: FloatK
    """Γ_k², bound on the squared norm of device k's gradient, A3."""
    delta: FloatM
    """δ_m, share of the squared gradient outside module m, A4; non-increasing, δ_M = 0."""
    noise: FloatKM
    """v_{k,m}, mean squared error of module m's gradient, A5."""
    contraction: float
    """1 − ημ per round."""
    step: float
    """η."""
    initial_gap: float
    """R(θ_0) − R*."""

    def __post_init__(self) -> None:
        freeze(self)


def prior_delta(config: ConstantsConfig, modules: Modules) -> FloatM:
    """Capture loss δ_m = 1 − (r_m/r_M)^a (ℓ_m/ℓ_M)^b of A4, shape M: what is assumed before anything is measured."""
    rank_share = modules.rank / modules.rank[-1]
    depth_share = modules.depth / modules.depth[-1]
    return 1.0 - rank_share**config.rank_exponent * depth_share**config.depth_exponent


def estimation_error(noise_sq: float, generalisation: float, modules: Modules, samples: IntK) -> FloatKM:
    """Estimation error v_{k,m} = (σ²/batch) d_m/d_M + C_g d_m/n_k of A5, K×M.

    Args:
        noise_sq: σ²/batch, mini-batch noise of the whole module's gradient.
        generalisation: C_g, squared deviation of an n-sample gradient from the population's is C_g d / n.
        modules: the family, for d_m.
        samples: n_k ≥ 1, shape K.

    """
    parameters = modules.parameters.astype(np.float64)
    return noise_sq * parameters / parameters[-1] + generalisation * parameters / samples[:, None]


def prior_constants(config: ConstantsConfig, modules: Modules, samples: IntK) -> Constants:
    """The constants as configured, the same Γ for every device; a bound computed from them is an estimated bound."""
    return Constants(
        gamma_sq=np.full(len(samples), config.gamma_sq),
        delta=prior_delta(config, modules),
        noise=estimation_error(config.noise_sq, config.generalisation, modules, samples),
        contraction=config.contraction,
        step=config.step,
        initial_gap=config.initial_gap,
    )
