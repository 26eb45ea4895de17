"""The simulated fleet: what is charged, who delivers, and that what is trained is what was announced."""

import importlib.util
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from airtune.config import LearningConfig
from airtune.fleets.simulated import SimulatedFleet
from airtune.learning.batches import balanced
from airtune.learning.data import TokenSet
from airtune.learning.engine import log_prior, rates_at
from airtune.physics.link import OutageLink, WaterfallLink
from airtune.types import Decision, Fleet, Lesson, Observation, Problem

NOISE_W_PER_HZ = 10.0 ** (-19.6)
DEVICES, MODULES, ROUNDS = 6, 2, 12
PARTS = [np.arange(0, 8), np.arange(8, 11), np.arange(11, 18), np.arange(18, 24), np.arange(24, 32), np.arange(32, 40)]
WEIGHT = np.array([0.3, 0.05, 0.1, 0.15, 0.25, 0.15])


@pytest.fixture(scope="session")
def kit():
    path = Path(__file__).parents[1] / "learning" / "conftest.py"
    spec = importlib.util.spec_from_file_location("learning_kit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder:
    """Stands where the engine stands and writes down what it is asked to train."""

    def __init__(self, config):
        self.config = config
        self.classes = 3
        self.calls = []
        self.rests = []

    def train(self, start, tokens, batches, rates, prior=None, rest=None, *, fixed=None, pruning=None, measure=False):
        self.calls.append((start, batches, rates, prior))
        self.rests.append(rest)
        reading = SimpleNamespace(energy=np.array([0.5, 0.0]), noise=None) if measure else None
        return SimpleNamespace(delta={"x": torch.zeros(1)}, loss=0.5, reading=reading)


@pytest.fixture
def tokens(kit):
    return kit.token_set(40)


def fleet_of(tokens, seed=0, **config):
    config = LearningConfig(**{"local_steps": 2, "batch_size": 3, **config})
    return SimulatedFleet(Recorder(config), tokens, PARTS, WEIGHT, seed, ROUNDS)


def problem_of(t=0, link=None):
    return Problem(
        t=t,
        rounds=ROUNDS,
        tradeoff_v=1.0,
        bandwidth_hz=2e6,
        link=link or OutageLink(NOISE_W_PER_HZ, 2.0),
        gain=np.geomspace(1e-13, 1e-11, DEVICES),
        pa_efficiency=np.full(DEVICES, 0.35),
        circuit_power_w=np.full(DEVICES, 0.1),
        queue_j=np.zeros(DEVICES),
        spent_j=np.zeros(DEVICES),
        budget_j=np.ones(DEVICES),
        weight=np.full(DEVICES, 1 / DEVICES),
        utility=np.ones((DEVICES, MODULES)),
        payload_bit=np.tile([4e5, 1e6], (DEVICES, 1)),
        uplink_s=np.linspace(2.0, 8.0, DEVICES)[:, None] * np.array([1.0, 0.8]),
        compute_j=np.linspace(0.5, 1.0, DEVICES)[:, None] * np.array([1.0, 2.0]),
        power_max_w=np.full((DEVICES, MODULES), 0.2),
        feasible=np.ones((DEVICES, MODULES), dtype=bool),
    )


def observation_of(fleet, t=0):
    return Observation(t, np.ones(DEVICES), np.ones(DEVICES, dtype=bool), fleet.token_counts(t))


def decision_of(problem, module=(1, 2, 0, 1, 2, 1), error_free=False):
    """Powers at which the devices deliver with probability 0.9, 0.7, –, 0.5, 0.3, 0.1 in equal bands."""
    module = np.array(module)
    wanted = np.array([0.9, 0.7, 0.5, 0.5, 0.3, 0.1])
    band = np.where(module > 0, 2e6 / DEVICES, 0.0)
    power = np.zeros(DEVICES)
    for k in np.flatnonzero(module):
        payload, uplink = problem.payload_bit[k, module[k] - 1], problem.uplink_s[k, module[k] - 1]
        snr = 2.0 ** (payload / (uplink * band[k])) - 1.0
        power[k] = 2.0 * NOISE_W_PER_HZ * band[k] * snr / problem.gain[k] / -math.log(wanted[k])
    probability = np.where(module > 0, wanted, 0.0)
    return Decision(module, power, band, probability, 0.0, error_free=error_free)


def lesson_of(device, module):
    return Lesson(("slice", module), {}, ("rest", module))


def execute(fleet, problem, decision):
    return fleet.execute(lesson_of, decision, problem, observation_of(fleet, problem.t))


def test_batches_depend_on_seed_round_and_device_alone(tokens):
    """Whatever was drawn before, by whichever policy's fleet."""
    walked, fresh = fleet_of(tokens), fleet_of(tokens)
    order = [(3, 1), (0, 0), (3, 1), (5, 4), (0, 0)]
    for t, device in order:
        for a, b in zip(walked.batches(t, device), fleet_of(tokens).batches(t, device), strict=True):
            np.testing.assert_array_equal(a, b)
    draws = {
        tuple(np.concatenate(one.batches(t, 0))) for one, t in ((fresh, 0), (fresh, 1), (fleet_of(tokens, seed=1), 0))
    }
    assert len(draws) == 3


def test_devices_draw_independently(tokens):
    """Devices 0 and 4 hold eight samples each; their places in the draw are not the same."""
    fleet = fleet_of(tokens)
    same = [
        np.array_equal(np.concatenate(fleet.batches(t, 0)), np.concatenate(fleet.batches(t, 4)) - PARTS[4][0])
        for t in range(5)
    ]
    assert not any(same)


def test_batches_are_the_device_s_own_samples_without_repeats_while_they_last(tokens):
    """Two steps of three: device 0 holds eight samples, device 1 only three."""
    fleet = fleet_of(tokens)
    for t in range(5):
        for device, part in enumerate(PARTS):
            batches = fleet.batches(t, device)
            assert [len(index) for index in batches] == [3, 3]
            drawn = np.concatenate(batches)
            assert set(drawn) <= set(part)
            assert len(set(drawn)) == 6 or len(part) < 6


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 3)), st.data())
def test_balanced_draws_level_the_classes(label, data):
    """Greedy levelling by hand: take one of the least taken class that has any left, until there are enough."""
    count = data.draw(st.integers(1, len(label)))
    shuffled = np.array(data.draw(st.permutations(range(len(label)))))
    drawn = balanced(shuffled, label, count)
    assert len(set(drawn)) == count
    left, taken = Counter(label.tolist()), Counter()
    for _ in range(count):
        kind = min((k for k in left if left[k] > 0), key=lambda k: taken[k])
        left[kind] -= 1
        taken[kind] += 1
    assert sorted(Counter(label[drawn].tolist()).values()) == sorted(v for v in taken.values() if v)


def test_batches_are_balanced_unless_that_is_switched_off(kit):
    """Device 0 holds 30 samples of class 0 and six of class 1: four of each are drawn, or far fewer of class 1."""
    base = kit.token_set(36)
    label = np.array([0] * 30 + [1] * 6)
    tokens = TokenSet(base.ids, base.type_ids, base.offsets, label, None)
    shares = []
    for on in (True, False):
        config = LearningConfig(local_steps=2, batch_size=4, balanced_batches=on)
        fleet = SimulatedFleet(Recorder(config), tokens, [np.arange(36)], np.ones(1), 0, ROUNDS)
        shares.append([label[np.concatenate(fleet.batches(t, 0))].sum() for t in range(20)])
    config = LearningConfig(local_steps=2, batch_size=4)
    fleet = SimulatedFleet(Recorder(config), tokens, [np.arange(36)], np.ones(1), 0, ROUNDS, measured=True)
    hands = [hand for t in range(20) for hand in fleet.batches(t, 0)]
    assert all(label[hand].sum() == 2 and label[hand[0::2]].sum() == 1 for hand in hands)  # each batch, each half
    assert shares[0] == [4] * 20 and np.mean(shares[1]) < 2.5


def test_energy_is_charged_whether_or_not_the_upload_arrives(tokens):
    fleet = fleet_of(tokens)
    lost = 0
    for t in range(20):
        problem = problem_of(t)
        decision = decision_of(problem)
        outcome = execute(fleet, problem, decision)
        for k, module in enumerate(decision.module):
            if module == 0:
                assert outcome.compute_j[k] == outcome.transmit_j[k] == outcome.tokens[k] == 0
                assert not outcome.scheduled[k] and not outcome.delivered[k]
                continue
            uplink = problem.uplink_s[k, module - 1]
            assert outcome.scheduled[k]
            assert outcome.compute_j[k] == problem.compute_j[k, module - 1]
            assert outcome.transmit_j[k] == pytest.approx((decision.power_w[k] / 0.35 + 0.1) * uplink, rel=1e-12)
            assert outcome.tokens[k] == fleet.token_counts(t)[k]
            lost += not outcome.delivered[k]
    assert lost > 0


def test_delivery_has_the_predicted_frequency(tokens):
    """(6): over 4000 rounds every device delivers π of the time, within four standard deviations."""
    rounds = 4000
    fleet = fleet_of(tokens)
    observation = observation_of(fleet)
    delivered = np.zeros(DEVICES)
    for t in range(rounds):
        problem = problem_of(t)
        decision = decision_of(problem)
        delivered += fleet.execute(lesson_of, decision, problem, observation).delivered
    probability = decision.success_probability
    spread = np.sqrt(probability * (1 - probability) / rounds)
    np.testing.assert_array_less(np.abs(delivered / rounds - probability), 4 * spread + 1e-12)


def test_the_same_fades_for_every_policy(tokens):
    """More power never loses what less power delivered."""
    fleet = fleet_of(tokens)
    changed = 0
    for t in range(30):
        problem = problem_of(t)
        less = decision_of(problem)
        more = Decision(less.module, 2.0 * less.power_w, less.bandwidth_hz, less.success_probability, 0.0)
        a, b = execute(fleet, problem, less).delivered, execute(fleet, problem, more).delivered
        assert not (a & ~b).any()
        changed += int((b & ~a).sum())
    assert changed > 0


def test_a_rate_that_does_not_fit_delivers_nothing(tokens):
    """The waterfall link at half the power its rate needs; at exactly that power, or twice as much, it delivers."""
    fleet = fleet_of(tokens)
    link = WaterfallLink(NOISE_W_PER_HZ, 1e-6, 2.0)
    arrived = {}
    for factor in (0.5, 1.0, 2.0):
        count = 0
        for t in range(20):
            problem = problem_of(t, link)
            decision = decision_of(problem)
            module = np.maximum(decision.module, 1) - 1
            rows = np.arange(DEVICES)
            payload, uplink = problem.payload_bit[rows, module], problem.uplink_s[rows, module]
            least = link.power_min_w(payload, uplink, np.full(DEVICES, 2e6 / DEVICES), problem.gain)
            power = np.where(decision.module > 0, factor * least, 0.0)
            changed = Decision(decision.module, power, decision.bandwidth_hz, decision.success_probability, 0.0)
            count += int(execute(fleet, problem, changed).delivered.sum())
        arrived[factor] = count
    assert arrived[0.5] == 0 and arrived[1.0] > 90 and arrived[2.0] > 90


def test_error_free_links_deliver_all_and_cost_no_transmission(tokens):
    fleet = fleet_of(tokens)
    problem = problem_of(3)
    decision = decision_of(problem, error_free=True)
    outcome = execute(fleet, problem, decision)
    np.testing.assert_array_equal(outcome.delivered, decision.module > 0)
    assert (outcome.transmit_j == 0).all() and (outcome.compute_j[decision.module > 0] > 0).all()


def test_only_those_who_deliver_are_trained_when_their_update_is_asked_for(tokens):
    fleet = fleet_of(tokens)
    problem = problem_of(4)
    decision = decision_of(problem)
    outcome = execute(fleet, problem, decision)
    assert fleet.engine.calls == []  # nothing is trained before the server asks
    updates = list(outcome.updates)
    assert [one.device for one in updates] == list(np.flatnonzero(outcome.delivered)) != []
    assert fleet.engine.rests == [("rest", one.module) for one in updates]
    for one, (start, batches, rates, prior) in zip(updates, fleet.engine.calls, strict=True):
        assert one.module == decision.module[one.device] and start == ("slice", one.module)
        assert one.weight == WEIGHT[one.device]
        assert rates == rates_at(fleet.engine.config, 4, ROUNDS)
        label = tokens.label[np.concatenate(batches)]
        torch.testing.assert_close(prior, log_prior(label, 3))
        for a, b in zip(batches, fleet.batches(4, one.device), strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_prior_correction_there_is_no_prior(tokens):
    fleet = fleet_of(tokens, prior_correction=False)
    problem = problem_of(4)
    assert list(execute(fleet, problem, decision_of(problem, error_free=True)).updates)
    assert all(prior is None for *_, prior in fleet.engine.calls)


def test_devices_get_their_lessons(tokens):
    fleet = fleet_of(tokens)
    problem = problem_of(4)
    decision = decision_of(problem, error_free=True)
    updates = list(execute(fleet, problem, decision).updates)
    assert [call[0] for call in fleet.engine.calls] == [("slice", one.module) for one in updates]
    assert fleet.engine.rests == [("rest", one.module) for one in updates]


def test_what_is_trained_is_what_was_announced(kit):
    """A real engine: tokens announced before the round are those that training processes; updates have their shapes."""
    learning = LearningConfig(local_steps=2, batch_size=3)
    case = kit.setup("bert", learning=learning, sample=kit.token_set(40))
    fleet = SimulatedFleet(case.engine, case.tokens, PARTS, WEIGHT, 0, ROUNDS)
    assert isinstance(fleet, Fleet)
    adapters = kit.random_adapters(case.family)
    trained = []
    real = case.engine.train
    case.engine.train = lambda *given, **named: trained.append(real(*given, **named)) or trained[-1]
    announced = fleet.token_counts(2)
    problem = problem_of(2)
    decision = decision_of(problem, error_free=True)
    outcome = fleet.execute(
        lambda device, module: Lesson(case.family.slice(adapters, module)), decision, problem, observation_of(fleet, 2)
    )
    updates = list(outcome.updates)
    assert [one.tokens for one in trained] == [announced[one.device] for one in updates]
    for one in updates:
        part = case.family.slice(adapters, one.module)
        assert {name: x.shape for name, x in one.delta.items()} == {name: x.shape for name, x in part.items()}
        assert any(x.abs().max() > 0 for x in one.delta.values()) and math.isfinite(one.loss)


def test_batches_are_drawn_for_those_asked_about_alone(tokens):
    fleet = fleet_of(tokens)
    among = np.array([False, True, False, False, True, False])
    every = fleet.token_counts(3)
    drawn, real = [], fleet.batches
    fleet.batches = lambda t, device: drawn.append(device) or real(t, device)
    np.testing.assert_array_equal(fleet.token_counts(3, among), np.where(among, every, 0.0))
    assert drawn == [1, 4]
