"""What a device reports of its pseudo-gradient: against gradients taken one by one, and against their distribution."""

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning.engine import Rates
from airtune.learning.meter import Meter

RANKS, DEPTHS = (1, 2, 2, 4), (2, 2, 4, 4)
BATCHES = [np.array(rows) for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 10])]
RATES = Rates(adapter=5e-3, head=2e-3, server=1.0)


def by_hand(case, tensors, module):
    """Squared norm in module j but not in module j − 1, from the slices themselves."""
    whole = {name: torch.zeros_like(tensor) for name, tensor in case.family.initial(0).items()}
    for name, tensor in tensors.items():
        whole[name][tuple(slice(0, size) for size in tensor.shape)] = tensor.float()
    within = [sum(float(x.square().sum()) for x in case.family.slice(whole, m).values()) for m in range(1, 5)]
    return np.diff(within, prepend=0.0) * (np.arange(4) < module)


@pytest.mark.parametrize("module", [1, 2, 3, 4])
def test_energy_and_noise_by_increment(kit, module):
    """The steps' gradients are rebuilt from the engine itself: e steps less e − 1 steps, over the rate."""
    config = LearningConfig(optimizer="sgd", clip_norm=1e9)
    case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
    adapters = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    start, rest = case.family.slice(adapters, module), case.family.rest(adapters, module)
    trained = [case.engine.train(start, case.tokens, BATCHES[:count], RATES, rest=rest) for count in (1, 2, 3)]
    head = {name for name, _ in case.family.head}
    rate = {name: RATES.head if name in head else RATES.adapter for name in start}
    reached = [{name: x / rate[name] for name, x in one.delta.items()} for one in trained]
    nothing = {name: torch.zeros_like(x) for name, x in reached[0].items()}
    steps = [
        {name: after[name] - before[name] for name in after}
        for before, after in zip([nothing, *reached[:-1]], reached, strict=True)
    ]
    mean = {name: x / 3 for name, x in reached[-1].items()}
    spread = sum(by_hand(case, {name: step[name] - mean[name] for name in mean}, module) for step in steps)
    assert trained[2].energy == pytest.approx(by_hand(case, mean, module), rel=1e-5)
    assert trained[2].noise == pytest.approx(spread / (3 * 2), rel=1e-5)
    assert trained[0].noise is None and trained[0].energy == pytest.approx(by_hand(case, steps[0], module), rel=1e-5)
    reached_by = {m: trained[2].energy[m] > 0 for m in range(4)}
    assert reached_by == {m: m < module for m in range(4)}


def test_noise_is_unbiased_for_independent_steps(kit):
    """400 draws of four Gaussian steps about one mean: energy less noise is the signal, noise the variance."""
    family = kit.setup("bert", RANKS, DEPTHS, LearningConfig()).family
    rng = np.random.default_rng(0)
    start = {name: torch.zeros_like(x) for name, x in family.slice(family.initial(0), 2).items() if "layer.3" in name}
    mean = {name: rng.normal(size=tuple(x.shape)) for name, x in start.items()}
    count = sum(x.numel() for x in start.values())
    sigma, energy, noise = 2.0, [], []
    for _ in range(400):
        meter, at = Meter(family, start, Rates(0.5, 0.5, 1.0)), dict(start)
        for _ in range(4):
            for name in at:
                gradient = mean[name] + sigma * rng.normal(size=mean[name].shape)
                at[name] = at[name] - torch.tensor(0.5 * gradient, dtype=torch.float32)
            meter.step(at)
        one, spread = meter.read({name: at[name] - start[name] for name in at})
        energy.append(one.sum())
        noise.append(spread.sum())
    variance = count * sigma**2 / 4
    assert np.mean(noise) == pytest.approx(variance, rel=0.01)
    signal = sum(float((x**2).sum()) for x in mean.values())
    assert np.mean(energy) - np.mean(noise) == pytest.approx(signal, rel=0.05)
