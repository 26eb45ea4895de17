"""E[R(θ_t)] − R* after every round without sampling error, and the bounds to compare it with.

Two ways. `enumerated` adds up every outcome of every round, for any problem and for decisions that depend on what
happened before. `moments` carries E[θθᵀ] through quadratics, whose update is affine in θ, for many rounds and decisions
that are fixed in advance (Theorem 1, Remark 1: then the constants need only hold in the mean).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from airtune.testbed.problems import Floats, Known, Local, Quadratics, from_squares, local_constants
from airtune.theory.bound import bound_step
from airtune.types import AirtuneError, freeze

Ints = NDArray[np.int64]
Divergence: TypeAlias = Callable[[Floats, Floats, Floats, Floats, Ints, Floats], Floats]
"""Φ_t from ω, Γ², δ, v, m and π, leading axes allowed; `theory.bound.divergence_phi` or `divergence_tight`."""
Decide: TypeAlias = Callable[[int, Local], tuple[Ints, Floats]]
"""Modules and success probabilities, each N×K, from the round and the constants at N points that may be reached."""


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """Gap and bounds after rounds 0…T."""

    gap: Floats
    """E[R(θ_t)] − R*, shape T + 1."""
    bounds: Mapping[str, Floats]
    """(9) for each divergence, shape T + 1."""
    scale: float
    """Size of the numbers that were added up: rounding in `gap` is a small multiple of 1e−16 of it."""

    def __post_init__(self) -> None:
        freeze(self)


def enumerated(
    problem: Known,
    start: Floats,
    step: float,
    rounds: int,
    decide: Decide,
    divergences: Mapping[str, Divergence],
    *,
    common: bool = False,
) -> Path:
    """Every outcome: each scheduled upload is lost or arrives with one of its J gradients, (1+J)^K children a point.

    Args:
        problem: J gradients per device.
        start: θ_0, shape d.
        step: η ≤ 1/L.
        rounds: T.
        decide: sees all points that may be reached, so decisions may depend on the past in any way.
        divergences: by name.
        common: whether one weather for all devices makes their deliveries correlated (same π).

    Raises:
        AirtuneError: a step above 1/L.
    """
    smoothness, pl, least = problem.curvature
    _check_step(step, smoothness)
    theta, chance = start[None], np.ones(1)
    gaps = [float(problem.risk(theta)[0]) - least]
    bounds = {name: gaps[:1] for name in divergences}
    scale = abs(gaps[0]) + abs(least)
    for t in range(rounds):
        local = local_constants(problem, theta)
        module, success = decide(t, local)
        for name, divergence in divergences.items():
            phi = float(chance @ divergence(problem.weight, *local, module, success))
            bounds[name].append(bound_step(bounds[name][-1], phi, 1.0 - step * pl, step))
        theta, chance = _children(problem, theta, chance, step, module, success, common)
        risk = problem.risk(theta)
        gaps.append(float(chance @ risk) - least)
        scale = max(scale, float(chance @ np.abs(risk)) + abs(least))
    return Path(np.array(gaps), {name: np.array(each) for name, each in bounds.items()}, scale)


def _children(
    problem: Known, theta: Floats, chance: Floats, step: float, module: Ints, success: Floats, common: bool
) -> tuple[Floats, Floats]:
    """All points after a round by (8) with their probabilities; those of probability 0 are dropped."""
    points, size = theta.shape
    kept = np.arange(size) < np.array((0, *problem.kept))[module][..., None]
    uploads = problem.weight[:, None, None] * kept[:, :, None] * problem.draws(theta)
    good = np.minimum(2.0 * success, 1.0)
    weathers = [good, 2.0 * success - good] if common else [success]
    moved, likely = [], []
    for weather in weathers:
        change, share = np.zeros((points, 1, size)), chance[:, None] / len(weathers)
        for k in range(len(problem.weight)):
            each = uploads[:, k]
            options = np.concatenate([np.zeros((points, 1, size)), each], axis=1)
            arrives = np.repeat(weather[:, k, None] / each.shape[1], each.shape[1], axis=1)
            table = np.concatenate([1.0 - weather[:, k, None], arrives], axis=1)
            change = (change[:, :, None] + options[:, None]).reshape(points, -1, size)
            share = (share[:, :, None] * table[:, None]).reshape(points, -1)
        moved.append((theta[:, None] - step * change).reshape(-1, size))
        likely.append(share.reshape(-1))
    theta, chance = np.concatenate(moved), np.concatenate(likely)
    return theta[chance > 0], chance[chance > 0]


def moments(
    problem: Quadratics,
    start: Floats,
    step: float,
    module: Ints,
    success: Floats,
    divergences: Mapping[str, Divergence],
) -> Path:
    """The recursion of E[θ̃θ̃ᵀ], θ̃ = (θ, 1), under (8), for decisions fixed in advance; errors must be unbiased.

    Args:
        problem: quadratics.
        start: θ_0, shape d.
        step: η ≤ 1/L.
        module: T×K.
        success: T×K.
        divergences: by name.

    Raises:
        AirtuneError: a step above 1/L.
    """
    smoothness, pl, least = problem.curvature
    _check_step(step, smoothness)
    devices, size = problem.centre.shape
    lift = np.concatenate([np.tile(np.eye(size), (devices, 1, 1)), -problem.centre[..., None]], axis=2)
    slope = problem.hessian @ lift  # ∇R_k = slope_k θ̃
    form = np.einsum("k,kij,kil->jl", problem.weight, lift, slope)  # R = ½ θ̃ᵀ form θ̃
    draws = problem.errors.shape[1]
    error_sq = (problem.errors**2).mean(axis=1)
    point = np.append(start, 1.0)
    second = np.outer(point, point)
    gaps = [0.5 * float(np.sum(form * second)) - least]
    bounds = {name: gaps[:1] for name in divergences}
    scale = abs(gaps[0]) + abs(least)
    for t in range(len(module)):
        spread = slope @ second @ slope.transpose(0, 2, 1)  # E[∇R_k ∇R_kᵀ]
        local = from_squares(np.einsum("kii->ki", spread), error_sq, problem.kept)
        for name, divergence in divergences.items():
            phi = float(divergence(problem.weight, *local, module[t], success[t]))
            bounds[name].append(bound_step(bounds[name][-1], phi, 1.0 - step * pl, step))
        kept = (np.arange(size) < np.array((0, *problem.kept))[module[t]][:, None]) * 1.0
        mean = np.eye(size + 1)
        mean[:size] -= step * np.einsum("k,ki,kij->ij", problem.weight * success[t], kept, slope)
        lost = problem.weight**2 * success[t] * (1.0 - success[t])
        error = problem.errors * kept[:, None]
        share = problem.weight**2 * success[t] / draws
        second = mean @ second @ mean.T
        second[:size, :size] += step**2 * np.einsum("k,ki,kij,kj->ij", lost, kept, spread, kept)
        second[:size, :size] += step**2 * np.einsum("k,kji,kjl->il", share, error, error)
        gaps.append(0.5 * float(np.sum(form * second)) - least)
        scale = max(scale, abs(gaps[-1]) + 2.0 * abs(least))
    return Path(np.array(gaps), {name: np.array(each) for name, each in bounds.items()}, scale)


def _check_step(step: float, smoothness: float) -> None:
    if not 0.0 < step * smoothness <= 1.0 + 1e-12:
        raise AirtuneError(f"the bound needs a step in (0, 1/L], got {step:g} with 1/L = {1.0 / smoothness:g}")
