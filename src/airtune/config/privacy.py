"""Settings of differential privacy, and which others it allows."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from airtune.config.learning import LearningConfig
from airtune.config.values import STRICT, Positive

UNSUMMED = {
    "hetlora": "weighs updates by their own norms and tells pruned modules from them",
    "flexlora": "combines products of factors, which are quadratic in the updates",
    "flora": "hands every device's own factors to all others",
    "fedex": "combines products of factors, which are quadratic in the updates",
    "fedsa": "judges and exports devices' own B, which no noise covers",
}
"""Methods whose change is no sum of updates at public weights, and why."""
UNTOLD = ("hetlora", "fedsa")
"""Those of them that use more of a device than the noised update it sends."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyConfig:
    """Differential privacy of a device's whole data, docs/privacy.md."""

    mechanism: Literal["none", "central", "local"] = "none"
    """central: the server adds noise to each round's sum of updates; local: every device adds it to what it sends;
    either with updates clipped on the device. Needs `pip install 'airtune[privacy]'`."""
    clip_norm: Positive = 1.0
    """C, largest L2 norm of a device's whole update, adapter and head together; a longer one is scaled down."""
    noise_multiplier: Annotated[float, Field(ge=1e-3)] = 1.0
    """z: standard deviation of the noise over the sensitivity, which is that of replacing a device's data: 2 C (local),
    2 C times the largest weight in the sum (central)."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ for which ε is told; at most 1/K."""
    noise: Literal["seeded", "system"] = "seeded"
    """seeded: drawn from the run's seed, for simulation: it protects from nobody who knows the seed; system: from the
    operating system's secret randomness: a resumed run is then another run."""

    @model_validator(mode="after")
    def _chosen(self) -> "PrivacyConfig":
        mine = (self.clip_norm, self.noise_multiplier, self.delta, self.noise)
        if self.mechanism == "none" and mine != (1.0, 1.0, 1e-5, "seeded"):
            raise ValueError("other privacy settings have no effect with mechanism none; set central or local")
        return self


def refuse_leaks(privacy: PrivacyConfig, learning: LearningConfig, devices: int, estimated: bool) -> None:
    """Refuse what the accountant does not cover.

    Args:
        privacy: mechanism and δ.
        learning: method and what stands in for lost uploads.
        devices: K.
        estimated: whether devices report on their gradients.

    Raises:
        ValueError: in one line, with what would be right.
    """
    if privacy.mechanism == "none":
        return
    method = learning.method
    if method in UNTOLD or (privacy.mechanism == "central" and method in UNSUMMED):
        others = "" if method in UNTOLD else ", or privacy.mechanism local"
        raise ValueError(
            f"privacy.mechanism {privacy.mechanism}: method {method} {UNSUMMED[method]}; use nested, sum, fedit, "
            f"ffa or rolora{others}"
        )
    if privacy.mechanism == "central" and learning.lost == "carry":
        raise ValueError(
            "privacy.mechanism central: lost carry keeps updates without noise and adds them again in rounds in which "
            "their device was not heard; use renormalise or inverse, or privacy.mechanism local"
        )
    if estimated:
        raise ValueError("privacy: devices' reports on their gradients carry no noise; set constants.source prior")
    if privacy.delta > 1.0 / devices:
        raise ValueError(
            f"privacy.delta: {privacy.delta:g} would allow one of the {devices} devices to be given away whole; at "
            f"most {1.0 / devices:.3g} would be right"
        )
