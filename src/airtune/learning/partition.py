"""How the training samples are dealt to the K devices: IID, by label skew, by size skew or by the data's own groups.

One owner is chosen per sample and the samples are then sorted by owner, so nothing of size K×n is ever formed; the
samples of a device are a view of that order, made when it is asked for.
"""

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from airtune.config import PartitionConfig
from airtune.rng import Stream, generator
from airtune.types import AirtuneError

Indices: TypeAlias = NDArray[np.int64]


class Parts(Sequence[Indices]):
    """Sorted sample indices of each of K devices, read-only views of one array, made as they are asked for."""

    __slots__ = ("_ends", "_order")

    def __init__(self, order: Indices, sizes: Indices) -> None:
        """Deal out an order of all samples: the first `sizes[0]` to device 0, and so on."""
        self._order = order.copy()
        self._order.flags.writeable = False
        self._ends = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def sizes(self) -> Indices:
        """Samples n_k of each device, shape K."""
        return np.diff(self._ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Indices: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Indices, ...]: ...
    def __getitem__(self, index: int | slice) -> Indices | tuple[Indices, ...]:
        if isinstance(index, slice):
            return tuple(self[device] for device in range(*index.indices(len(self))))
        device = range(len(self))[index]
        return self._order[self._ends[device] : self._ends[device + 1]]


DRAWS = 1000
"""Most label-skewed draws tried before the partition is refused."""


def partition(label: Indices, group: Indices | None, config: PartitionConfig, devices: int, seed: int) -> Parts:
    """Sample indices of each device.

    Every sample is dealt to exactly one device: the parts are sorted, disjoint and together hold 0…n−1.

    - `iid`: a random deal, sizes equal up to one sample.
    - `dirichlet`: each label's samples are shared out in proportions drawn from Dir(α·1_K), independently for each
      label (Li et al., arXiv 2102.02079). Redrawn, at most `DRAWS` times, until every device holds `min_samples`.
    - `quantity`: every device gets `min_samples`, the rest is shared in proportions drawn from Dir(α·1_K);
      labels are dealt at random.
    - `natural`: whole groups, in random order, each to the device that holds least so far.

    Args:
        label: class of each sample, 0…C−1, shape [n].
        group: natural group of each sample, shape [n], or None where the task has none.
        config: kind, α and fewest samples per device.
        devices: K.
        seed: the run's seed; the same arguments always give the same partition.

    Raises:
        AirtuneError: the samples cannot be dealt as asked; the message holds the numbers.
    """
    total, floor = len(label), config.min_samples
    _refuse_too_few(total, floor, devices)
    rng = generator(seed, Stream.PARTITION)
    match config.kind:
        case "iid":
            owner = _shuffled_owner(total // devices + (np.arange(devices) < total % devices), rng)
        case "dirichlet":
            owner = _label_skew(label, config, devices, rng)
        case "quantity":
            extra = _shares(_proportions(config.alpha, devices, 1, rng)[0], total - devices * floor)
            owner = _shuffled_owner(floor + extra, rng)
        case "natural":
            owner = _whole_groups(group, total, config, devices, rng)
    return _deal(owner, devices)


BINS = 10
"""Quantile bins of a score that dirichlet takes for labels."""


def strata(label: NDArray[Any], kind: str, config: PartitionConfig) -> Indices:
    """What `partition` takes for labels: classes, or the decile of a score; all alike where there is neither.

    Raises:
        AirtuneError: dirichlet for a task without labels.
    """
    match kind:
        case "regression":
            edges = np.quantile(label, np.arange(1, BINS) / BINS)
            return np.searchsorted(edges, label, side="right").astype(np.int64)
        case "language" if config.kind == "dirichlet":
            raise AirtuneError(
                "partition.kind: dirichlet skews labels, and a language task has none; use iid, quantity or natural"
            )
        case _:
            return label


def _refuse_too_few(total: int, floor: int, devices: int) -> None:
    """Refuse where no deal can give every device its least."""
    if devices < 1:
        raise AirtuneError(f"fleet.devices: must be at least 1, got {devices}")
    if devices * floor > total:
        raise AirtuneError(
            f"partition.min_samples: {devices} devices × {floor} = {devices * floor} > {total} training samples; "
            "lower partition.min_samples or fleet.devices"
        )


def _deal(owner: Indices, devices: int) -> Parts:
    """Sorted sample indices of each device, from the owner of each sample."""
    return Parts(np.argsort(owner, kind="stable"), np.bincount(owner, minlength=devices))


def _shuffled_owner(sizes: Indices, rng: np.random.Generator) -> Indices:
    """A random owner of each sample, such that device k owns `sizes[k]` of them."""
    return rng.permutation(np.repeat(np.arange(len(sizes), dtype=np.int64), sizes))


def _shares(proportions: NDArray[np.float64], total: int) -> Indices:
    """Whole numbers that sum to `total` along the last axis, each within one of its proportion of it."""
    edges = np.rint(np.cumsum(proportions, axis=-1) * total).astype(np.int64)
    edges[..., -1] = total
    return np.diff(np.minimum(edges, total), axis=-1, prepend=0)


def _proportions(alpha: float, devices: int, rows: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draws from Dir(α·1_K), shape [rows, K]."""
    drawn = rng.dirichlet(np.full(devices, alpha), size=rows)
    if not np.allclose(drawn.sum(axis=-1), 1.0):
        raise AirtuneError(f"partition.alpha: {alpha:g} is beyond what can be drawn; use a value between 1e-3 and 1e6")
    return drawn


def _label_skew(label: Indices, config: PartitionConfig, devices: int, rng: np.random.Generator) -> Indices:
    """Owner of each sample when each label is shared out by its own Dirichlet draw."""
    counts = np.bincount(label)
    best = -1
    for _ in range(DRAWS):
        drawn = _proportions(config.alpha, devices, len(counts), rng)
        sizes = np.stack([_shares(row, int(n)) for row, n in zip(drawn, counts, strict=True)])
        fewest = int(sizes.sum(axis=0).min())
        if fewest >= config.min_samples:
            owner = np.empty(len(label), dtype=np.int64)
            for c in range(len(counts)):
                owner[label == c] = _shuffled_owner(sizes[c], rng)
            return owner
        best = max(best, fewest)
    raise AirtuneError(
        f"partition.kind: none of {DRAWS} dirichlet draws with alpha {config.alpha:g} left every one of {devices} "
        f"devices {config.min_samples} of the {len(label)} training samples (the best left one with {best}); raise "
        "partition.alpha, lower partition.min_samples or fleet.devices"
    )


def _whole_groups(
    group: Indices | None, total: int, config: PartitionConfig, devices: int, rng: np.random.Generator
) -> Indices:
    """Owner of each sample when groups stay whole: each, in random order, to the device that holds least."""
    if group is None:
        raise AirtuneError(
            "partition.kind: natural needs a task whose samples come in groups (rotten-tomatoes: films), and this one "
            "has none; use iid, dirichlet or quantity"
        )
    _, member, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(sizes) < devices:
        raise AirtuneError(
            f"fleet.devices: {devices} devices cannot share {len(sizes)} whole groups (partition.kind is natural); "
            f"use at most {len(sizes)} devices"
        )
    holder = np.empty(len(sizes), dtype=np.int64)
    load = [(0, k) for k in range(devices)]
    heapify(load)
    for g in rng.permutation(len(sizes)):
        held, k = heappop(load)
        holder[g] = k
        heappush(load, (held + int(sizes[g]), k))
    if (fewest := min(load)[0]) < config.min_samples:
        raise AirtuneError(
            f"partition.min_samples: {len(sizes)} whole groups with {total} samples on {devices} devices leave one "
            f"with {fewest} < {config.min_samples}; lower partition.min_samples or fleet.devices"
        )
    return holder[member.reshape(-1)]
