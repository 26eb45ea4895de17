"""Uploads over block fading: one fade a device and round decides whether all of an upload arrives, (5) and (6)."""

from collections.abc import Callable

import numpy as np

from airtune.control.evaluation import chosen
from airtune.physics.fading import arrives
from airtune.physics.link import success_probability
from airtune.types import Decision, FloatK, Problem, Transmission


def uploads_s(decision: Decision, problem: Problem) -> FloatK:
    """Time left for each device's upload τ_up, (4) of the module it was given; 0 where it sits out, shape K [s]."""
    return np.maximum(chosen(problem.uplink_s, decision.module), 0.0)


class FadingAir:
    """An upload arrives iff p h ≥ c over the round's link; the radio is on for all of τ_up.

    Args:
        fading_power: round → h_k, shape K: drawn (`physics.fading.rayleigh_power` makes (6) exact), or measured.
    """

    def __init__(self, fading_power: Callable[[int], FloatK]) -> None:
        self._fading_power = fading_power

    def transmit(self, decision: Decision, problem: Problem) -> Transmission:
        """What becomes of the round's uploads."""
        uplink_s = uploads_s(decision, problem)
        payload_bit = chosen(problem.payload_bit, decision.module, idle=1.0)
        threshold_w = problem.link.outage_power_w(payload_bit, uplink_s, decision.bandwidth_hz, problem.gain)
        least_w = problem.link.power_min_w(payload_bit, uplink_s, decision.bandwidth_hz, problem.gain)
        possible = (decision.module > 0) & (success_probability(threshold_w, decision.power_w, least_w) > 0.0)
        arrived = arrives(decision.power_w, threshold_w, self._fading_power(problem.t))
        return Transmission(delivered=arrived & possible, airtime_s=uplink_s)
