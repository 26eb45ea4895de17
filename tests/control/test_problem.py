"""(P1) as posed from memory and observation, against formulas written out device by device."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.control.baselines import TraditionalPolicy
from airtune.control.evaluation import energy_j, make_decision
from airtune.control.joint import JointPolicy
from airtune.control.problem import Cell, divergence, first_memory, pose, remember
from airtune.physics.link import OutageLink
from airtune.theory.constants import Constants
from airtune.theory.estimates import first_estimates
from airtune.types import Decision, Devices, Memory, Modules, Observation, Offer, Outcome, Radio

NOISE_W_PER_HZ = 1e-19


def make_cell(account=True, rounds=5, devices=3, budget_j=2.0, deadline_s=4.0):
    k = devices
    fleet = Devices(
        kind=("phone_mid",) * k,
        frequency_hz=np.linspace(1e9, 2e9, k),
        flop_per_cycle=np.full(k, 8.0),
        capacitance=np.full(k, 1e-28),
        memory_byte=np.array([3e8] * (k - 1) + [1e8]),
        power_max_w=np.full(k, 0.2),
        pa_efficiency=np.full(k, 0.4),
        circuit_power_w=np.full(k, 0.1),
        budget_j=np.full(k, budget_j),
        samples=np.full(k, 100),
        weight=np.arange(1, k + 1) / (k * (k + 1) / 2),
    )
    modules = Modules(
        rank=np.array([2, 8]),
        depth=np.array([1, 2]),
        parameters=np.array([1000, 8000]),
        payload_bit=np.array([1e5, 1e6]),
        downlink_bit=np.array([1e5, 1e6]),
        flop_per_token=np.array([1e7, 2e7]),
        memory_byte=np.array([5e7, 2e8]),
    )
    constants = Constants(
        gamma_sq=np.full(k, 2.0),
        delta=np.array([0.5, 0.0]),
        noise=np.tile([0.1, 0.4], (k, 1)),
        contraction=0.9,
        step=0.1,
        initial_gap=0.7,
    )
    radio = Radio(1e6, NOISE_W_PER_HZ, 2.0, deadline_s, 40.0)
    return Cell(fleet, modules, radio, OutageLink(NOISE_W_PER_HZ, 2.0), constants, rounds, 50.0, account)


def observe(cell, t=1, tokens=800.0):
    k = len(cell.devices.kind)
    return Observation(t, np.full(k, 1e-11), np.full(k, True), np.full(k, tokens))


def memory_of(spent_j):
    return Memory(np.zeros(3), spent_j, 0.7, 0.7, first_estimates(3, 2))


def test_by_hand():
    """One device, numbers small enough to check on paper."""
    cell = make_cell(devices=1, rounds=5)
    problem = pose(cell, first_memory(cell, 1.5), observe(cell))
    snr = 40.0 * 1e-11 / (1e-19 * 1e6)  # 4000
    down_s = 1e5 / (1e6 * math.log2(1 + snr))
    compute_s = 800 * 1e7 / (8 * 1e9)  # 1 s
    assert problem.uplink_s[0, 0] == pytest.approx(4.0 - down_s - compute_s, rel=1e-12)
    assert problem.compute_j[0] == pytest.approx(
        [1e-28 * 1e18 * 800 * 1e7 / 8, 1e-28 * 1e18 * 800 * 2e7 / 8]
    )  # 0.1, 0.2
    assert problem.utility[0] == pytest.approx([2.0 * 0.5 - 0.1, 2.0 - 0.4])
    assert problem.queue_j[0] == 3.0 and problem.spent_j[0] == 0.0 and problem.budget_j[0] == 2.0
    assert problem.feasible.tolist() == [[True, False]]  # 1e8 byte hold the small module alone
    assert problem.power_max_w[0, 0] == 0.2
    assert (problem.t, problem.rounds, problem.tradeoff_v, problem.bandwidth_hz) == (1, 5, 50.0, 1e6)
    assert problem.payload_bit.tolist() == [[1e5, 1e6]]


@settings(max_examples=60, deadline=None)
@given(
    spent=st.lists(st.floats(0.0, 10.0), min_size=3, max_size=3),
    tokens=st.floats(0.0, 4000.0),
    deadline_s=st.floats(0.1, 8.0),
)
def test_the_account_pays_for_what_it_allows_and_no_more(spent, tokens, deadline_s):
    """At its power cap, every feasible module costs at most what is left of T·Ē, exactly that if the cap was cut."""
    cell = make_cell(deadline_s=deadline_s)
    problem = pose(cell, memory_of(np.array(spent)), observe(cell, tokens=tokens))
    assert np.isfinite(problem.power_max_w).all()
    for k in range(3):
        left_j = 5 * 2.0 - spent[k]
        for m in range(2):
            cap = problem.power_max_w[k, m]
            assert cap <= 0.2
            uplink_s = problem.uplink_s[k, m]
            fits = (5e7, 2e8)[m] <= (3e8, 3e8, 1e8)[k]
            pays = problem.compute_j[k, m] + 0.1 * max(uplink_s, 0.0) < left_j
            if fits and uplink_s > 1e-9 and abs(problem.compute_j[k, m] + 0.1 * uplink_s - left_j) > 1e-9:
                assert problem.feasible[k, m] == pays
            if problem.feasible[k, m]:
                cost_j = problem.compute_j[k, m] + (cap / 0.4 + 0.1) * uplink_s
                assert cost_j <= left_j * (1 + 1e-12)
                if cap < 0.2:
                    assert cost_j == pytest.approx(left_j, rel=1e-9)
            else:
                assert not fits or uplink_s <= 0 or not pays or cap <= 0


def test_without_account_only_the_radio_limits_power():
    cell = make_cell(account=False)
    problem = pose(cell, memory_of(np.full(3, 1e6)), observe(cell))
    assert (problem.power_max_w == 0.2).all() and problem.feasible[0].all()


def test_who_cannot_take_part():
    cell = make_cell()
    observation = Observation(0, np.full(3, 1e-11), np.array([True, False, True]), np.array([800.0, 800.0, 1e7]))
    problem = pose(cell, first_memory(cell, 0.0), observation)
    assert problem.feasible.tolist() == [[True, True], [False, False], [False, False]]  # unreachable; too slow
    assert (problem.uplink_s[2] < 0).all()


def test_memory_follows_13_and_9():
    cell = make_cell()
    memory = first_memory(cell, 0.5)
    assert memory.queue_j.tolist() == [1.0] * 3 and memory.bound == memory.bound_tight == 0.7
    rng = np.random.default_rng(0)
    queue, spent, bound, tight = [1.0] * 3, [0.0] * 3, 0.7, 0.7
    for _ in range(20):
        compute, transmit, phi = rng.exponential(1.0, 3), rng.exponential(1.0, 3), float(rng.random())
        nobody = np.zeros(3, bool)
        memory = remember(cell, memory, phi, phi / 3, Outcome(nobody, nobody, compute, transmit, np.zeros(3), ()), ())
        for k in range(3):
            queue[k] = max(queue[k] + compute[k] + transmit[k] - 2.0, 0.0)
            spent[k] += compute[k] + transmit[k]
        bound, tight = 0.9 * bound + 0.05 * phi, 0.9 * tight + 0.05 * phi / 3
    assert memory.queue_j == pytest.approx(queue, abs=1e-12) and memory.spent_j == pytest.approx(spent)
    assert memory.bound == pytest.approx(bound, rel=1e-12)
    assert memory.bound_tight == pytest.approx(tight, rel=1e-12)
    assert max(queue) > 0


def test_divergence_of_a_decision():
    """(10) and (12): weights 1/6, 2/6, 3/6; Γ² = 2."""
    cell = make_cell()
    pi = np.array([0.5, 0.0, 0.8])
    decision = Decision(np.array([1, 0, 2]), np.ones(3), np.ones(3), pi, 0.0)
    by_hand = (2 * (1 - 0.5 * 0.5) + 0.5 * 0.1) / 6 + 2 * 2 / 6 + (2 * (1 - 0.8) + 0.8 * 0.4) * 3 / 6
    bias = 2 * (0.5 + 0.5**2 * 0.5) / 6 + 2 * 2 / 6 + 2 * 0.2**2 * 3 / 6
    variance = (0.5 * 0.5 * 0.5 * 2 + 0.5 * 0.1) / 36 + (0.8 * 0.2 * 2 + 0.8 * 0.4) * 9 / 36
    assert divergence(cell, first_memory(cell, 0.0), decision) == pytest.approx((by_hand, bias + variance), rel=1e-12)


def test_phi_is_what_the_objective_maximises():
    """Σ U π = Σ ω Γ² − Φ, so with empty queues (P1)'s objective is V (Σ ω Γ² − Φ)."""
    cell = make_cell()
    problem = pose(cell, first_memory(cell, 0.0), observe(cell))
    decision = make_decision(problem, np.array([1, 2, 1]), problem.power_max_w[:, 0], np.full(3, 3e5))
    assert 0.0 < decision.success_probability.min()
    phi, _ = divergence(cell, first_memory(cell, 0.0), decision)
    assert decision.objective == pytest.approx(50.0 * (2.0 - phi), rel=1e-9)
    assert (energy_j(problem, decision.module, decision.power_w) > 0).all()


def test_rounds_weigh_as_in_the_bound():
    """V_t is V times the factor of Φ_t in (9), of mean V; flat is V."""
    cell = dataclasses.replace(make_cell(rounds=5), horizon="bound")
    v = [pose(cell, first_memory(cell, 0.0), observe(cell, t=t)).tradeoff_v for t in range(5)]
    factor = [0.9**4, 0.9**3, 0.9**2, 0.9, 1.0]
    assert v == pytest.approx([50.0 * 5 * each / sum(factor) for each in factor], rel=1e-12)
    flat = dataclasses.replace(cell, horizon="flat")
    assert pose(flat, first_memory(flat, 0.0), observe(flat, t=4)).tradeoff_v == 50.0


def test_what_a_method_sends_is_what_the_round_is_charged_for():
    """Bits up are the payload, bits down take time from the upload, and no device gets more than its largest module."""
    cell = make_cell(account=False)
    seen = observe(cell)
    own = pose(cell, first_memory(cell, 0.5), seen)
    down_bit = np.array([1e7, 2e7])
    asked = Offer(np.array([2e5, 3e6]), down_bit, largest=np.array([2, 1, 2]))
    told = pose(cell, first_memory(cell, 0.5), seen, asked)
    assert (told.payload_bit == [[2e5, 3e6]] * 3).all()
    snr = 40.0 * 1e-11 / (NOISE_W_PER_HZ * 1e6)
    rate = 1e6 * math.log2(1 + snr)
    compute_s = 800.0 * np.outer(1 / (cell.devices.frequency_hz * 8.0), [1e7, 2e7])
    assert np.allclose(told.uplink_s, 4.0 - down_bit / rate - compute_s)
    assert np.allclose(own.uplink_s - told.uplink_s, (down_bit - cell.modules.downlink_bit) / rate)
    assert own.feasible.all(axis=1).tolist() == [True, True, False]  # the last one has no memory for module 2
    assert told.feasible.tolist() == [[True, True], [True, False], [True, False]]


def test_more_bits_cost_energy_where_the_power_is_chosen_and_success_where_it_is_fixed():
    """joint buys success with power; at full power over all the time left, (7), energy stays and success falls."""
    cell = make_cell(account=False, budget_j=50.0)

    def decided(policy, payload_bit):
        offer = Offer(np.full(2, payload_bit), np.full(2, 1e5))
        problem = pose(cell, first_memory(cell, 0.02), observe(cell), offer)
        decision = policy(problem)
        return decision, energy_j(problem, decision.module, decision.power_w)

    (few, few_j), (many, many_j) = (decided(JointPolicy(), bit) for bit in (2e5, 1e6))
    assert (few.module > 0).all() and (many.module > 0).all()
    assert many_j.sum() > 1.05 * few_j.sum()
    fixed = TraditionalPolicy(1, np.zeros(3))
    (few, few_j), (many, many_j) = (decided(fixed, bit) for bit in (1e6, 4e6))
    assert (few.module == 1).all() and (many.module == 1).all()
    assert np.allclose(few_j, many_j)
    assert (many.success_probability < few.success_probability).all()
