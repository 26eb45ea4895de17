"""ε against the analytic Gaussian mechanism in closed form, composition, and accountants that compose."""

import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp, mpf

from airtune.config.privacy import PrivacyConfig
from airtune.learning.accountant import epsilon, promise
from airtune.types import AirtuneError

dp_accounting = pytest.importorskip("dp_accounting")


def of(multiplier, delta=1e-5, mechanism="local", **more):
    return PrivacyConfig(mechanism=mechanism, noise_multiplier=multiplier, delta=delta, **more)


def delta_of(multiplier, eps):
    """δ(ε) = Φ(1/(2z) − εz) − e^ε Φ(−1/(2z) − εz) of one release (Balle and Wang, 2018, theorem 8), to 50 digits."""
    with mp.workdps(50):
        z, eps = mpf(multiplier), mpf(eps)
        return float(mp.ncdf(1 / (2 * z) - eps * z) - mp.exp(eps) * mp.ncdf(-1 / (2 * z) - eps * z))


@given(st.floats(0.2, 20.0), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=40, deadline=None)
def test_one_release_costs_what_the_closed_form_says(multiplier, delta):
    found = epsilon(of(multiplier, delta), 1)
    if found == 0.0:
        assert delta_of(multiplier, 0.0) <= delta * (1 + 1e-9)
    else:
        assert delta_of(multiplier, found) == pytest.approx(delta, rel=1e-6)


@given(st.floats(0.5, 20.0), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_rounds_compose_as_one_release_of_less_noise(multiplier, rounds):
    assert epsilon(of(multiplier), rounds) == pytest.approx(epsilon(of(multiplier / math.sqrt(rounds)), 1), rel=1e-9)
    assert epsilon(of(multiplier), rounds) < epsilon(of(multiplier), rounds + 1) or rounds < 2
    assert epsilon(of(multiplier), 0) == 0.0


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.0, 16), (5.0, 30), (0.5, 4)])
def test_accountants_that_compose_round_by_round_agree(multiplier, rounds):
    """Privacy loss distributions give the same ε; Rényi orders an upper bound that is no more than 15 % off."""
    from dp_accounting import GaussianDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    event, found = SelfComposedDpEvent(GaussianDpEvent(multiplier), rounds), epsilon(of(multiplier), rounds)
    assert PLDAccountant().compose(event).get_epsilon(1e-5) == pytest.approx(found, rel=1e-5)
    assert found < RdpAccountant().compose(event).get_epsilon(1e-5) < 1.15 * found


def test_what_is_told_at_the_start():
    line = promise(of(2.0, mechanism="central", clip_norm=0.5), 16)
    assert (
        f"ε ≤ {epsilon(of(2.0), 16):.4g} at δ = 1e-05" in line and "clipped to 0.5" in line and "all 16 rounds" in line
    )
    assert "in the server's sum" in line and "no protection" in line
    assert "on every device" in promise(of(2.0, noise="system"), 16)
    assert "no protection" not in promise(of(2.0, noise="system"), 16)


def test_a_missing_library_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(AirtuneError, match=r"pip install 'airtune\[privacy\]'"):
        epsilon(of(1.0), 1)
