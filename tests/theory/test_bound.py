"""(9)–(12) against explicit sums, and Theorems 1 and 2 against exact expectations."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.theory.bound import bound_step, divergence_phi, divergence_tight, utility
from airtune.types import AirtuneError


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12), st.floats(0, 0.99), st.floats(0.01, 1), st.floats(0, 5))
def test_recursion_is_the_explicit_sum(phis, contraction, step, start):
    """(9): (1−ημ)^T B_0 + (η/2) Σ_t (1−ημ)^{T−1−t} Φ_t, summed term by term."""
    bound = start
    for phi in phis:
        bound = bound_step(bound, phi, contraction, step)
    rounds = len(phis)
    explicit = contraction**rounds * start + sum(
        step / 2 * contraction ** (rounds - 1 - t) * phi for t, phi in enumerate(phis)
    )
    assert bound == pytest.approx(explicit, rel=1e-9, abs=1e-12)


def test_divergence_by_hand():
    """(10): idle 0.2·4 = 0.8; module 1 at π = ½ 0.3·(2·(1−½·½)+½·0.4) = 0.51; module 2 0.5·(1·0+0.6) = 0.3."""
    phi = divergence_phi(
        weight=np.array([0.2, 0.3, 0.5]),
        gamma_sq=np.array([4.0, 2.0, 1.0]),
        delta=np.array([0.5, 0.0]),
        noise=np.array([[9.0, 9.0], [0.4, 0.8], [0.3, 0.6]]),
        module=np.array([0, 1, 2]),
        success_probability=np.array([0.0, 0.5, 1.0]),
    )
    assert phi == pytest.approx(0.8 + 0.51 + 0.3, rel=1e-12)


@pytest.fixture(scope="module")
def reference():
    path = Path(__file__).parents[1] / "reference" / "bound_reference.py"
    spec = importlib.util.spec_from_file_location("bound_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tighter_divergence_by_hand():
    """(12): idle 0.2·4; module 1 at π = ½ 0.3·2·(½+¼·½) + 0.09·(¼·½·2+½·0.4); module 2 at π = 1 0.25·0.6."""
    phi = divergence_tight(
        weight=np.array([0.2, 0.3, 0.5]),
        gamma_sq=np.array([4.0, 2.0, 1.0]),
        delta=np.array([0.5, 0.0]),
        noise=np.array([[9.0, 9.0], [0.4, 0.8], [0.3, 0.6]]),
        module=np.array([0, 1, 2]),
        success_probability=np.array([0.0, 0.5, 1.0]),
    )
    assert phi == pytest.approx(0.8 + 0.375 + 0.0405 + 0.15, rel=1e-12)


def draw_round(rng, devices, *, same=False):
    """Gradients, unbiased errors, modules and probabilities of one round; `same` makes the devices alike."""
    kept, size = (1, 2, 4), 4
    gradients = np.tile(rng.normal(size=size), (devices, 1)) if same else rng.normal(size=(devices, size))
    half = rng.exponential() * rng.normal(size=(devices, 1, size))
    module = np.full(devices, rng.integers(0, 4)) if same else rng.integers(0, 4, devices)
    success = np.full(devices, rng.random()) if same else rng.choice([0.0, rng.random(), 1.0], devices)
    return (
        rng.dirichlet(np.ones(devices)),
        gradients,
        np.concatenate([half, -half], 1),
        kept,
        module,
        success * (module > 0),
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_theorem_2_bounds_the_enumerated_deviation(reference, seed, devices):
    """(12) is at least E‖∇R − u‖², and at most (10), by exactly what the theorem says."""
    rng = np.random.default_rng(seed)
    weight, gradients, errors, kept, module, success = draw_round(rng, devices)
    known = (weight, *reference.least_constants(gradients, kept, errors))
    exact = reference.mean_squared_deviation(weight, gradients, [(0, *kept)[m] for m in module], success, errors)
    tight, loose = divergence_tight(*known, module, success), divergence_phi(*known, module, success)
    assert exact <= tight * (1 + 1e-9)
    gap = 0.0
    for k in range(devices):
        if module[k]:
            caught = known[1][k] * (1 - known[2][module[k] - 1]) * (1 - success[k])
            gap += weight[k] * (1 - weight[k]) * success[k] * (caught + known[3][k, module[k] - 1])
    assert loose - tight == pytest.approx(gap, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_theorem_2_is_an_equality_for_devices_that_are_alike(reference, seed, devices):
    """(12): equal gradients and decisions leave no slack, so no smaller form is true."""
    rng = np.random.default_rng(seed)
    weight, gradients, errors, kept, module, success = draw_round(rng, devices, same=True)
    known = (weight, *reference.least_constants(gradients, kept, errors))
    exact = reference.mean_squared_deviation(weight, gradients, [(0, *kept)[m] for m in module], success, errors)
    assert divergence_tight(*known, module, success) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("divergence", [divergence_phi, divergence_tight])
def test_many_rounds_at_once(divergence):
    """(10) and (12) with leading axes are the rounds one by one."""
    rng = np.random.default_rng(3)
    weight, success = rng.dirichlet(np.ones(3)), rng.random((5, 3))
    gamma_sq, delta, noise = rng.random((5, 3)), np.sort(rng.random((5, 2)))[:, ::-1], rng.random((5, 3, 2))
    module = rng.integers(0, 3, (5, 3))
    together = divergence(weight, gamma_sq, delta, noise, module, success)
    alone = [float(divergence(weight, gamma_sq[n], delta[n], noise[n], module[n], success[n])) for n in range(5)]
    assert together == pytest.approx(alone, rel=1e-12)


@given(st.integers(0, 10_000))
def test_utility_is_what_delivery_takes_off_the_divergence(seed):
    """(11): Φ = Σ ω Γ² − Σ U π for every choice of modules and probabilities."""
    rng = np.random.default_rng(seed)
    devices, modules = 5, 3
    weight = rng.dirichlet(np.ones(devices))
    gamma_sq, delta = rng.exponential(size=devices), np.sort(rng.random(modules))[::-1]
    noise, module = rng.random((devices, modules)), rng.integers(0, modules + 1, devices)
    success = rng.random(devices) * (module > 0)
    saved = utility(weight, gamma_sq, delta, noise)
    assert saved.shape == (devices, modules)
    expected = float(weight @ gamma_sq)
    for k in range(devices):
        expected -= saved[k, module[k] - 1] * success[k] if module[k] else 0.0
    assert divergence_phi(weight, gamma_sq, delta, noise, module, success) == pytest.approx(expected, rel=1e-9)


def test_bad_input_is_refused():
    one = np.ones(1)
    with pytest.raises(AirtuneError, match="contraction"):
        bound_step(1.0, 1.0, 1.0, 0.1)
    with pytest.raises(AirtuneError, match="step"):
        bound_step(1.0, 1.0, 0.5, 0.0)
    with pytest.raises(AirtuneError, match="modules"):
        divergence_phi(one, one, one, np.ones((1, 1)), np.array([2]), one)
    with pytest.raises(AirtuneError, match="probabilities"):
        divergence_phi(one, one, one, np.ones((1, 1)), np.array([1]), 1.5 * one)


@dataclass
class Quadratics:
    """R_k(θ) = ½ (θ−c_k)ᵀ A_k (θ−c_k), R = Σ ω_k R_k; module m keeps the first `kept[m−1]` coordinates."""

    weight: np.ndarray
    hessian: np.ndarray
    centre: np.ndarray
    kept: tuple[int, ...]

    @classmethod
    def draw(cls, rng, devices, kept, spread):
        """`spread` 0: one isotropic bowl for all; larger: ill-conditioned, and every device wants another θ."""
        size = kept[-1]
        root = rng.normal(size=(devices, size, size))
        hessian = np.eye(size) + spread * root @ root.transpose(0, 2, 1)
        centre = rng.normal(size=size) + spread * rng.normal(size=(devices, size))
        return cls(rng.dirichlet(np.ones(devices)), hessian, centre, kept)

    def gradients(self, theta):
        """∇R_k at each of N points, N×K×d."""
        return np.einsum("kij,nkj->nki", self.hessian, theta[:, None] - self.centre)

    def risk(self, theta):
        offset = theta[:, None] - self.centre
        return 0.5 * np.einsum("k,nki,kij,nkj->n", self.weight, offset, self.hessian, offset)

    @property
    def spectrum(self):
        return np.linalg.eigvalsh(np.einsum("k,kij->ij", self.weight, self.hessian))

    @property
    def least(self):
        mean = np.einsum("k,kij->ij", self.weight, self.hessian)
        best = np.linalg.solve(mean, np.einsum("k,kij,kj->i", self.weight, self.hessian, self.centre))
        return self.risk(best[None])[0]

    def mask(self, module):
        """Diagonal of Π_m for modules 0…M, shape of `module` × d."""
        kept = np.array((0, *self.kept))[module]
        return np.arange(self.centre.shape[1]) < kept[..., None]


def measured_constants(problem, theta, error_sq):
    """Γ_k², δ_m, v that hold at every point of the tree: the least for which A3–A5 are true."""
    gradients = problem.gradients(theta)
    norm_sq = (gradients**2).sum(-1)
    missed = [((gradients * ~problem.mask(np.array(m + 1))) ** 2).sum(-1) for m in range(len(problem.kept))]
    delta = np.array([np.max(part / norm_sq) for part in missed])
    return norm_sq.max(0), delta, error_sq


def grow(problem, rng, rounds, step, noise_scale):
    """Exact expectation of R(θ_T) − R* over every outcome, and the bound; the decision differs at every node.

    Each scheduled upload is lost, or arrives with its error plus or minus: 3^K children of each node. The error has a
    bias, so the theorem is tested without unbiasedness.
    """
    devices, size = problem.centre.shape
    theta, chance = rng.normal(size=(1, size)), np.ones(1)
    bound = float(problem.risk(theta)[0] - problem.least)
    bounds, gaps = [bound], [bound]
    outcomes = np.stack(np.meshgrid(*[[0, 1, 2]] * devices, indexing="ij"), -1).reshape(-1, devices)
    for _ in range(rounds):
        module = rng.integers(0, len(problem.kept) + 1, (len(theta), devices))
        success = rng.random((len(theta), devices)) * (module > 0)
        bias, spread = noise_scale * rng.normal(size=(2, devices, size))
        error_sq = np.stack(  # E‖Π(g−∇R)‖² = ½‖Π(b+s)‖² + ½‖Π(b−s)‖²
            [0.5 * (((bias + spread) * mask) ** 2 + ((bias - spread) * mask) ** 2).sum(-1)
             for mask in problem.mask(np.arange(1, len(problem.kept) + 1))], axis=1,
        )  # fmt: skip
        gamma_sq, delta, noise = measured_constants(problem, theta, error_sq)
        phis = [
            divergence_phi(problem.weight, gamma_sq, delta, noise, module[n], success[n]) for n in range(len(theta))
        ]
        bound = bound_step(bound, float(chance @ phis), 1.0 - step * problem.spectrum[0], step)
        table = np.stack((1.0 - success, success / 2, success / 2), axis=-1)
        factor = table[:, np.arange(devices), outcomes]  # N × 3^K × K
        error = np.where(outcomes[..., None] == 1, bias + spread, bias - spread)  # 3^K × K × d
        arrived = (outcomes > 0)[..., None]
        uploads = arrived * problem.mask(module)[:, None] * (problem.gradients(theta)[:, None] + error)
        theta = theta[:, None] - step * np.einsum("k,nski->nsi", problem.weight, uploads)
        chance = chance[:, None] * factor.prod(-1)
        theta, chance = theta.reshape(-1, size), chance.reshape(-1)
        theta, chance = theta[chance > 0], chance[chance > 0]
        bounds.append(bound)
        gaps.append(float(chance @ problem.risk(theta) - problem.least))
    assert chance.sum() == pytest.approx(1.0)
    return np.array(gaps), np.array(bounds)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 4), (2, 3), (3, 2)]),
    st.sampled_from([0.0, 0.1, 1.0]),
    st.floats(0.3, 1.0),
    st.sampled_from([0.0, 0.3, 3.0]),
)
def test_theorem_1_holds_on_quadratics(seed, shape, spread, fraction, noise_scale):
    """(9), (10): with constants known exactly, the bound is at least the exact expected gap after every round."""
    devices, rounds = shape
    rng = np.random.default_rng(seed)
    problem = Quadratics.draw(rng, devices, (1, 2, 4), spread)
    gaps, bounds = grow(problem, rng, rounds, fraction / problem.spectrum[-1], noise_scale)
    assert np.all(bounds >= gaps * (1 - 1e-9))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 3.0]))
def test_theorem_1_is_an_equality_in_the_best_case(seed, noise_scale):
    """(9), (10): one device, an isotropic bowl, η = 1/L and one round leave no slack, whatever m, π, δ and v are.

    So no smaller Φ of this form can be true: an error in (10) either breaks this or the inequality above.
    """
    rng = np.random.default_rng(seed)
    problem = Quadratics.draw(rng, 1, (1, 2, 4), 0.0)
    gaps, bounds = grow(problem, rng, 1, 1.0 / problem.spectrum[-1], noise_scale)
    assert bounds[1] == pytest.approx(gaps[1], rel=1e-9)
