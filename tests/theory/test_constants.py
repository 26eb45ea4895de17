"""Prior constants of A4 and A5 against numbers worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.config import ConstantsConfig
from airtune.theory.constants import estimation_error, prior_constants, prior_delta
from airtune.types import Modules


def family(ranks, depths, parameters):
    ones = np.ones(len(ranks))
    return Modules(
        rank=np.array(ranks), depth=np.array(depths), parameters=np.array(parameters), payload_bit=ones,
        downlink_bit=ones, flop_per_token=ones, memory_byte=ones,
    )  # fmt: skip


def test_delta_by_hand():
    """A4: (4/16)^½ = ½ and (3/6)^1 = ½, so module 1 keeps ¼; the whole module keeps everything."""
    config = ConstantsConfig(rank_exponent=0.5, depth_exponent=1.0)
    np.testing.assert_allclose(prior_delta(config, family([4, 16], [3, 6], [10, 40])), [0.75, 0.0], atol=1e-15)


def test_estimation_error_by_hand():
    """A5: 0.2·10/40 + 3·10/100 = 0.35 and 0.2 + 3·40/100 = 1.4; ten times the samples, a tenth of the second term."""
    noise = estimation_error(0.2, 3.0, family([4, 16], [3, 6], [10, 40]), np.array([100, 1000]))
    np.testing.assert_allclose(noise, [[0.35, 1.4], [0.08, 0.32]], rtol=1e-12)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=5),
    st.lists(st.integers(1, 24), min_size=5, max_size=5),
    st.floats(0, 2),
    st.floats(0, 2),
)
def test_a_larger_module_captures_more(ranks, depths, rank_exponent, depth_exponent):
    """A4 as assumed: δ in [0, 1], non-increasing, δ_M = 0."""
    config = ConstantsConfig(rank_exponent=rank_exponent, depth_exponent=depth_exponent)
    modules = family(sorted(ranks), sorted(depths)[: len(ranks)], [1] * len(ranks))
    delta = prior_delta(config, modules)
    assert delta[-1] == 0.0 and np.all(delta >= 0.0) and np.all(delta < 1.0) and np.all(np.diff(delta) <= 1e-15)


def test_constants_carry_the_configuration():
    config = ConstantsConfig(gamma_sq=2.0, contraction=0.9, step=0.1, initial_gap=0.5)
    constants = prior_constants(config, family([4, 16], [3, 6], [10, 40]), np.array([100, 1000, 10]))
    np.testing.assert_array_equal(constants.gamma_sq, [2.0, 2.0, 2.0])
    assert constants.noise.shape == (3, 2) and constants.delta.shape == (2,)
    assert (constants.contraction, constants.step, constants.initial_gap) == (0.9, 0.1, 0.5)
    with pytest.raises(ValueError, match="read-only"):
        constants.delta[0] = 0.0
