from pathlib import Path

import numpy as np
import pytest

from airtune.config import PolicyConfig
from airtune.control.policies import policy_of
from airtune.types import AirtuneError, Policy

EXAMPLE = Path(__file__).parents[2] / "examples" / "best_channel.py"


def test_the_example_schedules_the_best_channels(make_problem):
    policy = policy_of(PolicyConfig(name="file", file=EXAMPLE), None, 4, seed=0)
    assert isinstance(policy, Policy)
    problem = make_problem(20, 3, 1, feasible=np.ones((20, 3), np.bool_))
    decision = policy(problem)
    assert set(np.flatnonzero(decision.module)) == set(np.argsort(problem.gain)[-5:])
    assert decision.bandwidth_hz[decision.module > 0] == pytest.approx(np.full(5, 4e5))
    assert (decision.success_probability[decision.module > 0] > 0).all()


def test_the_example_with_few_and_no_devices(make_problem):
    policy = policy_of(PolicyConfig(name="file", file=EXAMPLE), None, 4, seed=0)
    assert np.count_nonzero(policy(make_problem(3, 2, 1, feasible=np.ones((3, 2), np.bool_))).module) == 3
    assert not policy(make_problem(3, 2, 1, feasible=np.zeros((3, 2), np.bool_))).module.any()


def test_the_example_is_short():
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) <= 20


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 7", "must return an airtune.types.Decision, got int"),
        ("return make_decision(p, z + 1, p.power_max_w[:, 0], z + p.bandwidth_hz)", "round 0: .* adds up to"),
        ("return make_decision(p, z + 1, p.power_max_w[:, 0] * 2, z + 1.0)", "its cap"),
        ("return Decision(z + 1, p.power_max_w[:, 0], z + 1.0, z + 1.0, 0.0)", "round 0: .* of device 0 is 1; by"),
        ("return Decision(z + 1, z + 0.0, z + 0.0, z + 1.0, 0.0, error_free=True)", "error_free is only for"),
        ("return UnlimitedPolicy(None)(p)", "mine.py: round 0: decision: error_free is only for"),
        ("return 1 // z[0]", "mine.py, line 7: round 0: FloatingPointError: divide"),
        ("return p.gian", "mine.py, line 7: round 0: AttributeError: .*gian"),
        ("raise ValueError('one\\n  two')", "mine.py, line 7: round 0: ValueError: one two$"),
        ("raise KeyError", "mine.py, line 7: round 0: KeyError$"),
        ("raise SystemExit(3)", "mine.py, line 7: round 0: SystemExit: 3$"),
    ],
)
def test_what_a_policy_returns_is_checked(make_problem, tmp_path, body, message):
    path = tmp_path / "mine.py"
    path.write_text(
        "import numpy as np\nfrom airtune.types import Decision\n"
        "from airtune.control.baselines import UnlimitedPolicy\nfrom airtune.control.evaluation import make_decision\n"
        f"def policy(p):\n    z = np.zeros(len(p.gain), np.int64)\n    {body}\n"
    )
    policy = policy_of(PolicyConfig(name="file", file=path), None, 4, seed=0)
    with np.errstate(divide="raise"), pytest.raises(AirtuneError, match=message) as caught:
        policy(make_problem(4, 2, 0, feasible=np.ones((4, 2), np.bool_)))
    assert "\n" not in str(caught.value)
