"""The constants of the bound learned from what arrives: Γ_k², δ_m and σ², with forgetting and optimism, §7.

Pure functions of `Estimates`. Everything is a sum over what was heard, discounted by λ for every round that passed, so
an estimate is a ratio of two sums and needs no step size. What the prior says is used relative to its own Γ²: the unit
of a gradient is not known before one was heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from airtune.theory.constants import Constants, estimation_error
from airtune.types import AirtuneError, Estimates, FloatK, FloatKM, FloatM, IntK, Modules, Report

PRIOR_COUNT = 1.0
"""Updates that the prior, or for one device the fleet's mean, is worth."""
CAPTURE_MIN = 0.05
"""Least captured share 1 − δ_m that an energy is divided by."""
COUNT_MIN = 1e-9
"""Discounted number of updates below which nothing is left of them."""


@dataclass(frozen=True, slots=True)
class Online:
    """How the constants are learned, and whether decisions use what was learned."""

    used: bool = False
    forgetting: float = 0.9
    """λ in [0, 1)."""
    optimism: float = 0.5
    """Bonus of a device that was never heard, in units of the fleet's mean update energy."""
    generalisation: float = 0.0
    """C_g of A5, which no upload tells; in the unit of the prior's Γ²."""
    batches: int = 1
    """E, batches like the reported one that an update averages."""


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """What is assumed before anything was heard, and the dials of learning."""

    constants: Constants
    noise: FloatM
    """Noise of one batch in each nested increment."""
    generalisation: FloatKM
    """C_g d_m/n_k."""
    online: Online


def prior_of(constants: Constants, modules: Modules, samples: IntK, online: Online) -> Prior:
    """The configured constants taken apart: v_{k,m} is the noise of the increments up to m over E, and C_g d_m/n_k."""
    generalisation = estimation_error(0.0, online.generalisation, modules, samples)
    noise = online.batches * np.diff((constants.noise - generalisation).mean(axis=0), prepend=0.0)
    return Prior(constants, np.maximum(noise, 0.0), generalisation, online)


def first_estimates(devices: int, modules: int) -> Estimates:
    """Nothing heard yet: every constant is the prior's."""
    return Estimates(*(np.zeros(devices) for _ in range(3)), *(np.zeros(modules) for _ in range(5)))


def update_estimates(estimates: Estimates, reports: Sequence[Report], prior: Prior) -> Estimates:
    """The estimates after a round: all sums fade by λ, then this round's reports are added.

    The pooled δ and σ² go first, because a sample of Γ_k² is divided by the share 1 − δ_m that its module captures.

    Args:
        estimates: before the round.
        reports: of the updates that arrived, in any number.
        prior: what holds until enough was heard, and λ.

    Raises:
        AirtuneError: a report whose device, module or number of increments does not exist, or that is not finite.
    """
    devices, modules = len(estimates.heard), len(estimates.noise)
    for report in reports:
        _check(report, devices, modules)
    faded = Estimates(*(prior.online.forgetting * getattr(estimates, field.name) for field in fields(Estimates)))
    pooled = _pooled(faded, reports, noise_of(estimates, prior))
    captured = np.maximum(1.0 - delta_of(pooled, prior), CAPTURE_MIN)
    level, gross, heard = pooled.level.copy(), pooled.gross.copy(), pooled.heard.copy()
    noise_now = noise_of(pooled, prior)
    for report in reports:
        share, energy = captured[report.module - 1], report.energy.sum()
        own = noise_now if report.noise is None else report.noise
        level[report.device] += (energy - own[: report.module].sum()) / share
        gross[report.device] += energy / share
        heard[report.device] += 1.0
    return replace(pooled, level=level, gross=gross, heard=heard)


def _check(report: Report, devices: int, modules: int) -> None:
    if not (0 <= report.device < devices and 1 <= report.module <= modules):
        raise AirtuneError(
            f"a report must name a device in 0…{devices - 1} and a module in 1…{modules}, "
            f"got {report.device} and {report.module}"
        )
    for name, value in (("energy", report.energy), ("noise", report.noise)):
        if value is not None and (value.shape != (modules,) or not np.isfinite(value).all() or (value < 0).any()):
            raise AirtuneError(
                f"device {report.device}: its report's {name} must be {modules} finite numbers ≥ 0, got {value}"
            )


def _pooled(faded: Estimates, reports: Sequence[Report], fallback: FloatM) -> Estimates:
    """The sums that all devices share, with this round's reports added."""
    inner, outer, larger = faded.inner.copy(), faded.outer.copy(), faded.larger.copy()
    noise, reported = faded.noise.copy(), faded.reported.copy()
    for report in reports:
        own = fallback if report.noise is None else report.noise
        within = np.cumsum(report.energy - own)[: report.module]
        inner[: report.module - 1] += within[:-1]
        outer[: report.module - 1] += within[1:]
        larger[: report.module - 1] += 1.0
        if report.noise is not None:
            noise[: report.module] += report.noise[: report.module]
            reported[: report.module] += 1.0
    return replace(faded, inner=inner, outer=outer, larger=larger, noise=noise, reported=reported)


def delta_of(estimates: Estimates, prior: Prior) -> FloatM:
    """Estimated capture loss δ_m of A4, shape M: in [0, 1], non-increasing, δ_M = 0.

    1 − δ_m = Π_{j ≥ m} ρ_j, where ρ_j is the share of module j + 1's energy that lies within module j, a ratio of sums
    over the updates larger than j, shrunk to the prior's by their number. So a small update says what it can, the
    factors lie in [0, 1] and the product is monotone of itself (the form of the product-limit estimator, Kaplan and
    Meier 1958).
    """
    before = 1.0 - prior.constants.delta
    ratio = np.ones_like(before)
    ratio[:-1] = np.divide(before[:-1], before[1:], out=np.ones(len(before) - 1), where=before[1:] > 0)
    sound = (estimates.outer > 0) & (estimates.larger > COUNT_MIN)
    heard = np.divide(estimates.inner, estimates.outer, out=ratio.copy(), where=sound)
    count = np.where(sound, estimates.larger, 0.0)
    step = (PRIOR_COUNT * ratio + count * np.clip(heard, 0.0, 1.0)) / (PRIOR_COUNT + count)
    step[-1] = 1.0
    captured: FloatM = np.multiply.accumulate(step[::-1])[::-1].astype(np.float64)
    return 1.0 - captured


def noise_of(estimates: Estimates, prior: Prior) -> FloatM:
    """Estimated mini-batch noise of each nested increment, shape M; its running sum is that of the modules.

    An increment that nobody reported gets the prior's shape, scaled as the reported ones are to theirs, or as the
    fleet's level is to the prior's Γ² where there are none.
    """
    known = estimates.reported > COUNT_MIN
    mean = np.divide(estimates.noise, estimates.reported, out=np.zeros(len(known)), where=known)
    expected = float(prior.noise[known].sum())
    factor = float(mean[known].sum()) / expected if expected > 0 else _unit(estimates, prior)
    return np.where(known, mean, factor * prior.noise)


def fleet_level(estimates: Estimates) -> float | None:
    """Mean of the samples of Γ² over the fleet, at least 0; None if nothing (or nothing but zeros) was heard."""
    count, gross = float(estimates.heard.sum()), float(estimates.gross.sum())
    return max(float(estimates.level.sum()) / count, 0.0) if count > COUNT_MIN and gross > 0 else None


def gamma_sq_of(estimates: Estimates, prior: Prior, optimism: float = 0.0) -> FloatK:
    """Estimated Γ_k², shape K: the device's own mean, shrunk to the fleet's by the number heard, plus a bonus.

    The bonus is optimism · G / √(1 + N_k), G the fleet's mean energy before noise is taken off, N_k the discounted
    number of the device's updates: discounted UCB (Garivier and Moulines 2011), whose log factor is bounded by that of
    K/(1 − λ) and is left to the dial. What was heard fades, so a device long silent returns to the fleet's mean and the
    full bonus, whatever it sent before.
    """
    fleet = fleet_level(estimates)
    if fleet is None:
        return prior.constants.gamma_sq.copy()
    own = np.maximum((PRIOR_COUNT * fleet + estimates.level) / (PRIOR_COUNT + estimates.heard), 0.0)
    energy = float(estimates.gross.sum() / estimates.heard.sum())
    return own + optimism * energy / np.sqrt(1.0 + estimates.heard)


def constants_of(estimates: Estimates, prior: Prior, optimism: float = 0.0) -> Constants:
    """The estimated constants in the units of the gradients.

    Args:
        estimates: what was heard.
        prior: what holds until enough was heard; C_g is scaled with the level, for no upload tells it.
        optimism: of Γ_k², for decisions; 0 for the bound.
    """
    noise = (
        np.cumsum(noise_of(estimates, prior)) / prior.online.batches + _unit(estimates, prior) * prior.generalisation
    )
    gamma_sq, delta = gamma_sq_of(estimates, prior, optimism), delta_of(estimates, prior)
    return replace(prior.constants, gamma_sq=gamma_sq, delta=delta, noise=noise)


def relative(constants: Constants, prior: Constants, weight: FloatK) -> Constants:
    """The constants in the unit in which the fleet's mean Σ_k ω_k Γ_k² is the prior's, so that V keeps its meaning.

    Constants whose mean Γ² is 0 stay as they are.
    """
    mean = float(weight @ constants.gamma_sq)
    if mean <= 0.0:
        return constants
    factor = float(weight @ prior.gamma_sq) / mean
    return replace(constants, gamma_sq=factor * constants.gamma_sq, noise=factor * constants.noise)


def _unit(estimates: Estimates, prior: Prior) -> float:
    """What 1 of the prior's Γ² is in the units of the gradients; 1 before any was heard."""
    fleet = fleet_level(estimates)
    return 1.0 if fleet is None else fleet / float(prior.constants.gamma_sq.mean())
