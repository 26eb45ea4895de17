"""Virtual energy queues, §4."""

import numpy as np
from numpy.typing import NDArray

from airtune.types import AnyFloat


def next_queue_j(queue_j: AnyFloat, energy_j: AnyFloat, budget_j: AnyFloat) -> NDArray[np.float64]:
    """Virtual energy queue Z(t+1) = max(Z(t) + E(t) − Ē, 0) [J], (13).

    Args:
        queue_j: Z_k(t) [J].
        energy_j: E_k(t), spent in this round [J].
        budget_j: Ē_k [J per round].

    Returns:
        Z_k(t+1) [J], broadcast shape. Z(T) ≥ Σ_t (E(t) − Ē), so a short queue at T proves the budget was kept.
    """
    return np.maximum(np.asarray(queue_j, np.float64) + np.asarray(energy_j, np.float64) - budget_j, 0.0)
