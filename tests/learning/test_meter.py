"""What a device reports of its gradient at θ_t: against gradients of whole slices, and against their distribution."""

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning.engine import Rates
from airtune.learning.meter import Meter, halves

RANKS, DEPTHS = (1, 2, 2, 4), (2, 2, 4, 4)
BATCHES = [np.array(rows) for rows in ([0, 1, 2, 3, 4], [4, 5, 6, 7])]
RATES = Rates(adapter=5e-3, head=2e-3, server=1.0)


def by_hand(case, tensors, module):
    """Squared norm in module j but not in module j − 1, from the slices themselves."""
    whole = {name: torch.zeros_like(tensor).double() for name, tensor in case.family.initial(0).items()}
    for name, tensor in tensors.items():
        whole[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
    within = [sum(float(x.square().sum()) for x in case.family.slice(whole, m).values()) for m in range(1, 5)]
    return np.diff(within, prepend=0.0) * (np.arange(4) < module)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("module", [1, 2, 3, 4])
def test_energy_and_noise_by_increment(kit, module, optimizer):
    """Gradients of the batch and of its halves, one plain SGD step each, whatever the local optimiser and clipping."""
    case = kit.setup("bert", RANKS, DEPTHS, LearningConfig(optimizer=optimizer, clip_norm=1e-3), double=True)
    plain = kit.setup("bert", RANKS, DEPTHS, LearningConfig(optimizer="sgd", clip_norm=1e9), double=True)
    adapters = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    start, rest = case.family.slice(adapters, module), case.family.rest(adapters, module)
    rate = {name: RATES.head if name in {n for n, _ in case.family.head} else RATES.adapter for name in start}

    def gradient(index):
        moved = plain.engine.train(start, plain.tokens, [index], RATES, rest=rest).delta
        return {name: x / rate[name] for name, x in moved.items()}

    whole, first, second = (gradient(index) for index in (BATCHES[0], BATCHES[0][0::2], BATCHES[0][1::2]))
    told = case.engine.train(start, case.tokens, BATCHES, RATES, rest=rest, measure=True).reading
    assert told.energy == pytest.approx(by_hand(case, whole, module), rel=1e-6)
    apart = {name: first[name] - second[name] for name in first}
    assert told.noise == pytest.approx(by_hand(case, apart, module) * 3 * 2 / 25, rel=1e-6)
    assert [energy > 0 for energy in told.energy] == [m < module for m in range(4)]


def test_a_batch_of_one_tells_no_noise(kit):
    case = kit.setup("bert", RANKS, DEPTHS, LearningConfig())
    start = case.family.slice(case.family.initial(0), 4)
    told = case.engine.train(start, case.tokens, [np.array([3])], RATES, measure=True).reading
    assert told.noise is None and told.energy.sum() > 0
    assert [half.tolist() for half in halves(np.array([7]))] == [[7]]


def test_noise_is_unbiased_for_independent_samples(kit):
    """600 batches of three and two Gaussian gradients: energy less noise is the mean's, noise the mean's variance."""
    family = kit.setup("bert", RANKS, DEPTHS, LearningConfig()).family
    rng = np.random.default_rng(0)
    part = {name: x for name, x in family.slice(family.initial(0), 2).items() if "layer.3" in name}
    leaves = {name: torch.zeros_like(x, requires_grad=True) for name, x in part.items()}
    mean = {name: rng.normal(size=tuple(x.shape)) for name, x in leaves.items()}
    count, sigma, energy, noise = sum(x.numel() for x in leaves.values()), 2.0, [], []
    for _ in range(600):
        meter = Meter(family, leaves, [np.arange(3), np.arange(2)])
        each = {name: mean[name] + sigma * rng.normal(size=(5, *mean[name].shape)) for name in mean}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(each[name][:3].sum(axis=0) / 5, dtype=torch.float32)
        meter.note()
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(each[name].mean(axis=0), dtype=torch.float32)
        meter.note()
        reading = meter.read()
        energy.append(reading.energy.sum())
        noise.append(reading.noise.sum())
    assert np.mean(noise) == pytest.approx(count * sigma**2 / 5, rel=0.02)
    signal = sum(float((x**2).sum()) for x in mean.values())
    assert np.mean(energy) - np.mean(noise) == pytest.approx(signal, rel=0.05)
