from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.config import PartitionConfig
from airtune.learning.partition import partition
from airtune.types import AirtuneError

KINDS = ("iid", "dirichlet", "quantity", "natural")


def problem(n, classes, groups, seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, n), rng.integers(0, groups, n)


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 400),
    classes=st.integers(1, 4),
    groups=st.integers(1, 40),
    devices=st.integers(1, 30),
    least=st.integers(1, 12),
    alpha=st.sampled_from([0.05, 0.3, 1.0, 10.0, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_is_a_partition_or_refuses(kind, n, classes, groups, devices, least, alpha, seed):
    label, group = problem(n, classes, groups, seed)
    config = PartitionConfig(kind=kind, alpha=alpha, min_samples=least)
    try:
        parts = partition(label, group, config, devices, seed)
    except AirtuneError as error:
        assert "\n" not in str(error)
        always = kind in ("iid", "quantity")
        assert not always or devices * least > n
        assert devices * least > n or str(devices) in str(error)
        return
    assert len(parts) == devices
    assert all(p.dtype == np.int64 and (np.diff(p) > 0).all() for p in parts)
    assert min(len(p) for p in parts) >= least
    assert sorted(i for p in parts for i in p.tolist()) == list(range(n))
    again = partition(label, group, config, devices, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    if kind == "natural":
        held = Counter(g for p in parts for g in {int(group[i]) for i in p})
        assert set(held.values()) == {1}
    if kind == "iid":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_seed_matters(kind):
    label, group = problem(500, 2, 100, 0)
    config = PartitionConfig(kind=kind, min_samples=1, alpha=5.0)
    first, second = (partition(label, group, config, 4, seed) for seed in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def moments(sizes, total):
    share = np.asarray(sizes) / total
    return share.mean(), share.var()


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_label_skew_has_the_dirichlet_moments(alpha):
    # A share of Dir(α·1_K) has mean 1/K and variance (K − 1) / (K² (Kα + 1)).
    devices, n = 5, 4000
    label = np.repeat([0, 1], n // 2)
    config = PartitionConfig(kind="dirichlet", alpha=alpha, min_samples=1)
    share = []
    for seed in range(200):
        parts = partition(label, None, config, devices, seed)
        share += [(label[p] == c).sum() for p in parts for c in (0, 1)]
    mean, var = moments(share, n // 2)
    assert mean == pytest.approx(1 / devices, rel=1e-9)
    assert var == pytest.approx((devices - 1) / (devices**2 * (devices * alpha + 1)), rel=0.15)


def test_smaller_alpha_is_more_skewed_and_large_alpha_is_iid():
    label = np.tile([0, 1], 5000)

    def spread(alpha):
        parts = partition(label, None, PartitionConfig(kind="dirichlet", alpha=alpha, min_samples=1), 10, 3)
        return np.std([label[p].mean() for p in parts])

    assert spread(0.3) > spread(3.0) > spread(100.0)
    assert spread(1e5) < 0.01


def test_quantity_skews_sizes_but_not_labels():
    label = np.tile([0, 1, 1, 1], 5000)
    parts = partition(label, None, PartitionConfig(kind="quantity", alpha=0.3, min_samples=200), 10, 0)
    sizes = np.array([len(p) for p in parts])
    assert sizes.min() >= 200 and sizes.max() > 3 * sizes.min()
    for p in parts:  # five standard errors of a draw without replacement
        assert abs(label[p].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / len(p))


def test_minimum_that_just_fits():
    label = np.zeros(640, dtype=np.int64)
    for kind in ("iid", "quantity"):
        parts = partition(label, None, PartitionConfig(kind=kind, min_samples=64), 10, 0)
        assert [len(p) for p in parts] == [64] * 10


def test_natural_is_balanced_up_to_one_group():
    _, group = problem(10_000, 2, 500, 1)
    parts = partition(group * 0, group, PartitionConfig(kind="natural"), 20, 0)
    sizes = [len(p) for p in parts]
    assert max(sizes) - min(sizes) <= np.bincount(group).max()


def test_parts_are_read_only():
    parts = partition(np.zeros(10, dtype=np.int64), None, PartitionConfig(kind="iid", min_samples=1), 2, 0)
    with pytest.raises(ValueError, match="read-only"):
        parts[0][0] = 7


@pytest.mark.parametrize(
    ("kind", "devices", "least", "alpha", "grouped", "message"),
    [
        ("iid", 20, 64, 0.3, True, "20 devices × 64 = 1280 > 900 training samples; lower partition.min_samples"),
        ("natural", 3, 1, 0.3, False, "natural needs a task whose samples come in groups"),
        ("natural", 40, 1, 0.3, True, "40 devices cannot share 30 whole groups"),
        ("natural", 30, 30, 0.3, True, "leave one with"),
        ("dirichlet", 30, 30, 0.05, True, "none of 1000 dirichlet draws with alpha 0.05"),
        ("quantity", 3, 1, 1e308, True, "partition.alpha: 1e+308"),
        ("iid", 0, 1, 0.3, True, "at least 1, got 0"),
    ],
)
def test_refusals_name_the_numbers(kind, devices, least, alpha, grouped, message):
    label, group = problem(900, 2, 30, 0)
    config = PartitionConfig(kind=kind, min_samples=least, alpha=alpha)
    with pytest.raises(AirtuneError) as caught:
        partition(label, group if grouped else None, config, devices, 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ten_thousand_devices():
    label, group = problem(50_000, 2, 20_000, 0)
    for kind in ("iid", "quantity", "natural"):
        parts = partition(label, group, PartitionConfig(kind=kind, min_samples=1), 10_000, 0)
        assert sum(map(len, parts)) == 50_000


def test_parts_are_made_on_demand():
    """Views of one array, cut by hand from the sizes; nothing is held for a device but where its samples end."""
    label, _ = problem(2_000, 3, 5, 0)
    parts = partition(label, None, PartitionConfig(kind="dirichlet", alpha=1.0, min_samples=1), 30, 0)
    whole = np.concatenate(list(parts))
    ends = np.cumsum(parts.sizes)
    for k in (0, 7, 29, -1):
        np.testing.assert_array_equal(parts[k], whole[ends[k] - parts.sizes[k] : ends[k]])
    assert parts[3] is not parts[3] and np.shares_memory(parts[3], parts[3]) and not parts[3].flags.writeable
    assert [len(part) for part in parts[2:5]] == parts.sizes[2:5].tolist()
    with pytest.raises(IndexError):
        parts[30]
