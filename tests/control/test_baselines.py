from dataclasses import replace

import numpy as np
import pytest

from airtune.config import FleetConfig, PolicyConfig
from airtune.control.alternating import AlternatingPolicy
from airtune.control.baselines import CapabilityPolicy, TraditionalPolicy, UnlimitedPolicy, load_policy
from airtune.control.digest import DigestPolicy
from airtune.control.evaluation import energy_j, validate_decision
from airtune.control.joint import JointPolicy
from airtune.control.policies import policy_of
from airtune.physics.devices import sample_devices
from airtune.types import AirtuneError, Policy


def test_traditional_shares_the_band_equally_at_full_power(make_problem):
    problem = make_problem(6, 3, 0, budget_j=np.full(6, 100.0), feasible=np.ones((6, 3), np.bool_))
    decision = TraditionalPolicy(None, np.zeros(6))(problem)
    validate_decision(problem, decision)
    assert decision.module.tolist() == [3] * 6
    assert decision.bandwidth_hz == pytest.approx(np.full(6, 2e6 / 6)) and (decision.power_w == 0.2).all()
    assert TraditionalPolicy(2, np.zeros(6))(problem).module.tolist() == [2] * 6


def test_traditional_leaves_out_who_cannot(make_problem):
    able = np.ones((4, 2), np.bool_)
    able[0, 1] = False
    problem = make_problem(4, 2, 0, budget_j=np.full(4, 100.0), feasible=able)
    late, cap = problem.uplink_s.copy(), problem.power_max_w.copy()
    late[1, 1], cap[2, 1] = -0.5, -1.0
    decision = TraditionalPolicy(None, np.zeros(4))(replace(problem, uplink_s=late, power_max_w=cap))
    assert decision.module.tolist() == [0, 0, 0, 2] and decision.bandwidth_hz[3] == 2e6


@pytest.mark.parametrize("budget", [0.3, 0.7, 1.9, 50.0])
def test_traditional_account_over_a_whole_run(make_problem, budget):
    rounds, devices = 40, 8
    base = make_problem(
        devices, 2, 3, budget_j=np.full(devices, budget), rounds=rounds, feasible=np.ones((devices, 2), np.bool_)
    )
    phase = np.arange(devices) / devices
    policy, spent, took = TraditionalPolicy(None, phase), np.zeros(devices), []
    cost = energy_j(base, np.full(devices, 2), base.power_max_w[:, 1])
    for t in range(rounds):
        decision = policy(replace(base, t=t, spent_j=spent.copy()))
        spent = spent + energy_j(base, decision.module, decision.power_w)
        assert (spent <= (t + 1) * budget + phase * cost + 1e-9).all()
        took.append(decision.module > 0)
    assert (spent <= rounds * budget * (1 + 1e-9)).all()
    # Nothing is hoarded: what is left at the end does not pay for one more round.
    missed = np.sum(took, axis=0) < rounds
    assert (rounds * budget - spent < cost * (1 + 1e-9))[missed].all()


def test_phases_stagger_who_would_save_up_together(make_problem):
    base = make_problem(8, 1, 3, feasible=np.ones((8, 1), np.bool_))
    cost = energy_j(base, np.ones(8, np.int64), base.power_max_w[:, 0])
    base = replace(base, budget_j=cost / 4.0)

    def first_round(phase):
        return np.count_nonzero(TraditionalPolicy(None, phase)(base).module)

    assert first_round(np.zeros(8)) == 0
    assert first_round(np.arange(8) / 8.0) == 2


def test_unlimited_takes_everyone(make_problem):
    problem = make_problem(5, 3, 0, feasible=np.zeros((5, 3), np.bool_))
    decision = UnlimitedPolicy(None)(problem)
    validate_decision(problem, decision, unlimited=True)
    assert decision.error_free and decision.module.tolist() == [3] * 5
    assert decision.success_probability.tolist() == [1.0] * 5
    assert decision.objective == pytest.approx(50.0 * problem.utility[:, 2].sum())
    rich = make_problem(5, 3, 0)
    assert UnlimitedPolicy(None)(rich).objective >= AlternatingPolicy()(rich).objective


def test_modules_and_phases_that_do_not_exist(make_problem):
    problem = make_problem(5, 3, 0)
    with pytest.raises(AirtuneError, match="modules 1 to 3"):
        UnlimitedPolicy(4)(problem)
    with pytest.raises(AirtuneError, match="modules 1 to 3"):
        TraditionalPolicy(4, np.zeros(5))(problem)
    with pytest.raises(AirtuneError, match="one entry per device"):
        TraditionalPolicy(1, np.zeros(4))(problem)


FLEET = sample_devices(FleetConfig(devices=5), np.full(5, 100), 0)


def test_policy_of():
    assert policy_of(PolicyConfig(), FLEET, 4, 0) == JointPolicy()
    assert policy_of(PolicyConfig(name="alternating"), FLEET, 4, 0) == AlternatingPolicy()
    assert policy_of(PolicyConfig(name="unlimited", module=2), FLEET, 4, 0) == UnlimitedPolicy(2)
    assert policy_of(PolicyConfig(name="digest"), FLEET, 4, 0) == DigestPolicy()
    first, second = (policy_of(PolicyConfig(name="traditional"), FLEET, 4, seed) for seed in (0, 1))
    assert isinstance(first, TraditionalPolicy) and isinstance(first, Policy) and first.module is None
    assert first.phase.shape == (5,) and ((first.phase >= 0) & (first.phase < 1)).all()
    assert (first.phase != second.phase).any()
    assert (first.phase == policy_of(PolicyConfig(name="traditional"), FLEET, 4, 0).phase).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("x = 1\n", "defines no `policy`"),
        ("policy = 3\n", "is a int; it must be callable"),
        ("import does_not_exist_anywhere\n", "fails on import: ModuleNotFoundError"),
        ("def policy(:\n", "fails on import: SyntaxError"),
        ("\nraise SystemExit('stop')\n", "mine.py, line 2 fails on import: SystemExit: stop"),
    ],
)
def test_bad_policy_files(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(AirtuneError, match=message) as caught:
        load_policy(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_python(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("policy = print\n")
    with pytest.raises(AirtuneError, match=r"must end in \.py"):
        load_policy(path)


def test_capability_gives_the_faster_device_the_larger_module(make_problem):
    """Nine devices and three modules: three of each by speed; who cannot train its own takes a smaller one."""
    fleet = sample_devices(FleetConfig(devices=9), np.full(9, 100), 1)
    policy = policy_of(PolicyConfig(name="capability"), fleet, 3, 0)
    assert isinstance(policy, CapabilityPolicy) and np.bincount(policy.module).tolist() == [0, 3, 3, 3]
    speed = fleet.frequency_hz * fleet.flop_per_cycle
    assert all(speed[policy.module == m].max() <= speed[policy.module == m + 1].min() for m in (1, 2))
    able = np.ones((9, 3), np.bool_)
    able[np.flatnonzero(policy.module == 3)[0], 1:] = False
    able[np.flatnonzero(policy.module == 1)[0]] = False
    problem = make_problem(9, 3, 0, budget_j=np.full(9, 100.0), feasible=able)
    decision = policy(problem)
    validate_decision(problem, decision)
    want = policy.module.copy()
    want[np.flatnonzero(policy.module == 3)[0]], want[np.flatnonzero(policy.module == 1)[0]] = 1, 0
    assert decision.module.tolist() == want.tolist()
    assert decision.bandwidth_hz[want > 0] == pytest.approx(problem.bandwidth_hz / 8)
