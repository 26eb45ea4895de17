"""The energy-ordered basis against dense products and their SVD, and what the server keeps."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.learning.basis import energy_change, energy_ordered
from airtune.learning.server import ServerState, first_server

OUT, IN, R = 9, 12, 5


def factors(seed, rank=R):
    """Random B of the given rank (its last columns zero) and A, float32."""
    rng = np.random.default_rng(seed)
    b = rng.normal(size=(OUT, R)) * (np.arange(R) < rank)
    return torch.tensor(b, dtype=torch.float32), torch.tensor(rng.normal(size=(R, IN)), dtype=torch.float32)


def adapters_of(seed, **ranks):
    made = {}
    for index, (name, rank) in enumerate(ranks.items()):
        made[f"{name}.lora_B"], made[f"{name}.lora_A"] = factors(10 * seed + index, rank)
    return made | {"head.weight": torch.full((2, 3), float(seed))}


def product(adapters, name):
    return (adapters[f"{name}.lora_B"].double() @ adapters[f"{name}.lora_A"].double()).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, R))
def test_the_function_stays_and_components_are_its_singular_vectors(seed, rank):
    before = adapters_of(seed, q=rank)
    after, _ = energy_ordered(before, first_server(before))
    dense = product(before, "q")
    scale = max(np.abs(dense).max(), 1e-30)
    assert np.abs(product(after, "q") - dense).max() <= 1e-6 * scale
    values = np.linalg.svd(dense, compute_uv=False)[:R]
    b, a = after["q.lora_B"].double().numpy(), after["q.lora_A"].double().numpy()
    got = np.linalg.norm(b, axis=0) * np.linalg.norm(a, axis=1)
    assert got == pytest.approx(values, abs=1e-5 * max(values[0], 1e-30))
    if rank:  # A's rows are orthogonal and keep their mean size
        size = float(before["q.lora_A"].double().norm()) ** 2 / R
        assert a @ a.T == pytest.approx(size * np.eye(R), abs=1e-4 * size)
    for m in range(1, rank + 1):  # the first m components are the best approximation of rank m
        error = np.linalg.norm(dense - b[:, :m] @ a[:m])
        assert error == pytest.approx(np.sqrt((values[m:] ** 2).sum()), abs=1e-5 * values[0])


def test_a_start_without_energy_is_left_alone_and_null_components_can_learn():
    start = adapters_of(1, q=0)
    after, server = energy_ordered(start, first_server(start))
    assert all(torch.equal(after[name], start[name]) for name in start)
    assert all(torch.equal(server.average[name], start[name]) for name in start)
    partly, _ = energy_ordered(adapters_of(1, q=2), first_server(start))
    assert (partly["q.lora_B"][:, 2:].abs().max() < 1e-6) and torch.linalg.matrix_rank(partly["q.lora_A"]) == R
    typical = adapters_of(1, q=2)["q.lora_A"].norm() / R**0.5
    rows = partly["q.lora_A"].norm(dim=1)[2:]
    assert (0.5 * typical < rows).all() and (rows < 2.0 * typical).all()


def test_what_the_server_keeps_means_the_same():
    """The average is the function it was and momentum the same motion of it; each matrix has a basis of its own."""
    theta, average, momentum = adapters_of(1, q=R, v=3), adapters_of(2, q=R, v=R), adapters_of(3, q=R, v=R)
    square = {name: tensor.square() for name, tensor in momentum.items()}
    after, server = energy_ordered(theta, ServerState(momentum, square, average, 7))
    assert server.steps == 7 and server.average.keys() == average.keys()
    for name in ("q", "v"):
        for one, other in ((average, server.average), (theta, after)):
            assert np.abs(product(other, name) - product(one, name)).max() <= 2e-6 * np.abs(product(one, name)).max()

        def motion(at, along, name=name):
            at, along = ({key: value.double() for key, value in part.items()} for part in (at, along))
            b, a = f"{name}.lora_B", f"{name}.lora_A"
            return (along[b] @ at[a] + at[b] @ along[a]).numpy()

        moved = motion(theta, momentum)
        assert np.abs(motion(after, server.momentum) - moved).max() <= 1e-5 * np.abs(moved).max()
    for one, other in ((average, server.average), (momentum, server.momentum), (square, server.square)):
        assert torch.equal(one["head.weight"], other["head.weight"])
    assert all((server.square[name] >= 0).all() for name in server.square)
    assert not torch.allclose(server.square["q.lora_A"], square["q.lora_A"])


def test_rewriting_twice_changes_nothing_more():
    """In its own basis already, signs included: G is the identity, so every second moment stays too."""
    once, _ = energy_ordered(adapters_of(4, q=R), first_server(adapters_of(4, q=R)))
    change, back = energy_change(once["q.lora_B"], once["q.lora_A"])
    assert change.numpy() == pytest.approx(np.eye(R), abs=1e-5) and back.numpy() == pytest.approx(np.eye(R), abs=1e-5)


def test_signs_follow_the_components_that_were():
    """A small step turns components a little and flips none."""
    once, _ = energy_ordered(adapters_of(5, q=R), first_server(adapters_of(5, q=R)))
    near = {name: tensor + 1e-3 * adapters_of(6, q=R)[name] for name, tensor in once.items()}
    change, _ = energy_change(near["q.lora_B"], near["q.lora_A"])
    assert (change.diagonal() > 0.9).all()


def test_tensors_without_factors_stay():
    plain = {"w": torch.ones(2)}
    after, server = energy_ordered(plain, first_server(plain))
    assert after["w"] is plain["w"] and server.average["w"].tolist() == [1.0, 1.0]
