"""Aggregation against dense entry-by-entry sums, over drawn deliveries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.learning.aggregate import renormalised_mean, weighted_sum
from airtune.learning.lora import Family, Matrix
from airtune.types import Update

FAMILY = Family(
    matrices=tuple(Matrix(f"net.layer.{i}.query", i, 3, 2) for i in range(3)),
    layers=3,
    ranks=(1, 2, 4),
    depths=(1, 2, 3),
    alpha=8.0,
    head=(("score.weight", (2, 3)), ("score.bias", (2,))),
)
GLOBAL = {name: torch.full_like(tensor, 0.25) for name, tensor in FAMILY.initial(0).items()}

deliveries = st.lists(st.tuples(st.integers(1, 3), st.floats(0.01, 1.0), st.integers(0, 2**31 - 1)), max_size=5)


def updates_of(drawn):
    """One update per delivery: module, weight, seed of its values."""
    out = []
    for device, (module, weight, seed) in enumerate(drawn):
        draw = torch.Generator().manual_seed(seed)
        part = FAMILY.slice(GLOBAL, module)
        delta = {name: torch.randn(tensor.shape, generator=draw) for name, tensor in part.items()}
        out.append(Update(device, module, weight, delta, 0.0))
    return out


def uploads_of(updates):
    return [(one.weight, {name: tensor.numpy() for name, tensor in one.delta.items()}) for one in updates]


def mean_of(adapters, updates):
    return renormalised_mean(adapters, updates)[0]


def assert_same(got, want, atol=2e-6):
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(want[name]), rtol=2e-5, atol=atol, err_msg=name)


@given(deliveries)
@settings(max_examples=25, deadline=None)
def test_reference_aggregation(reference, drawn):
    """(8): a lost upload counts as zero, and so does what a small module does not hold."""
    updates = updates_of(drawn)
    got = weighted_sum(GLOBAL, updates)
    assert_same(got, reference.weighted_sum(GLOBAL, uploads_of(updates)))


@given(deliveries)
@settings(max_examples=25, deadline=None)
def test_renormalised_mean(reference, drawn):
    updates = updates_of(drawn)
    got, share = renormalised_mean(GLOBAL, updates)
    assert_same(got, reference.renormalised_mean(GLOBAL, uploads_of(updates)))
    dense = {name: tensor.expand_as(GLOBAL[name]) for name, tensor in share.items()}
    assert_same(dense, reference.delivered_share(GLOBAL, uploads_of(updates)))
    if len({one.module for one in updates}) == 1:
        part = FAMILY.slice(dense, updates[0].module)
        assert all((tensor == 1.0).all() for tensor in part.values())  # exactly: nothing changes for one module


@pytest.mark.parametrize("aggregate", [weighted_sum, mean_of])
@given(drawn=deliveries, order=st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_order_does_not_matter(aggregate, drawn, order):
    updates = updates_of(drawn)
    shuffled = updates.copy()
    order.shuffle(shuffled)
    assert_same(aggregate(GLOBAL, updates), aggregate(GLOBAL, shuffled))


def test_by_hand():
    """Two devices, ω 0.1 and 0.3, modules 1 and 2, changes 1 and 2: (8) adds 0.7, the mean is 1.75, alone it is 2."""
    updates = [
        Update(0, 1, 0.1, {n: torch.ones_like(x) for n, x in FAMILY.slice(GLOBAL, 1).items()}, 0.0),
        Update(1, 2, 0.3, {n: torch.full_like(x, 2.0) for n, x in FAMILY.slice(GLOBAL, 2).items()}, 0.0),
    ]
    total, (mean, share) = weighted_sum(GLOBAL, updates), renormalised_mean(GLOBAL, updates)
    torch.testing.assert_close(total["net.layer.2.query.lora_B"], torch.tensor([[0.7, 0.6, 0.0, 0.0]] * 2))
    torch.testing.assert_close(mean["net.layer.2.query.lora_B"], torch.tensor([[1.75, 2.0, 0.0, 0.0]] * 2))
    torch.testing.assert_close(mean["net.layer.1.query.lora_A"][:, 0], torch.tensor([2.0, 2.0, 0.0, 0.0]))
    torch.testing.assert_close(share["net.layer.2.query.lora_B"], torch.tensor([[1.0, 0.75, 0.0, 0.0]]))
    torch.testing.assert_close(mean["score.bias"], torch.tensor([1.75, 1.75]))
    assert (mean["net.layer.0.query.lora_A"] == 0).all() and (total["net.layer.0.query.lora_A"] == 0).all()


@pytest.mark.parametrize("aggregate", [weighted_sum, mean_of])
def test_nothing_delivered_changes_nothing_and_no_input_is_changed(aggregate):
    assert all((tensor == 0).all() for tensor in aggregate(GLOBAL, []).values())
    updates = updates_of([(3, 0.5, 1), (1, 0.5, 2)])
    before = [{name: tensor.clone() for name, tensor in one.delta.items()} for one in updates]
    aggregate(GLOBAL, updates)
    assert all((tensor == 0.25).all() for tensor in GLOBAL.values())
    for one, old in zip(updates, before, strict=True):
        assert all(torch.equal(one.delta[name], old[name]) for name in old)


@pytest.mark.parametrize("aggregate", [weighted_sum, mean_of])
def test_updates_stream_through(aggregate):
    """A generator is walked once, and each update is let go before the next one is made."""
    import weakref

    alive, most = [], 0

    def stream():
        nonlocal most
        for one in [(1, 0.2, 1), (3, 0.3, 2), (2, 0.5, 3), (3, 0.1, 4)]:
            update = updates_of([one])[0]
            tensor = update.delta["score.bias"]
            alive.append(weakref.ref(tensor))
            yield update
            del update, tensor
            most = max(most, sum(ref() is not None for ref in alive))

    once = stream()
    got = aggregate(GLOBAL, once)
    assert_same(got, aggregate(GLOBAL, updates_of([(1, 0.2, 1), (3, 0.3, 2), (2, 0.5, 3), (3, 0.1, 4)])))
    assert len(alive) == 4 and most <= 1 and next(once, None) is None
