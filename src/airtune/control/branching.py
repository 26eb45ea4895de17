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
from airtune.control.curve import Options, offer, value_at
from airtune.control.dual import Demand, minimise_dual, new_demand, share

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CUTS = 50
"""Halvings that find where one option overtakes another."""


class Incumbent(NamedTuple):
    """The best feasible point so far."""

    value: Floats
    """(P1), shape (1,) [J²]."""
    pick: Ints
    """Option of each device, −1 for none."""
    band_hz: Floats


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


@compiled
def new_incumbent(devices: int) -> Incumbent:
    """Everybody idle, worth 0."""
    return Incumbent(np.zeros(1), np.full(devices, -1, np.int64), np.zeros(devices))


@compiled
def try_picks(
    options: Options, pick: Ints, band_hz: float, log_price: float, guess: Floats, best: Incumbent
) -> None:
    """Share the band among these options, again without whoever got nothing, and keep the result if it is better."""
    band = np.zeros(len(pick))
    for _ in range(3):
        before = np.sum(pick >= 0)
        value = share(options, pick, band_hz, log_price, guess, band)
        if value > best.value[0]:
            best.value[0] = value
            best.pick[:] = pick
            best.band_hz[:] = band
        if np.sum(pick >= 0) == before:
            break


@compiled
def recover(options: Options, demand: Demand, band_hz: float, guess: Floats, best: Incumbent) -> None:
    """Feasible points from what is wanted just above and just below the price, and from some of the changes between."""
    devices = len(options.first) - 1
    fits, over = demand.pick[1].copy(), demand.pick[0].copy()
    changed = 0
    extra = np.zeros(devices)
    for k in range(devices):
        if fits[k] != over[k]:
            changed += 1
            extra[k] = max(demand.band_hz[0, k] - demand.band_hz[1, k], 0.0)
    try_picks(options, fits.copy(), band_hz, demand.log_price[1], guess, best)
    if changed == 0:
        return
    try_picks(options, over.copy(), band_hz, demand.log_price[0], guess, best)
    if changed > 1:
        left = band_hz - demand.total_hz[1]
        for k in np.argsort(-extra):
            if fits[k] != over[k] and extra[k] <= left:
                fits[k] = over[k]
                left -= extra[k]
        try_picks(options, fits.copy(), band_hz, demand.log_price[1], guess, best)
        for k in np.argsort(extra):
            if fits[k] != over[k]:
                fits[k] = over[k]
                break
        try_picks(options, fits, band_hz, demand.log_price[0], guess, best)


@compiled
def device_value(options: Options, alive: NDArray[np.bool_], k: int, but: int, band_hz: float) -> float:
    """max(0, max_m v_m(b)) of device k, leaving one option out (−1: none)."""
    best = 0.0
    for i in range(options.first[k], options.first[k + 1]):
        if alive[i] and i != but and band_hz > 0.0:
            best = max(best, value_at(options, i, options.nats_hz[i] / band_hz))
    return best


@compiled
def cut_of(
    options: Options, alive: NDArray[np.bool_], demand: Demand, band_hz: float
) -> tuple[int, float]:
    """The device whose value lies furthest below its envelope between its two best bands, and where to cut it."""
    chosen, where, furthest = -1, 0.0, 0.0
    for k in range(len(options.first) - 1):
        much, little = demand.band_hz[0, k], demand.band_hz[1, k]
        top = demand.pick[0, k]
        if much - little <= 1e-9 * band_hz or top < 0:
            continue
        low, high = little, much
        if demand.pick[1, k] != top:
            for _ in range(_CUTS):
                middle = 0.5 * (low + high)
                ahead = value_at(options, top, options.nats_hz[top] / middle)
                if ahead > device_value(options, alive, k, top, middle):
                    high = middle
                else:
                    low = middle
                if high - low <= 1e-9 * high:
                    break
            cut = high
        else:
            cut = 0.5 * (low + high)
        if not little + 1e-12 * band_hz < cut < much - 1e-12 * band_hz:
            cut = 0.5 * (little + much)
        upper = device_value(options, alive, k, -1, much)
        lower = device_value(options, alive, k, -1, little)
        chord = lower + (upper - lower) * (cut - little) / (much - little)
        missing = chord - device_value(options, alive, k, -1, cut)
        if missing > furthest:
            chosen, where, furthest = k, cut, missing
    return chosen, where


@compiled
def hopeless(
    options: Options, alive: NDArray[np.bool_], band_hz: float, log_price: float, gap: float, guess: Floats
) -> None:
    """Strike out options that no better point can use: those whose φ(λ) lies more than the gap below the device's best."""
    price = math.exp(log_price)
    for k in range(len(options.first) - 1):
        first, last = options.first[k], options.first[k + 1]
        phi = np.zeros(last - first)
        for i in range(first, last):
            phi[i - first], _, _ = offer(options, i, price, log_price, 0.0, band_hz, guess[i])
        best = max(0.0, phi.max()) if last > first else 0.0
        for i in range(first, last):
            alive[i] = alive[i] and best - phi[i - first] <= gap


@compiled
def limits(tree: Tree, node: int, band_hz: float, least_hz: Floats, most_hz: Floats) -> None:
    """Band limits of every device in a node."""
    least_hz[:] = 0.0
    most_hz[:] = band_hz
    while node > 0:
        k = tree.device[node]
        least_hz[k] = max(least_hz[k], tree.least_hz[node])
        most_hz[k] = min(most_hz[k], tree.most_hz[node])
        node = tree.parent[node]


@compiled
def close_gap(
    options: Options,
    alive: NDArray[np.bool_],
    band_hz: float,
    root: Demand,
    tolerance: float,
    nodes_max: int,
    guess: Floats,
    best: Incumbent,
) -> tuple[float, int]:
    """Search best-first until bound and incumbent meet to a relative tolerance, or the nodes are used up.

    Args:
        options: the round's options.
        alive: which of them may be chosen.
        band_hz: B [Hz].
        root: the demand at the root's minimum of D.
        tolerance: relative gap at which to stop.
        nodes_max: nodes at most.
        guess: roots x by option; updated.
        best: the incumbent; improved.

    Returns:
        A proven upper bound on (P1) [J²], and the nodes used.
    """
    devices, size = len(options.first) - 1, nodes_max + 2
    tree = Tree(
        np.full(size, -math.inf),
        np.zeros(size),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size),
        np.zeros(size),
        np.full(size, -1, np.int64),
        np.zeros(size),
    )
    tree.bound[0] = min(root.dual[0], root.dual[1])
    tree.log_price[0] = root.log_price[1]
    tree.next_device[0], tree.cut_hz[0] = cut_of(options, alive, root, band_hz)
    least, most, demand = np.zeros(devices), np.zeros(devices), new_demand(devices)
    used, stuck = 1, -math.inf
    while used + 2 <= size:
        node = np.argmax(tree.bound[:used])
        bound = tree.bound[node]
        if bound - best.value[0] <= tolerance * abs(bound):
            break
        tree.bound[node] = -math.inf
        k, cut = tree.next_device[node], tree.cut_hz[node]
        if k < 0:
            stuck = max(stuck, bound)
            continue
        limits(tree, node, band_hz, least, most)
        sides = ((least[k], cut), (cut, most[k]))
        for side in range(2):
            tree.parent[used], tree.device[used] = node, k
            tree.least_hz[used], tree.most_hz[used] = sides[side]
            limits(tree, used, band_hz, least, most)
            if least.sum() <= band_hz:
                minimise_dual(options, alive, least, most, guess, band_hz, tree.log_price[node], demand)
                below = min(bound, demand.dual[0], demand.dual[1])
                if below > best.value[0]:
                    recover(options, demand, band_hz, guess, best)
                    tree.bound[used], tree.log_price[used] = below, demand.log_price[1]
                    tree.next_device[used], tree.cut_hz[used] = cut_of(options, alive, demand, band_hz)
            used += 1
    return max(best.value[0], stuck, tree.bound[:used].max()), used
