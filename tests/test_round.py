"""One round as a pure function of its state, on a fleet and a world made for the test."""

import dataclasses

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.control.baselines import UnlimitedPolicy
from airtune.control.evaluation import make_decision
from airtune.control.problem import Cell, first_memory
from airtune.learning.methods.means import PlainMethod
from airtune.learning.server import first_server
from airtune.physics.link import OutageLink
from airtune.round import State, System, rounds, step
from airtune.theory.constants import Constants
from airtune.theory.estimates import Online, gamma_sq_of
from airtune.types import AirtuneError, Devices, Fleet, Modules, Observation, Outcome, Radio, Report, Update, World

K, ROUNDS = 4, 3


class FixedWorld:
    def observe(self, t):
        return Observation(t, np.full(K, 1e-11) * (t + 1), np.full(K, True), np.full(K, 100.0))


@dataclasses.dataclass
class ScriptedFleet:
    """Device k delivers (k + 1) in every coordinate, except those that are lost; what was asked is kept."""

    lost: tuple[int, ...] = ()
    value: float = 1.0
    reports: bool = False
    asked: list = dataclasses.field(default_factory=list)

    def execute(self, lessons, decision, problem, observation):
        self.asked.append((lessons(0, 1).start, decision, problem, observation))
        scheduled = decision.module > 0
        delivered = scheduled & ~np.isin(np.arange(K), self.lost)
        updates = (
            Update(
                int(k),
                1,
                0.25,
                {"w": torch.full((2,), self.value * (k + 1))},
                float(k),
                Report(int(k), 1, np.array([2.0 * (k + 1)]), np.array([1.0])) if self.reports else None,
            )
            for k in np.flatnonzero(delivered)
        )
        return Outcome(scheduled, delivered, np.full(K, 0.5), np.full(K, 1.0), observation.tokens, updates)


def everyone(problem):
    return make_decision(problem, np.ones(K, int), problem.power_max_w[:, 0], np.full(K, problem.bandwidth_hz / K))


def make(fleet, policy=everyone, **learning):
    ones = np.ones(K)
    devices = Devices(
        ("phone_mid",) * K, 1e9 * ones, 8 * ones, 1e-28 * ones, 1e9 * ones, 0.2 * ones, 0.4 * ones, 0.1 * ones,
        2 * ones, np.full(K, 10), ones / K,
    )  # fmt: skip
    modules = Modules(*(np.array([v]) for v in (2, 1, 2, 1e5, 1e5, 1e6, 1e6)))
    constants = Constants(ones, np.array([0.0]), 0.1 * np.ones((K, 1)), 0.9, 0.1, 0.7)
    radio = Radio(1e6, 1e-19, 2.0, 5.0, 40.0)
    cell = Cell(devices, modules, radio, OutageLink(1e-19, 2.0), constants, ROUNDS, 10.0, True)
    config = LearningConfig(
        **{"server_optimizer": "mean", "server_rate": 1.0, "server_momentum": 0.0, "average": 0.0, "final_rate": 1.0}
        | learning
    )
    system = System(cell, FixedWorld(), policy, fleet, PlainMethod(), config)
    adapters = {"w": torch.zeros(2)}
    return system, State(0, adapters, first_server(adapters), first_memory(cell, 0.0))


def test_one_round_by_hand():
    fleet = ScriptedFleet(lost=(1,))
    system, start = make(fleet)
    after, record = step(system, start)
    assert after.t == 1
    assert after.adapters["w"].tolist() == [0.25 * (1 + 3 + 4)] * 2  # device 2's update is lost
    assert record.loss == pytest.approx((0 + 2 + 3) / 3)
    assert after.memory.spent_j.tolist() == [1.5] * K and after.memory.queue_j.tolist() == [0.0] * K
    pi = record.decision.success_probability
    assert record.phi == pytest.approx(float(np.mean(1 - pi + 0.1 * pi)), rel=1e-12)
    assert record.phi_tight == pytest.approx(float(np.mean((1 - pi) ** 2 + (pi * (1 - pi) + 0.1 * pi) / K)), rel=1e-12)
    assert after.memory.bound == pytest.approx(0.9 * 0.7 + 0.05 * record.phi, rel=1e-12)
    assert after.memory.bound_tight == pytest.approx(0.9 * 0.7 + 0.05 * record.phi_tight, rel=1e-12)
    assert record.observe_s >= 0 and record.decide_s > 0
    ((adapters, decision, problem, observation),) = fleet.asked
    assert adapters is start.adapters and decision is record.decision
    assert problem is record.problem and observation is record.observation


def test_what_is_heard_is_remembered_and_used_where_asked():
    """Two of four devices report; the estimates follow, and utilities and Φ with them only under `used`."""
    for used in (False, True):
        system, start = make(ScriptedFleet(lost=(1, 3), reports=True))
        cell = dataclasses.replace(system.cell, online=Online(used, forgetting=0.5, optimism=0.0))
        system = dataclasses.replace(system, cell=cell)
        first, _ = step(system, start)
        # shrunk to the fleet's mean of 2 and 6 less noise 1 each, by one sample of its own each
        learned = gamma_sq_of(first.memory.estimates, cell.prior)
        assert learned == pytest.approx([(3 + 1) / 2, 3.0, (3 + 5) / 2, 3.0])
        _, record = step(system, first)
        gamma_sq, noise = (learned, 1.0) if used else (np.ones(K), 0.1)
        pi = record.decision.success_probability
        assert record.phi == pytest.approx(float(np.mean(gamma_sq * (1 - pi) + pi * noise)), rel=1e-12)
        utility = (gamma_sq - noise) / K / gamma_sq.mean()
        assert record.problem.utility[:, 0] == pytest.approx(utility, rel=1e-12)


def test_a_round_changes_nothing_but_returns_the_next_state():
    system, start = make(ScriptedFleet(lost=(0,)))
    first, _ = step(system, start)
    second, _ = step(system, start)
    assert start.t == 0 and start.adapters["w"].tolist() == [0.0, 0.0] and start.memory.spent_j.tolist() == [0.0] * K
    assert torch.equal(first.adapters["w"], second.adapters["w"])
    assert np.array_equal(first.memory.queue_j, second.memory.queue_j) and first.memory.bound == second.memory.bound


def test_rounds_end_at_the_horizon_and_go_on_from_any_state():
    system, start = make(ScriptedFleet())
    states = [state for state, _ in rounds(system, start)]
    assert [state.t for state in states] == [1, 2, 3]
    assert [asked[3].t for asked in system.fleet.asked] == [0, 1, 2]
    later = [state for state, _ in rounds(system, states[0])]
    assert [state.t for state in later] == [2, 3]
    assert torch.equal(later[-1].adapters["w"], states[-1].adapters["w"])
    assert later[-1].memory.bound == states[-1].memory.bound
    assert list(rounds(system, states[-1])) == []
    assert states[-1].adapters["w"].tolist() == [3 * 2.5] * 2


def test_a_round_in_which_nothing_arrives():
    system, start = make(ScriptedFleet(lost=(0, 1, 2, 3)), server_momentum=0.5)
    after, record = step(system, start)
    assert record.loss is None and after.adapters is start.adapters and after.server is start.server
    assert after.memory.spent_j.tolist() == [1.5] * K and after.t == 1


def test_a_decision_that_breaks_a_constraint_is_not_carried_out():
    def greedy(problem):
        return make_decision(problem, np.ones(K, int), problem.power_max_w[:, 0], np.full(K, problem.bandwidth_hz))

    fleet = ScriptedFleet()
    system, start = make(fleet, greedy)
    with pytest.raises(AirtuneError, match=r"bandwidth_hz adds up to 4e\+06 Hz but the band has 1e\+06 Hz"):
        step(system, start)
    assert fleet.asked == []


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"success_probability": np.ones(K)}, r"success_probability of device 0 is 1; by \(6\) it is 0\."),
        ({"error_free": True}, "error_free is only for the unlimited policy"),
    ],
)
def test_a_policy_cannot_claim_what_the_link_does_not_give(claim, message):
    fleet = ScriptedFleet()
    system, start = make(fleet, lambda problem: dataclasses.replace(everyone(problem), **claim))
    with pytest.raises(AirtuneError, match=message):
        step(system, start)
    assert fleet.asked == []
    system, start = make(fleet, UnlimitedPolicy(None))
    assert step(system, start)[1].decision.error_free


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_an_update_that_is_not_finite_is_told(value):
    system, start = make(ScriptedFleet(value=value))
    with pytest.raises(
        AirtuneError, match=r"an update is not finite; lower learning\.rate .*0\.1\) or .*server_rate .* 1\)$"
    ):
        step(system, start)


def test_the_parts_answer_to_their_protocols():
    assert isinstance(FixedWorld(), World) and isinstance(ScriptedFleet(), Fleet)
