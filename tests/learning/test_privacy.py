"""Clipping and noise against plain arithmetic, and claimed sensitivities against updates replaced one at a time."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.reference.small_family import FAMILY, M

from airtune.config import ConstantsConfig, FleetConfig, LearningConfig, ModulesConfig, RunConfig
from airtune.config.privacy import UNSUMMED, UNTOLD, PrivacyConfig
from airtune.learning.delivery import chances
from airtune.learning.methods.chosen import method_of
from airtune.learning.privacy import SENT, Guard, clipped, guard_of, heaviest, secret_normal, sensitivity
from airtune.learning.server import first_server
from airtune.settings import load
from airtune.types import AirtuneError, Decision, Update

LINEAR = ("nested", "sum", "fedit", "ffa", "rolora")
CENTRAL = PrivacyConfig(mechanism="central", clip_norm=0.7, noise_multiplier=1.3)
LOCAL = replace(CENTRAL, mechanism="local")
deliveries = st.lists(
    st.tuples(st.integers(1, M), st.floats(0.01, 1.0), st.floats(0.05, 1.0), st.integers(0, 2**31 - 1)),
    min_size=1,
    max_size=6,
)


def theta_of(seed=0):
    draw = torch.Generator().manual_seed(seed)
    start = FAMILY.initial(seed)
    return {name: torch.randn(tensor.shape, generator=draw, dtype=torch.float64) for name, tensor in start.items()}


def begun(method, context):
    config = RunConfig(
        modules=ModulesConfig(ranks=FAMILY.ranks, depths=FAMILY.depths),
        learning=LearningConfig(method=method, context=context),
    )
    method = method_of(config, FAMILY)
    adapters, kept = method.start(theta_of())
    return method, adapters, first_server(adapters, kept)


def drawn_delta(lesson, seed, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(x.shape, generator=draw, dtype=x.dtype) for name, x in lesson.start.items()}


def length(delta):
    return float(np.sqrt(sum((tensor.double().numpy() ** 2).sum() for tensor in delta.values())))


def masses(method, adapters, updates):
    """By what each entry of the sum is divided, from the definitions: who covers it, everybody (fedit), 1 (sum)."""
    covered = {name: torch.zeros_like(tensor) for name, tensor in adapters.items()}
    for update in updates:
        for name, tensor in update.delta.items():
            covered[name][tuple(slice(0, size) for size in tensor.shape)] += update.weight
    if method == "fedit":
        return {name: torch.full_like(x, sum(update.weight for update in updates)) for name, x in covered.items()}
    return {name: torch.ones_like(x) for name, x in covered.items()} if method == "sum" else covered


def test_clipping_by_hand():
    delta = {"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([4.0, 12.0])}  # of length 13
    assert all(clipped(delta, 13.0)[name] is delta[name] for name in delta)
    half = clipped(delta, 6.5)
    assert half["a"].tolist() == [[1.5, 0.0]] and half["b"].tolist() == [2.0, 6.0]
    zero = {"a": torch.zeros(3)}
    assert clipped(zero, 1e-3)["a"].equal(zero["a"])


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_clipped_updates_are_no_longer_than_the_norm_and_point_the_same_way(seed, size, norm):
    draw = torch.Generator().manual_seed(seed)
    delta = {name: size * torch.randn(shape, generator=draw) for name, shape in (("a", (3, 5)), ("b", (4,)))}
    held = clipped(delta, norm)
    assert length(held) <= norm * (1 + 1e-6)
    assert length(held) == pytest.approx(min(length(delta), norm), rel=1e-6)
    for name in delta:
        np.testing.assert_allclose(held[name] * length(delta), delta[name] * length(held), rtol=1e-5)


@pytest.mark.parametrize("context", ["slice", "whole"])
@pytest.mark.parametrize("method", LINEAR)
@given(drawn=deliveries, who=st.integers(0, 5), other=st.integers(0, 2**31 - 1), size=st.floats(0.01, 100.0))
@settings(max_examples=15, deadline=None)
def test_no_update_moves_the_sum_by_more_than_the_sensitivity(method, context, drawn, who, other, size):
    """One update replaced, opposed and taken away: what the method hands out, times its public divisor, moves by at
    most 2 C ω, C ω for the one taken away; the opposed one of full length reaches the bound."""
    rule, adapters, server = begun(method, context)
    guard, who, t = Guard(CENTRAL, 0), who % len(drawn), other % 2

    def combined(deltas):
        updates = [
            Update(k, module, weight, delta, None)
            for k, ((module, weight, _, _), delta) in enumerate(zip(drawn, deltas, strict=True))
        ]
        change = rule.combine(t, adapters, server, iter(updates)).change
        mass = masses(method, adapters, updates)
        return {name: change[name] * mass[name] for name in change}

    lessons = [rule.lesson(t, adapters, server, k, module) for k, (module, *_) in enumerate(drawn)]
    sent = [
        guard.upload(drawn_delta(lesson, seed, size), t, k)
        for k, (lesson, (*_, seed)) in enumerate(zip(lessons, drawn, strict=True))
    ]
    before = combined(sent)
    bound = sensitivity(CENTRAL.clip_norm, max(weight for _, weight, _, _ in drawn))
    own = drawn[who][1] * length(sent[who])
    opposed = {name: -tensor for name, tensor in sent[who].items()}
    replaced = guard.upload(drawn_delta(lessons[who], other, size), t, who)
    absent = {name: 0.0 * tensor for name, tensor in sent[who].items()}
    for instead, exact in ((replaced, None), (opposed, 2 * own), (absent, own)):
        after = combined([instead if k == who else delta for k, delta in enumerate(sent)])
        moved = length({name: after[name] - before[name] for name in after})
        assert moved <= bound * (1 + 1e-9)
        assert exact is None or moved == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("context", ["slice", "whole"])
@pytest.mark.parametrize("method", LINEAR)
@given(drawn=deliveries, t=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_central_noise_is_one_draw_in_every_delivered_entry_of_the_sum(method, context, drawn, t):
    """Divided back, it is the guard's own draw of the round where somebody delivered, and nothing elsewhere."""
    rule, adapters, server = begun(method, context)
    guard = Guard(CENTRAL, 3)
    updates = [
        Update(k, module, weight, drawn_delta(rule.lesson(t, adapters, server, k, module), seed), None)
        for k, (module, weight, _, seed) in enumerate(drawn)
    ]
    largest = max(update.weight for update in updates)
    plain = rule.combine(t, adapters, server, iter(updates)).change
    noisy = rule.combine(t, adapters, server, guard.aggregate(iter(updates), adapters, largest, t)).change
    mass, covered = masses(method, adapters, updates), masses("nested", adapters, updates)
    draw = guard._noise(adapters, sensitivity(CENTRAL.clip_norm, largest), t)
    for name in plain:
        want = torch.where(covered[name] > 0, draw[name], torch.zeros_like(draw[name]))
        np.testing.assert_allclose((noisy[name] - plain[name]) * mass[name], want, atol=1e-8)


def spread_of(sample, std):
    """Two-sided probability of so small or so large a sum of squares under N(0, std²)."""
    share = stats.chi2(len(sample)).cdf(float((sample**2).sum()) / std**2)
    return 2 * min(share, 1 - share)


def test_noise_has_the_standard_deviation_that_the_accountant_takes_it_to_have():
    zero = {"a": torch.zeros(300, 40, dtype=torch.float64), "b": torch.zeros(77, dtype=torch.float64)}
    local = Guard(LOCAL, 11).upload(zero, 4, 2)
    sample = np.concatenate([tensor.numpy().ravel() for tensor in local.values()])
    assert spread_of(sample, 1.3 * 2 * 0.7) > 1e-4 and stats.kstest(sample / (1.3 * 2 * 0.7), "norm").pvalue > 1e-4
    (update,) = Guard(CENTRAL, 11).aggregate([Update(0, 1, 0.05, zero, None)], zero, 0.2, 4)
    sample = 0.05 * np.concatenate([tensor.numpy().ravel() for tensor in update.delta.values()])
    assert spread_of(sample, 1.3 * 2 * 0.7 * 0.2) > 1e-4
    assert spread_of(sample, 1.3 * 2 * 0.7 * 0.19) < 1e-4  # the test would see a spread 5 % off


def test_noise_does_not_depend_on_the_order_of_tensors():
    zero = {"b": torch.zeros(3), "a": torch.zeros(2, 2)}
    one, other = (Guard(LOCAL, 0).upload(dict(sorted(zero.items(), reverse=way)), 0, 0) for way in (False, True))
    assert all(one[name].equal(other[name]) for name in zero)


def test_noise_differs_between_rounds_devices_and_seeds_and_comes_again():
    zero = {"a": torch.zeros(50)}
    draws = {
        (seed, t, device): Guard(LOCAL, seed).upload(zero, t, device)["a"]
        for seed in (0, 1)
        for t in (0, 1)
        for device in (0, 1)
    }
    assert len({tuple(draw.tolist()) for draw in draws.values()}) == 8
    for (seed, t, device), draw in draws.items():
        assert Guard(LOCAL, seed).upload(zero, t, device)["a"].equal(draw)


def test_secret_noise_is_normal_and_never_the_same(monkeypatch):
    one, other = secret_normal(20_000), secret_normal(20_000)
    assert not np.isin(one, other).any() and np.isfinite(one).all()
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.05
    guard = Guard(replace(LOCAL, noise="system"), 0)
    first, second = (guard.upload({"a": torch.zeros(50)}, 0, 0)["a"] for _ in range(2))
    assert not first.equal(second)
    rng = np.random.default_rng(5)
    monkeypatch.setattr(os, "urandom", lambda count: rng.bytes(count))  # the same transform, repeatable
    sample = secret_normal(20_000)
    assert stats.kstest(sample, "norm").pvalue > 0.01 and spread_of(sample, 1.0) > 0.01
    monkeypatch.setattr(os, "urandom", lambda count: b"\x00" * (count // 2) + b"\xff" * (count // 2))
    low, high = secret_normal(2)
    assert low == -high == pytest.approx(stats.norm.ppf(2.0**-53))


def test_the_largest_weight_is_that_of_inverse_probability_weighting_where_that_is_used():
    chance = np.array([0.9, 0.05, 0.5])
    decision = Decision(np.ones(3, np.int64), np.ones(3), np.ones(3), chance, 0.0)
    weight, delivered = np.array([0.5, 0.3, 0.2]), np.array([True, False, True])
    assert heaviest(weight, chances(LearningConfig(), decision), delivered) == 0.5
    inverse = chances(LearningConfig(lost="inverse", inverse_cap=4.0), decision)
    np.testing.assert_allclose(inverse, [0.9, 0.25, 0.5])
    assert heaviest(weight, inverse, delivered) == pytest.approx(0.5 / 0.9)
    assert heaviest(weight, inverse, np.ones(3, bool)) == pytest.approx(1.2)


def test_rounds_are_counted_for_everyone_who_sent():
    server = first_server({"w": torch.zeros(2)}, {"other": torch.ones(1)})
    guard = Guard(CENTRAL, 0)
    for scheduled in ([True, False, True], [False, False, True]):
        server = guard.counted(server, np.array(scheduled))
    assert server.kept[SENT].tolist() == [1, 0, 2] and server.kept["other"].tolist() == [1.0]


def test_what_the_accountant_does_not_cover_is_refused():
    def told(mechanism="central", **tables):
        with pytest.raises(AirtuneError) as error:
            load({"privacy": {"mechanism": mechanism}, **tables})
        assert "\n" not in str(error.value)
        return str(error.value)

    plain = {"server_optimizer": "mean", "server_rate": 1.0, "server_momentum": 0.0, "average": 0.0}
    for method in UNSUMMED:
        assert f"method {method} {UNSUMMED[method]}" in told(learning={"method": method, **plain})
    for method in UNTOLD:
        assert f"method {method}" in told("local", learning={"method": method, **plain})
    for method in UNSUMMED.keys() - set(UNTOLD):
        load({"privacy": {"mechanism": "local"}, "learning": {"method": method, **plain}})
    for method in LINEAR:
        load({"privacy": {"mechanism": "central"}, "learning": {"method": method}})
    assert "carry" in told(learning={"lost": "carry"})
    load({"privacy": {"mechanism": "local"}, "learning": {"lost": "carry"}})
    for mechanism in ("central", "local"):
        assert "source prior" in told(mechanism, constants={"source": "estimated"})
        assert "at most 0.001" in told(
            mechanism, privacy={"mechanism": mechanism, "delta": 0.002}, fleet={"devices": 1000}
        )
    for dial in ({"clip_norm": 2.0}, {"noise_multiplier": 0.5}, {"delta": 1e-6}, {"noise": "system"}):
        assert "no effect" in told(privacy=dial)
    for dial in ({"clip_norm": 0.0}, {"noise_multiplier": 0.0}, {"delta": 1.0}, {"delta": 0.0}, {"noise": "none"}):
        told(privacy={"mechanism": "central", **dial})
    RunConfig(constants=ConstantsConfig(source="estimated"), fleet=FleetConfig(devices=3))  # free without a mechanism


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_nothing_sent_is_longer_than_the_largest(size):
    delta = {name: size * torch.randn(tensor.shape, dtype=torch.float64) for name, tensor in theta_of().items()}
    count = sum(tensor.numel() for tensor in delta.values())
    for config in (CENTRAL, LOCAL):
        guard = Guard(config, 0)
        sent = [length(guard.upload(delta, t, device)) for t in range(20) for device in range(5)]
        assert max(sent) <= guard.largest(count) * (1 + 1e-12)
        if config is LOCAL or size > 0.5:
            assert max(sent) > 0.6 * guard.largest(count)
    assert Guard(CENTRAL, 0).largest(count) == 0.7
    assert guard_of(PrivacyConfig(), 0) is None
