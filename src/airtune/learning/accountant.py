"""What the rounds of a run cost a device in differential privacy, by Google's dp-accounting (`airtune[privacy]`)."""

# pyright: reportMissingImports=false

import math

from airtune.config import PrivacyConfig
from airtune.learning.privacy import SENT
from airtune.learning.server import ServerState
from airtune.types import AirtuneError


def epsilon(config: PrivacyConfig, rounds: int) -> float:
    """ε at δ of a device that sent in so many rounds; 0 for none.

    n Gaussian releases of noise multiplier z, each chosen in view of those before, are one of multiplier z/√n (Dong,
    Roth and Su, JRSS-B 2022), whose ε is exact (Balle and Wang, ICML 2018). No sampling is counted on.

    Raises:
        AirtuneError: the library is missing.
    """
    if not rounds:
        return 0.0
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError:
        raise AirtuneError("privacy needs the accountant of dp-accounting: pip install 'airtune[privacy]'") from None
    return float(get_epsilon_gaussian(config.noise_multiplier / math.sqrt(rounds), config.delta))


def spent(config: PrivacyConfig, server: ServerState) -> dict[str, float]:
    """ε so far of the device that sent in the most rounds, as a row has it; nothing without a mechanism."""
    return {} if config.mechanism == "none" else {"epsilon": epsilon(config, int(server.kept[SENT].max()))}


def promise(config: PrivacyConfig, rounds: int) -> str:
    """One line: the mechanism, and what it costs at most over a run of so many rounds."""
    where = "on every device" if config.mechanism == "local" else "in the server's sum"
    secret = "from the run's seed: a simulation, no protection" if config.noise == "seeded" else "from the system"
    return (
        f"{config.mechanism} differential privacy: updates clipped to {config.clip_norm:g}, noise {where} of "
        f"{config.noise_multiplier:g} × sensitivity ({secret}); ε ≤ {epsilon(config, rounds):.4g} at "
        f"δ = {config.delta:g} for a device that sends in all {rounds} rounds"
    )
