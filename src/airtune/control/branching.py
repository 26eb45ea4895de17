"""Closing the duality gap of a round: branch and bound on single devices' bandwidth over the priced dual, §6.

A device's value max(0, max_m v_m(b)) is not concave in b: it jumps from idle to a module and from module to module, and
is S-shaped where power is capped. The dual replaces it by its concave envelope. At the minimising price a device on
the edge has two best bands; cutting its range between them makes the envelope exact there on one side at least.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from airtune.control.compiled import compiled
from airtune.control.curve import Options, value_at
from airtune.control.dual import HIGH, LATEST, LOW, Demand, Limits, dual_at, minimise_dual
from airtune.control.sharing import Incumbent, recover
from airtune.physics.link import RATE_SLACK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CUT_STEPS = 50
"""Halvings that find where one option overtakes another."""
_MARGIN = 0.02
"""Part of the range between two best bands, at either end, in which no cut is made."""
_BELOW = 1e-6
"""Relative distance of a cut to an option's least band, at which the option is out on the lower side."""
_NOTICEABLE = 1e-9
"""Relative difference of band that counts as a jump."""


class Tree(NamedTuple):
    """Nodes of the search, each a parent's with one device's band cut to [least, most]."""

    bound: Floats
    """Upper bound on (P1) in the node [J²]; −∞ once it is closed."""
    log_price: Floats
    parent: Ints
    device: Ints
    least_hz: Floats
    most_hz: Floats
    next_device: Ints
    """Device to cut next, −1 where no cut would help."""
    cut_hz: Floats


def new_tree(size: int) -> Tree:
    """Space for this many nodes."""
    return Tree(
        np.full(size, -math.inf),
        np.zeros(size),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size),
        np.zeros(size),
        np.full(size, -1, np.int64),
        np.zeros(size),
    )


@compiled
def worth_keeping(options: Options, limits: Limits, band_hz: float, gap: float, demand: Demand) -> NDArray[np.bool_]:
    """Options that a point better by up to the gap may use: whose φ(λ) is that close to their device's best.

    A point that uses option i of device k is worth at most D(λ) less the distance of φ_i to the device's best.
    """
    side = LOW if demand.dual[LOW] < demand.dual[HIGH] else HIGH
    dual_at(options, limits, band_hz, demand.log_price[side], demand)
    close = np.zeros(len(options.reward), np.bool_)
    for k in range(len(options.first) - 1):
        first, last = options.first[k], options.first[k + 1]
        taken = demand.pick[LATEST, k]
        best = demand.phi[LATEST, taken] if taken >= 0 else 0.0
        for i in range(first, last):
            close[i] = best - demand.phi[LATEST, i] <= gap
    return close


@compiled
def device_value(options: Options, k: int, but: int, band_hz: float) -> float:
    """max(0, max_m v_m(b)) of device k [J²], leaving one option out (−1: none)."""
    best = 0.0
    for i in range(options.first[k], options.first[k + 1]):
        if i != but and band_hz > 0.0:
            best = max(best, value_at(options, i, options.nats_hz[i] / band_hz))
    return best


@compiled
def leads_at(options: Options, k: int, top: int, band_hz: float) -> bool:
    """Whether option `top` is the best of device k with this band."""
    return value_at(options, top, options.nats_hz[top] / band_hz) > device_value(options, k, top, band_hz)


@compiled
def overtakes_hz(options: Options, k: int, top: int, low: float, high: float) -> float:
    """The band between low and high from which option `top` is the device's best, by halving."""
    for _ in range(_CUT_STEPS):
        middle = 0.5 * (low + high)
        if leads_at(options, k, top, middle):
            high = middle
        else:
            low = middle
        if high - low <= _NOTICEABLE * high:
            break
    return high


@compiled
def cut_of(options: Options, demand: Demand, band_hz: float) -> tuple[int, float]:
    """The device whose value lies furthest below its envelope between its two best bands, and where to cut it."""
    chosen, where, furthest = -1, 0.0, 0.0
    for k in range(len(options.first) - 1):
        much, little, top = demand.band_hz[LOW, k], demand.band_hz[HIGH, k], demand.pick[LOW, k]
        if much - little <= _NOTICEABLE * band_hz or top < 0:
            continue
        cut, least = 0.5 * (little + much), float(options.least_hz[top])
        if little < least <= much * (1.0 + RATE_SLACK) and leads_at(options, k, top, least):
            cut = least * (1.0 - _BELOW)
        elif demand.pick[HIGH, k] != top:
            found = overtakes_hz(options, k, top, little, much)
            margin = _MARGIN * (much - little)
            if little + margin < found < much - margin:  # nearer to an end it would hardly cut anything off
                cut = found
        upper, lower = device_value(options, k, -1, much), device_value(options, k, -1, little)
        chord = lower + (upper - lower) * (cut - little) / (much - little)
        missing = chord - device_value(options, k, -1, cut)
        if missing > furthest:
            chosen, where, furthest = k, cut, missing
    return chosen, where


@compiled
def limit(tree: Tree, node: int, band_hz: float, limits: Limits) -> None:
    """Set the band limits of every device to those of a node."""
    for k in range(len(limits.least_hz)):
        limits.least_hz[k], limits.most_hz[k] = 0.0, band_hz
    while node > 0:
        k = tree.device[node]
        limits.least_hz[k] = max(limits.least_hz[k], tree.least_hz[node])
        limits.most_hz[k] = min(limits.most_hz[k], tree.most_hz[node])
        node = tree.parent[node]


@compiled
def reserved_hz(limits: Limits) -> float:
    """Band that the devices must take at least."""
    total = 0.0
    for least_hz in limits.least_hz:
        total += least_hz
    return total


@compiled
def highest(tree: Tree, used: int) -> tuple[int, float]:
    """The open node of the highest bound, and its bound."""
    node = 0
    for other in range(used):
        if tree.bound[other] > tree.bound[node]:
            node = other
    return node, tree.bound[node]


@compiled
def close_gap(
    options: Options, limits: Limits, band_hz: float, demand: Demand, tolerance: float, tree: Tree, best: Incumbent
) -> tuple[float, int]:
    """Search best-first until bound and incumbent meet to a relative tolerance, or the nodes are used up.

    Args:
        options: the round's options, those that may be used.
        limits: no limits; changed.
        band_hz: B [Hz].
        demand: what is wanted at the minimum of D without limits; changed.
        tolerance: relative gap at which to stop.
        tree: space for the nodes; it ends the search when it is full.
        best: the incumbent; improved.

    Returns:
        A proven upper bound on (P1) [J²], and the nodes used.
    """
    used, stuck = 1, -math.inf
    tree.bound[0], tree.log_price[0] = min(demand.dual[LOW], demand.dual[HIGH]), demand.log_price[HIGH]
    tree.next_device[0], tree.cut_hz[0] = cut_of(options, demand, band_hz)
    while used + 2 <= len(tree.bound):
        node, bound = highest(tree, used)
        if bound - best.value[0] <= tolerance * abs(bound):
            break
        tree.bound[node] = -math.inf
        k, cut = tree.next_device[node], tree.cut_hz[node]
        if k < 0:
            stuck = max(stuck, bound)
            continue
        limit(tree, node, band_hz, limits)
        least, most = limits.least_hz[k], limits.most_hz[k]
        for side in range(2):
            tree.parent[used], tree.device[used] = node, k
            tree.least_hz[used] = cut if side == 1 else least
            tree.most_hz[used] = most if side == 1 else cut
            limit(tree, used, band_hz, limits)
            if reserved_hz(limits) <= band_hz:
                minimise_dual(options, limits, band_hz, tree.log_price[node], demand)
                below = min(bound, demand.dual[LOW], demand.dual[HIGH])
                if below > best.value[0]:
                    recover(options, demand, band_hz, tolerance, limits.guess, best)
                    tree.bound[used], tree.log_price[used] = below, demand.log_price[HIGH]
                    tree.next_device[used], tree.cut_hz[used] = cut_of(options, demand, band_hz)
            used += 1
    return max(best.value[0], stuck, highest(tree, used)[1]), used
