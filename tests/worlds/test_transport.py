"""How an upload goes over NR, against uploads sent one transmission at a time; needs no Sionna."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.tr38901_reference import sent_one_by_one

from airtune.config import SionnaConfig
from airtune.types import AirtuneError
from airtune.worlds.tr38901 import Channels, LinkTables, Rates
from airtune.worlds.transport import format_of, max_efficiency_bit_per_s_hz, transmit_blocks

RATES = Rates(np.array([3, 4, 5]), np.array([400, 200, 100]), np.array([1000, 1000, 1000]))


@settings(deadline=None)
@given(st.data())
def test_blocks_sent_as_one_by_one(data):
    stretches, tries = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    room = data.draw(st.integers(1, 30))
    chance = st.floats(0, 1)
    errors = np.array([sorted(data.draw(st.lists(chance, min_size=tries, max_size=tries)), reverse=True)
                       for _ in range(stretches)])  # fmt: skip
    early = data.draw(st.lists(st.integers(0, room), min_size=stretches - 1, max_size=stretches - 1))
    edges = np.array([*sorted(early), room])
    blocks = data.draw(st.integers(1, 30))
    uniform = np.random.default_rng(data.draw(st.integers(0, 999))).random(room)
    assert transmit_blocks(errors, edges, blocks, uniform) == sent_one_by_one(errors, edges, blocks, uniform)


@pytest.mark.parametrize(("room", "chance"), [(1, 0.6), (2, 0.9), (3, 0.9 + 0.1 * 0.6), (4, 1 - 0.1 * 0.1)])
def test_chance_of_a_block_by_hand(room, chance):
    """Wrong with 0.4 after one transmission and with 0.1 after two, then afresh; four standard errors of 20,000."""
    rng, count = np.random.default_rng(1), 20000
    hits = sum(
        transmit_blocks(np.array([[0.4, 0.1]]), np.array([room]), 1, rng.random(room))[0] == 1 for _ in range(count)
    )
    assert hits / count == pytest.approx(chance, abs=4 * (chance * (1 - chance) / count) ** 0.5)


def test_errors_that_do_not_fall_are_held_to_the_least_before():
    assert transmit_blocks(np.array([[0.2, 0.9]]), np.array([5]), 1, np.full(5, 0.5)) == (1, 1)
    assert transmit_blocks(np.array([[0.9, 0.2, 0.6]]), np.array([5]), 1, np.full(5, 0.5)) == (1, 2)


def test_the_lowest_rate_that_fits_or_the_highest():
    """Ten blocks with a reserve of one need 4,400, 2,200 or 1,100 elements."""
    elements = np.array([4400.0, 4399.0, 2200.0, 1100.0, 1099.0, 999.0])
    cut = format_of(RATES, np.full(6, 9500.0), elements, 0.1)
    np.testing.assert_array_equal(cut.rate, [0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(cut.blocks, np.full(6, 10))
    np.testing.assert_array_equal(cut.room, [11, 21, 11, 11, 10, 9])


def test_the_ceiling_is_the_highest_rate_at_which_an_upload_and_its_reserve_fit():
    """(16) of the tables: 10 bits an element, 12·13/180 elements per Hz and second, a tenth of them kept back."""
    ceiling = max_efficiency_bit_per_s_hz(RATES, 0.1)
    assert ceiling == pytest.approx(10.0 * 12 * 13 / 180 / 1.1, rel=1e-12)
    payload_bit, room = np.full(2, 1e6), 1e6 / (ceiling * np.array([1.001, 0.999])) * 12 * 13 / 180
    cut = format_of(RATES, payload_bit, room, 0.1)
    np.testing.assert_array_equal(cut.room >= np.ceil(1.1 * cut.blocks), [False, True])


def test_without_sionna_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for part in (Channels, LinkTables):
        with pytest.raises(AirtuneError, match=r"^world.kind sionna: .*pip install 'airtune\[sionna\]'$"):
            part(SionnaConfig())
