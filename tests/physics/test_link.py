import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from airtune.config import WorldConfig
from airtune.physics.link import (
    GivenLink,
    OutageLink,
    WaterfallLink,
    least_bandwidth_hz,
    link_of,
    max_efficiency_of,
    success_probability,
    threshold_for,
)
from airtune.types import AirtuneError, Link, Radio

LINK = OutageLink(noise_w_per_hz=4e-21, snr_gap=2.0)
FALL = WaterfallLink(noise_w_per_hz=4e-21, m_linear=0.023, snr_gap=2.0)


def test_outage_power_by_hand():
    # (5): S/(b tau) = 2e6/(1e6 * 1) = 2 bit/s/Hz, so 2^2 - 1 = 3; 2 * 4e-21 * 1e6 * 3 / 1e-12 = 2.4e-2 W.
    assert float(LINK.outage_power_w(2e6, 1.0, 1e6, 1e-12)) == pytest.approx(2.4e-2, rel=1e-14)


def test_outage_probability_is_that_of_rayleigh_capacity():
    payload, uplink, band, gain, power = 3e6, 2.0, 1e6, 1e-12, 0.05
    fading = np.random.default_rng(0).exponential(1.0, 400_000)
    capacity = band * np.log2(1.0 + power * gain * fading / (LINK.snr_gap * LINK.noise_w_per_hz * band))
    measured = (capacity >= payload / uplink).mean()
    predicted = float(success_probability(LINK.outage_power_w(payload, uplink, band, gain), power))
    assert 0.05 < predicted < 0.95
    assert measured == pytest.approx(predicted, abs=4.0 * math.sqrt(0.25 / len(fading)))


def test_outage_power_limits():
    wide = 2.0 * 4e-21 * math.log(2.0) * 2e6 / 1e-12
    assert float(LINK.outage_power_w(2e6, 1.0, 1e13, 1e-12)) == pytest.approx(wide, rel=1e-6)
    for arguments in ((1e6, 1.0, 0.0, 1e-12), (1e6, 0.0, 1e6, 1e-12), (1e6, -1.0, 1e6, 1e-12), (1e6, 1.0, 1e6, 0.0)):
        assert LINK.outage_power_w(*arguments) == np.inf
    assert LINK.outage_power_w(1e9, 1.0, 1.0, 1e-12) == np.inf
    assert LINK.outage_power_w(0.0, 1.0, 1e6, 1e-12) == 0.0


def test_success_probability_by_hand():
    # (6)
    assert float(success_probability(0.2, 0.1)) == pytest.approx(math.exp(-2.0), rel=1e-15)
    given_up = success_probability(np.array([0.0, 0.1, np.inf, 0.1]), np.array([0.0, -1.0, 1.0, 0.2]), [0, 0, 0, 0.3])
    assert given_up.tolist() == [0.0, 0.0, 0.0, 0.0]
    assert float(success_probability(0.1, 0.3 * (1 - 1e-12), 0.3)) > 0.7


def test_waterfall_by_hand():
    assert float(FALL.outage_power_w(1e6, 1.0, 1e6, 1e-12)) == pytest.approx(0.023 * 4e-21 * 1e6 / 1e-12, rel=1e-14)
    rate_power = float(FALL.power_min_w(2e6, 1.0, 1e6, 1e-12))
    assert rate_power == pytest.approx(2.4e-2, rel=1e-14)
    assert 1e6 * math.log2(1.0 + rate_power * 1e-12 / (2.0 * 4e-21 * 1e6)) == pytest.approx(2e6, rel=1e-12)


@given(
    payload=st.floats(1e3, 1e8),
    power=st.floats(1e-6, 10.0),
    gain_db=st.floats(-160.0, -50.0),
)
def test_waterfall_least_bandwidth_against_a_root_finder(payload, power, gain_db):
    gain, uplink = 10.0 ** (gain_db / 10.0), 3.0
    band = float(FALL.bandwidth_min_hz(payload, uplink, power, gain))
    snr_hz = power * gain / (2.0 * 4e-21)

    def excess(log_b):
        b = math.exp(log_b)
        return b * math.log1p(snr_hz / b) / math.log(2.0) / (payload / uplink) - 1.0

    if snr_hz / math.log(2.0) <= payload / uplink * (1 + 1e-6):
        if snr_hz / math.log(2.0) < payload / uplink:
            assert band == np.inf
    elif excess(-20.0) < 0:
        assert band == pytest.approx(math.exp(brentq(excess, -20.0, 60.0, xtol=1e-13)), rel=2e-3)
        assert float(FALL.power_min_w(payload, uplink, band, gain)) == pytest.approx(power, rel=1e-5)


@given(st.floats(0.0, 1e12), st.floats(-10.0, 1e4), st.floats(0.0, 1e12), st.floats(0.0, 1e3), st.floats(0.0, 1e9))
def test_never_nan_and_always_a_probability(payload, uplink, band, gain, power):
    for link in (
        LINK,
        FALL,
        replace(LINK, max_efficiency_bit_per_s_hz=4.0),
        replace(FALL, max_efficiency_bit_per_s_hz=4.0),
    ):
        c, least = link.outage_power_w(payload, uplink, band, gain), link.power_min_w(payload, uplink, band, gain)
        probability = success_probability(c, power, least)
        assert not np.isnan(c) and not np.isnan(least) and c >= 0 and least >= 0
        assert 0.0 <= probability <= 1.0


@given(st.floats(1e4, 1e7), st.floats(1.01, 10.0))
def test_bandwidth_helps_the_outage_link_and_hurts_the_waterfall(band, factor):
    assert LINK.outage_power_w(1e6, 1.0, band * factor, 1e-12) <= LINK.outage_power_w(1e6, 1.0, band, 1e-12)
    assert FALL.outage_power_w(1e6, 1.0, band * factor, 1e-12) > FALL.outage_power_w(1e6, 1.0, band, 1e-12)


def test_link_of_takes_noise_and_gap_from_the_radio():
    radio = Radio(bandwidth_hz=1e6, noise_w_per_hz=3e-20, snr_gap=2.5, deadline_s=10.0, bs_power_w=40.0)
    link = link_of(WorldConfig(), radio)
    assert isinstance(link, Link) and link == OutageLink(noise_w_per_hz=3e-20, snr_gap=2.5)
    fall = link_of(WorldConfig(link="waterfall", waterfall_m_linear=0.5), radio)
    assert isinstance(fall, Link) and fall == WaterfallLink(noise_w_per_hz=3e-20, m_linear=0.5, snr_gap=2.5)


def test_a_ceiling_by_hand():
    """(16): 6 Mbit in 3 s at no more than 4 bit/s/Hz need 500 kHz; with less nothing arrives, with more (6) holds."""
    assert least_bandwidth_hz([6e6, 6e6], [3.0, -1.0], 4.0).tolist() == [5e5, np.inf]
    assert least_bandwidth_hz(6e6, 3.0, np.inf) == least_bandwidth_hz(6e6, 2.3e-308, np.inf) == 0.0
    band = np.array([4e5, 4.999e5, 5e5, 6e5])
    for plain in (LINK, FALL):
        link = replace(plain, max_efficiency_bit_per_s_hz=4.0)
        assert max_efficiency_of(link) == 4.0 and max_efficiency_of(plain) == np.inf

        def chance(link):
            terms = (6e6, 3.0, band, 1e-11)
            return success_probability(link.outage_power_w(*terms), 0.2, link.power_min_w(*terms))

        assert (chance(plain) > 0).all()
        np.testing.assert_array_equal(chance(link), np.where(band >= 5e5, chance(plain), 0.0))
    assert float(FALL.bandwidth_min_hz(6e6, 3.0, 0.2, 1e-11)) < 5e5
    assert float(replace(FALL, max_efficiency_bit_per_s_hz=4.0).bandwidth_min_hz(6e6, 3.0, 0.2, 1e-11)) == 5e5
    assert max_efficiency_of(GivenLink(1.0)) == np.inf


def test_the_ceiling_is_the_configured_one_or_that_of_what_delivers():
    radio = Radio(bandwidth_hz=1e6, noise_w_per_hz=3e-20, snr_gap=2.5, deadline_s=10.0, bs_power_w=40.0)
    for kind in ("outage", "waterfall"):
        own, none = WorldConfig(link=kind, max_efficiency_bit_per_s_hz=3.0), WorldConfig(link=kind)
        found = [
            link_of(own, radio),
            link_of(own, radio, None, 4.0),
            link_of(none, radio, None, 4.0),
            link_of(none, radio),
        ]
        assert [max_efficiency_of(link) for link in found] == [3.0, 3.0, 4.0, np.inf]


def test_bad_links_are_refused():
    with pytest.raises(AirtuneError, match="max_efficiency_bit_per_s_hz must be a number > 0"):
        OutageLink(4e-21, 2.0, 0.0)
    with pytest.raises(AirtuneError, match="snr_gap"):
        OutageLink(4e-21, 0.5)
    with pytest.raises(AirtuneError, match="noise_w_per_hz"):
        OutageLink(0.0, 2.0)
    with pytest.raises(AirtuneError, match="m_linear"):
        WaterfallLink(4e-21, -1.0, 2.0)


@pytest.mark.parametrize("delivery", [0.05, 0.7, 0.999])
def test_given_delivery_is_met_in_the_mean_and_the_far_lose_more(delivery):
    received = np.random.default_rng(0).lognormal(-25.0, 2.0, (30, 20))
    link = GivenLink(threshold_for(delivery, received))
    c = link.outage_power_w(1e6, 3.0, 1e5, received / 0.2)
    pi = success_probability(c, 0.2, link.power_min_w(1e6, 3.0, 1e5, received / 0.2))
    assert pi.mean() == pytest.approx(delivery, abs=1e-9)
    order = np.argsort(received, axis=None)
    assert (np.diff(pi.ravel()[order]) >= 0).all()
    assert (link.outage_power_w(9e9, 0.1, 1.0, received / 0.2) == c).all()  # whatever the size, time and band
    assert link.outage_power_w(1e6, 3.0, 0.0, 1e-9) == np.inf


def test_error_free_delivery_loses_nothing():
    link = GivenLink(threshold_for(1.0, np.array([1e-12])))
    assert success_probability(link.outage_power_w(1e6, 1.0, 1.0, 1e-15), 1e-3) == 1.0
