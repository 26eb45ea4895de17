"""Random instances for `airtune verify`: a problem, a step, decisions and outages, drawn from a seed and a number."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.testbed.problems import Floats, Known, Local, Logistic, Quadratics, Ridge, batches
from airtune.testbed.trajectories import Decide, Divergence, Path, enumerated, moments

LEAVES_MAX = 4096
"""Outcomes at most that an instance adds up in its last round."""
ROUNDS_MAX = 6
"""Rounds at most of an enumerated instance."""
SPREADS = (0.0, 0.1, 1.0, 5.0)
"""How far devices' optima lie apart, next to the distance of the start."""


class Family(NamedTuple):
    """A kind of instance."""

    name: str
    theorem_2: bool
    """Whether Theorem 2's assumptions hold: unbiased gradients, independent devices."""
    path: Callable[[np.random.Generator, Mapping[str, Divergence]], Path]


def _quadratics(
    rng: np.random.Generator, devices: int, draws: int, rank_lost: bool, biased: bool = False
) -> Quadratics:
    size = int(rng.integers(2, 7))
    rank = int(rng.integers(1, size)) if rank_lost else size
    basis = np.linalg.qr(rng.normal(size=(size, rank)))[0]
    root = rng.normal(size=(devices, rank, rank)) * 10.0 ** rng.uniform(-1.0, 0.5)
    inner = root @ root.transpose(0, 2, 1) + (10.0 ** rng.uniform(-2.0, 0.0)) * np.eye(rank)
    errors = rng.normal(size=(devices, draws, size)) * rng.choice([0.0, 0.3, 3.0])
    if not biased:
        errors = errors - errors.mean(axis=1, keepdims=True)
    centre = rng.normal(size=size) + rng.choice(SPREADS) * rng.normal(size=(devices, size))
    return Quadratics(_weight(rng, devices), _kept(rng, size), basis @ inner @ basis.T, centre, errors)


def _weight(rng: np.random.Generator, devices: int) -> Floats:
    return np.full(devices, 1.0 / devices) if rng.random() < 0.5 else rng.dirichlet(np.ones(devices))


def _kept(rng: np.random.Generator, size: int) -> tuple[int, ...]:
    """Two or three nested modules, fewer if there are fewer coordinates."""
    inner = rng.choice(np.arange(1, size), size=min(int(rng.integers(1, 3)), size - 1), replace=False)
    return (*sorted(int(each) for each in inner), size)


def _samples(rng: np.random.Generator, devices: int, held: bool) -> tuple[Floats, Floats, Floats]:
    """Inputs of three or four samples a device, device means apart, coordinates of falling size; and mini-batches."""
    count, size = int(rng.integers(3, 5)), int(rng.integers(2, 6))
    shift = rng.choice(SPREADS[:3]) * rng.normal(size=(devices, 1, size))
    inputs = (rng.normal(size=(devices, count, size)) + shift) * np.arange(1, size + 1) ** -rng.uniform(0.0, 1.5)
    least = count - 1 if held else count
    size_of = int(rng.choice([1, least - 1, least])) if devices < 3 else least
    return inputs, rng.normal(size=(devices, count)), batches(count, size_of, least)


def _ridge(rng: np.random.Generator, devices: int, held: bool = False) -> Ridge:
    inputs, noise, batch = _samples(rng, devices, held)
    truth = rng.normal(size=(devices, inputs.shape[2])) * rng.choice(SPREADS) + rng.normal(size=inputs.shape[2])
    targets = np.einsum("kni,ki->kn", inputs, truth) + 0.3 * noise
    penalty = float(rng.choice([0.0, 10.0 ** rng.uniform(-3.0, 0.0)]))
    return Ridge(_weight(rng, devices), _kept(rng, inputs.shape[2]), inputs, targets, penalty, batch)


def _logistic(rng: np.random.Generator, devices: int, held: bool = False) -> Logistic:
    inputs, _, batch = _samples(rng, devices, held)
    penalty = 10.0 ** rng.uniform(-2.0, 0.0)
    return Logistic.of(_weight(rng, devices), _kept(rng, inputs.shape[2]), inputs, penalty, batch)


def _alike(rng: np.random.Generator, devices: int, draws: int) -> Quadratics:
    """The same round bowl for every device: Jensen and PL are equalities, so the bound has no slack to hide in."""
    size = int(rng.integers(2, 7))
    errors = rng.normal(size=(devices, draws, size)) * rng.choice([0.0, 0.3, 3.0])
    errors = errors - errors.mean(axis=1, keepdims=True)
    hessian, centre = (
        np.tile(rng.uniform(0.1, 10.0) * np.eye(size), (devices, 1, 1)),
        np.tile(np.ones(size), (devices, 1)),
    )
    return Quadratics(_weight(rng, devices), _kept(rng, size), hessian, centre, errors)


def _decisions(rng: np.random.Generator, problem: Known, *, alike: bool = False) -> Decide:
    """Modules at random for every point, by the greatest Σ U π there, or one for all; π falls with the module.

    `alike` gives all devices the same module and π at a point.
    """
    kind, devices, modules = rng.choice(["random", "greedy", "fixed"]), len(problem.weight), len(problem.kept)
    outage = rng.choice([0.0, 0.3])

    def decide(t: int, local: Local) -> tuple[NDArray[np.int64], Floats]:
        points = len(local.gamma_sq)
        table = np.sort(rng.random((devices, modules)), axis=1)[:, ::-1] ** rng.uniform(0.1, 2.0)
        table[rng.random(devices) < 0.1] = 1.0
        table[rng.random(devices) < outage] = 0.0
        match kind:
            case "random":
                module = rng.integers(0, modules + 1, (points, devices))
            case "greedy":
                worth = (local.gamma_sq[..., None] * (1.0 - local.delta[:, None]) - local.noise) * table
                module = np.where(worth.max(axis=-1) > 0, worth.argmax(axis=-1) + 1, 0)
            case _:
                module = np.tile(rng.integers(0, modules + 1, devices), (points, 1))
        if alike:
            table, module = np.tile(table[0], (devices, 1)), np.tile(module[:, :1], (1, devices))
        chosen = table[np.arange(devices), np.maximum(module, 1) - 1]
        return module.astype(np.int64), np.where(module > 0, chosen, 0.0)

    return decide


def _walk(
    rng: np.random.Generator,
    problem: Known,
    divergences: Mapping[str, Divergence],
    *,
    common: bool = False,
    alike: bool = False,
) -> Path:
    """Enumerate as many rounds as fit from a random start with a random step up to 1/L, or 1/L for devices alike."""
    size = problem.kept[-1]
    draws = problem.draws(np.zeros((1, size))).shape[2]
    children = (1 + draws) ** len(problem.weight) * (2 if common else 1)
    rounds = min(int(np.log(LEAVES_MAX) / np.log(children)), ROUNDS_MAX)
    step = (1.0 if alike else float(rng.choice([1.0, rng.uniform(0.1, 1.0)]))) / problem.curvature.smoothness
    start, decide = 2.0 * rng.normal(size=size), _decisions(rng, problem, alike=alike)
    return enumerated(problem, start, step, rounds, decide, divergences, common=common)


def _of_quadratics(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    return _walk(rng, _quadratics(rng, int(rng.integers(1, 4)), 2, rank_lost=False), divergences)


def _of_flat_quadratics(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    return _walk(rng, _quadratics(rng, int(rng.integers(1, 4)), 2, rank_lost=True), divergences)


def _of_alike(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    return _walk(rng, _alike(rng, int(rng.integers(1, 4)), 2), divergences, alike=True)


def _of_ridge(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    return _walk(rng, _ridge(rng, int(rng.integers(1, 5))), divergences)


def _of_logistic(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    return _walk(rng, _logistic(rng, int(rng.integers(1, 5))), divergences)


def _of_many_rounds(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    """Up to ten devices and forty rounds; outages come and go as a Markov chain for each device."""
    devices, rounds = int(rng.integers(2, 11)), int(rng.integers(5, 41))
    problem = _quadratics(rng, devices, 2, rank_lost=bool(rng.random() < 0.3))
    stays, up = rng.uniform(0.5, 0.95), np.empty((rounds, devices), np.bool_)
    up[0] = rng.random(devices) < 0.8
    for t in range(1, rounds):
        up[t] = np.where(rng.random(devices) < stays, up[t - 1], rng.random(devices) < 0.8)
    module = rng.integers(0, len(problem.kept) + 1, (rounds, devices))
    success = np.where((module > 0) & up, rng.random((rounds, devices)) ** rng.uniform(0.0, 1.0), 0.0)
    step = float(rng.choice([1.0, rng.uniform(0.1, 1.0)])) / problem.curvature.smoothness
    return moments(problem, 2.0 * rng.normal(size=problem.kept[-1]), step, module, success, divergences)


def _of_biased(rng: np.random.Generator, divergences: Mapping[str, Divergence]) -> Path:
    """Devices that hold a part of their population, biased errors, deliveries that share one weather."""
    devices, common = int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    match int(rng.integers(4)):
        case 0:
            return _walk(rng, _alike(rng, devices, 2), divergences, common=True, alike=True)
        case 1:
            problem = _quadratics(rng, devices, 1, rank_lost=False, biased=True)
        case 2:
            problem = _ridge(rng, devices, held=True)
        case _:
            problem = _logistic(rng, devices, held=True)
    return _walk(rng, problem, divergences, common=common)


FAMILIES = (
    Family("quadratics", True, _of_quadratics),
    Family("quadratics, PL only", True, _of_flat_quadratics),
    Family("quadratics, all alike", True, _of_alike),
    Family("ridge regression", True, _of_ridge),
    Family("logistic regression", True, _of_logistic),
    Family("quadratics, 5–40 rounds", True, _of_many_rounds),
    Family("biased, correlated", False, _of_biased),
)
"""Instance i belongs to family i mod 7."""
