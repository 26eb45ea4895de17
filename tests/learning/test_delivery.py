"""What stands in for lost uploads, against plain sums and long averages."""

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning.aggregate import weighted_sum
from airtune.learning.delivery import compensated
from airtune.types import Decision, Outcome, Update

K = 5
CHANCE = np.array([0.95, 0.7, 0.5, 0.3, 0.1])
VALUE = np.array([1.0, -2.0, 3.0, 0.5, 4.0])


def round_of(delivered, t=0, scheduled=None):
    ones = np.ones(K)
    scheduled = np.ones(K, bool) if scheduled is None else scheduled
    updates = [
        Update(k, 1, 0.2, {"w": torch.tensor([VALUE[k] + 10.0 * t]).double()}, 1.0) for k in np.flatnonzero(delivered)
    ]
    decision = Decision(scheduled.astype(np.int64), ones, ones, CHANCE, 0.0)
    return decision, Outcome(scheduled, delivered, ones, ones, ones, iter(updates))


def taken(lost, decision, outcome, kept=None, cap=100.0):
    anew = {}
    config = LearningConfig(lost=lost, inverse_cap=cap)
    return list(compensated(config, outcome.updates, decision, outcome, kept or {}, anew)), anew


def test_renormalise_hands_on_what_was_delivered():
    decision, outcome = round_of(np.array([True, False, True, False, False]))
    got, anew = taken("renormalise", decision, outcome)
    assert [(one.device, one.weight) for one in got] == [(0, 0.2), (2, 0.2)] and not anew


def test_inverse_is_unbiased_under_a_sum_and_capped():
    """Over drawn rounds Σ ω s/π g is Σ ω g in the mean (Horvitz–Thompson); a cap of 4 holds the last device down."""
    rng, zero = np.random.default_rng(0), {"w": torch.zeros(1).double()}
    sums = {100.0: [], 4.0: []}
    for _ in range(4000):
        delivered = rng.random(K) < CHANCE
        for cap, kept in sums.items():
            decision, outcome = round_of(delivered)
            kept.append(float(weighted_sum(zero, taken("inverse", decision, outcome, cap=cap)[0])["w"]))
    want, spread = 0.2 * VALUE.sum(), np.std(sums[100.0]) / 4000**0.5
    assert abs(np.mean(sums[100.0]) - want) < 4 * spread
    capped = 0.2 * (VALUE * CHANCE * np.minimum(1 / CHANCE, 4.0)).sum()
    assert abs(np.mean(sums[4.0]) - capped) < 4 * np.std(sums[4.0]) / 4000**0.5
    assert abs(capped - want) > 8 * spread


def test_carry_brings_the_last_delivered_update_of_those_who_sent_and_were_lost():
    kept = {}
    decision, outcome = round_of(np.array([True, True, False, False, False]), t=1)
    got, anew = taken("carry", decision, outcome, kept)
    assert [one.device for one in got] == [0, 1]
    kept |= anew
    decision, outcome = round_of(np.array([False, True, True, False, False]), t=2)
    got, anew = taken("carry", decision, outcome, kept)
    assert [(one.device, float(one.delta["w"]), one.module, one.weight) for one in got] == [
        (1, 18.0, 1, 0.2),
        (2, 23.0, 1, 0.2),
        (0, 11.0, 1, 0.2),  # of round 1; devices 3 and 4 never delivered
    ]
    kept |= anew
    idle = np.array([False, True, True, True, True])
    decision, outcome = round_of(np.array([False, False, False, True, False]), t=3, scheduled=idle)
    got, _ = taken("carry", decision, outcome, kept)
    assert [(one.device, float(one.delta["w"])) for one in got] == [(3, 30.5), (1, 18.0), (2, 23.0)]


def test_carry_brings_nothing_of_the_update_before_the_last():
    """A device that delivered a deep module and then a shallow one is carried with the shallow one alone."""
    kept, everyone, nobody = {}, np.ones(K, bool), np.zeros(K, bool)
    for t, delta in enumerate(({"low": torch.ones(1), "top": torch.ones(1)}, {"top": torch.full((1,), 2.0)})):
        decision, outcome = round_of(everyone, t)
        update = Update(3, 2 - t, 0.2, delta, 1.0)
        anew = {}
        list(compensated(LearningConfig(lost="carry"), [update], decision, outcome, kept, anew))
        kept |= anew
    decision, outcome = round_of(nobody, t=2)
    (got,) = taken("carry", decision, outcome, kept)[0]
    assert (got.device, got.module, got.weight) == (3, 1, 0.2)
    assert {name: float(x) for name, x in got.delta.items()} == {"top": 2.0}


@pytest.mark.parametrize("lost", ["renormalise", "inverse", "carry"])
def test_updates_stream(lost):
    """The first is handed on before the second is asked for."""
    decision, outcome = round_of(np.ones(K, bool))
    asked = []

    def stream():
        for update in outcome.updates:
            asked.append(update.device)
            yield update

    first = next(compensated(LearningConfig(lost=lost), stream(), decision, outcome, {}, {}))
    assert first.device == 0 and asked == [0]
