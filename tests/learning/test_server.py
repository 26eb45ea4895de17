"""The server's step against closed forms and against torch's own Adam."""

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning.aggregate import renormalised_mean
from airtune.learning.server import first_server, server_step
from airtune.types import Update

SHAPES = {"net.layer.0.query.lora_A": (4, 3), "net.layer.0.query.lora_B": (2, 4), "score.bias": (2,)}


def filled(value):
    return {name: torch.full(shape, value) for name, shape in SHAPES.items()}


def drawn(seed, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}


def mean_config(**changes):
    return LearningConfig(**{"server_optimizer": "mean", "server_rate": 1.0, "server_momentum": 0.0, **changes})


def test_plain_averaging_adds_the_change_and_leaves_its_inputs():
    theta, change = filled(0.25), drawn(1)
    moved, server = server_step(theta, first_server(theta), change, mean_config(average=0.0), 0.3)
    for name in SHAPES:
        torch.testing.assert_close(moved[name], 0.25 + change[name])
        assert torch.equal(server.average[name], moved[name])
        assert (theta[name] == 0.25).all() and (server.square[name] == 0).all()
    assert set(server.steps.values()) == {1}


def test_momentum_and_average_in_closed_form():
    """Constant change c: m_n = c (1−β^n), θ_n = θ_0 + η Σ m_i; the average is exponential over θ_1…θ_n."""
    rate, beta, decay, steps, c = 0.5, 0.8, 0.6, 6, 0.01
    config = mean_config(server_rate=rate, server_momentum=beta, average=decay)
    theta = filled(0.25)
    server = first_server(theta)
    for _ in range(steps):
        theta, server = server_step(theta, server, filled(c), config, 1.0)
    velocity = [c * (1 - beta**n) for n in range(1, steps + 1)]
    path = 0.25 + rate * np.cumsum(velocity)
    average = decay**steps * 0.25 + sum((1 - decay) * decay ** (steps - n) * path[n - 1] for n in range(1, steps + 1))
    for name in SHAPES:
        np.testing.assert_allclose(server.momentum[name].numpy(), velocity[-1], rtol=1e-5)
        np.testing.assert_allclose(theta[name].numpy(), path[-1], rtol=1e-5)
        np.testing.assert_allclose(server.average[name].numpy(), average, rtol=1e-5)
    assert set(server.steps.values()) == {steps}


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.99), (0.0, 0.9)])
def test_adam_is_torch_s_adam_on_minus_the_change(first, second):
    """Eight rounds of random changes of very different size, with the rate following a schedule."""
    config = LearningConfig(
        server_optimizer="adam", server_rate=0.02, server_momentum=first, server_memory=second, average=0.0
    )
    theta = drawn(0)
    server = first_server(theta)
    reference = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in theta.items()}
    adam = torch.optim.Adam(reference.values(), lr=1.0, betas=(first, second), eps=1e-8)
    for t in range(8):
        schedule = 1.0 - 0.1 * t
        change = drawn(t + 1, 10.0 ** (t % 3 - 2))
        theta, server = server_step(theta, server, change, config, schedule)
        adam.param_groups[0]["lr"] = 0.02 * schedule
        for name, parameter in reference.items():
            parameter.grad = -change[name]
        adam.step()
    for name in SHAPES:
        torch.testing.assert_close(theta[name], reference[name].detach(), rtol=1e-5, atol=1e-6)


def test_what_nobody_delivered_stays_where_it_is():
    """A component without any change so far has no momentum and does not move under any optimiser."""
    change = drawn(3)
    change["net.layer.0.query.lora_A"][2:] = 0.0
    for config in (mean_config(), *(LearningConfig(server_optimizer=name) for name in ("adam", "block"))):
        theta = filled(0.25)
        server = first_server(theta)
        for _ in range(3):
            theta, server = server_step(theta, server, change, config, 1.0)
        assert (theta["net.layer.0.query.lora_A"][2:] == 0.25).all()
        assert (theta["net.layer.0.query.lora_A"][:2] != 0.25).all()


def test_block_takes_one_step_size_for_each_tensor():
    """After any number of rounds with the same change c, m̂ = c and v̂ = mean(c²): every entry moves by c / rms(c)."""
    config = LearningConfig(server_optimizer="block", server_rate=0.02, average=0.0)
    theta, change = drawn(0), drawn(1)
    start, server = theta, first_server(theta)
    for _ in range(5):
        theta, server = server_step(theta, server, change, config, 0.5)
    for name in SHAPES:
        rms = change[name].pow(2).mean().sqrt()
        torch.testing.assert_close(theta[name] - start[name], 5 * 0.01 * change[name] / rms, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "block", "yogi", "mean"])
def test_an_adaptive_server_moves_a_component_by_its_share(name):
    """m̂ of a constant change is c times it, v̂ is its square whatever the share; the plain mean knows no share."""
    config = LearningConfig(server_optimizer=name, server_rate=0.02, server_momentum=0.0, average=0.0)
    share = {"net.layer.0.query.lora_A": torch.tensor([[1.0], [0.5], [0.25], [0.0]])}
    moves = []
    for given in (None, {}, share):
        theta, server = filled(0.25), first_server(filled(0.25))
        for _ in range(4):
            theta, server = server_step(theta, server, filled(0.1), config, 1.0, given)
        moves.append({name: theta[name] - 0.25 for name in SHAPES})
    assert all(torch.equal(moves[0][name], moves[1][name]) for name in SHAPES)
    for tensor in SHAPES:
        factor = share.get(tensor, torch.ones(())) if name != "mean" else 1.0
        torch.testing.assert_close(moves[2][tensor], moves[0][tensor] * factor)
        assert (moves[0][tensor] > 0).all()


@pytest.mark.parametrize(("scaled", "least", "most"), [(True, 0.05, 0.15), (False, 0.5, 0.7)])
def test_one_device_s_components_do_not_outweigh_the_fleet(scaled, least, most):
    """The model is s = a + b; ten devices train a, one of them b too; its optimum is 1, the others' 0.

    The fleet's optimum is 0.1. With steps of one size any s between 0.1 and 1 is at rest (docs/theory.md §2, coverage).
    """
    config = LearningConfig(server_optimizer="adam", server_rate=0.01, average=0.0)
    theta = {"net.layer.0.query.lora_A": torch.tensor([[0.6], [0.0]])}
    server = first_server(theta)
    for _ in range(300):
        (factor,) = theta.values()
        s = float(factor.sum())
        updates = []
        for k, (module, optimum) in enumerate([(2, 1.0), *[(1, 0.0)] * 9]):
            delta = {"net.layer.0.query.lora_A": 0.1 * torch.full((module, 1), optimum - s)}
            updates.append(Update(k, module, 0.1, delta, 0.0))
        change, share = renormalised_mean(theta, updates)
        theta, server = server_step(theta, server, change, config, 1.0, share if scaled else None)
    assert least < float(next(iter(theta.values())).sum()) < most


def test_yogi_by_hand():
    """v moves by (1−β₂) Δ² towards Δ², whatever its distance; no correction of it, ε = 1e-3 (Reddi et al. 2021)."""
    config = LearningConfig(
        server_optimizer="yogi", server_rate=0.1, server_momentum=0.5, server_memory=0.9, average=0.0
    )
    theta, server = filled(0.0), first_server(filled(0.0))
    v = m = x = 0.0
    for step, delta in enumerate((2.0, 1.0, -3.0), 1):
        theta, server = server_step(theta, server, filled(delta), config, 1.0)
        m = 0.5 * m + 0.5 * delta
        v = v - 0.1 * np.sign(v - delta**2) * delta**2
        x += 0.1 * m / (1 - 0.5**step) / (v**0.5 + 1e-3)
    for name in SHAPES:
        np.testing.assert_allclose(theta[name].numpy(), x, rtol=1e-5)


def test_a_factor_whose_turn_it_is_not_stays_with_its_momentum():
    """Adam's bias correction counts the rounds of each tensor: after one change each, both have moved alike."""
    config = LearningConfig(server_optimizer="adam", server_rate=0.02, average=0.0)
    theta, server = filled(0.25), first_server(filled(0.25))
    a, b = "net.layer.0.query.lora_A", "net.layer.0.query.lora_B"
    for name in (b, a):
        theta, server = server_step(theta, server, {name: torch.ones(SHAPES[name])}, config, 1.0)
    assert server.steps == {a: 1, b: 1, "score.bias": 0}
    torch.testing.assert_close(theta[a], torch.full(SHAPES[a], 0.27))
    torch.testing.assert_close(theta[b], torch.full(SHAPES[b], 0.27))
    assert (theta["score.bias"] == 0.25).all()


def test_changes_of_frozen_weights_are_added_as_they_are():
    theta = filled(0.25) | {"net.layer.0.query.merged": torch.zeros(2, 3)}
    server = first_server(theta)
    assert "net.layer.0.query.merged" not in server.momentum
    change = filled(0.0) | {"net.layer.0.query.merged": torch.ones(2, 3)}
    for _ in range(2):
        theta, server = server_step(theta, server, change, mean_config(server_momentum=0.9, average=0.0), 1.0)
    assert (theta["net.layer.0.query.merged"] == 2.0).all()
    assert (server.average["net.layer.0.query.merged"] == 2.0).all()
