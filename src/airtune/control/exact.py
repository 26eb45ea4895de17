"""(P1) over the outage link to proven optimality with SCIP, §7. An optional extra: `pip install "airtune[exact]"`.

For each option (k, m): x = a/b nats per symbol with a = S ln 2/τ_up, part u = b/B of the band, part ρ = p/P of the power,
exponent t = c/p and success y, scaled so that every variable is of the order of one:

    max Σ f   f ≤ V U y − Z (τ_up/ξ) P ρ − F   y ≤ e^{−t}   ln ρ + ln t + ln x − x − ln(1 − e^{−x}) ≥ ln(s/P)   Σ u ≤ 1

with s = Γ_g N0 a/g the least c, F = Z (E_cmp + P_circ τ_up), and a binary z that is 1 where the option is taken. What a
device may earn as a function of its band alone, v(b) = max_p, is convex up to a point and concave beyond (docs/theory.md),
so tangents to its concave envelope, f ≤ v(b0) z + v'(b0) (b − b0 z), hold for every decision and make the relaxation tight.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airtune.control.evaluation import make_decision
from airtune.control.power import best_power_w
from airtune.physics.link import OutageLink
from airtune.types import AirtuneError, Decision, Problem

Floats = NDArray[np.float64]

_NEGLIGIBLE = 1e-9
"""An option worth less than this part of the best single one may be left out; the bound makes up for it."""
_TANGENTS = 80
"""Tangents to the envelope of each option's value, given to SCIP from the start."""


@dataclass(frozen=True, slots=True)
class Option:
    """One module of one device, with power eliminated; u is a part of the band."""

    device: int
    module: int
    """1…M."""
    reward: float
    """V U [J²]."""
    fixed: float
    """F = Z (E_cmp + P_circ τ_up) [J²]."""
    per_w: float
    """Z τ_up/ξ [J²/W]."""
    cap_w: float
    nats: float
    """a/B: nats per symbol if it had the whole band."""
    least_w: float
    """s [W]: c in an infinite band."""

    def outage_w(self, share: Floats) -> Floats:
        """c at a share of the band [W]."""
        x = self.nats / share
        with np.errstate(over="ignore"):
            return self.least_w * np.expm1(np.minimum(x, 700.0)) / x

    def power_w(self, share: Floats) -> Floats:
        """Best power at a share of the band [W]."""
        return best_power_w(self.reward, self.outage_w(share), self.per_w, 1.0, 1.0, self.cap_w)

    def value(self, share: Floats) -> Floats:
        """v(u) = max_p V U e^{−c/p} − Z E [J²]."""
        power = self.power_w(share)
        sends = power > 0
        ratio = np.where(sends, self.outage_w(share), 0.0) / np.where(sends, power, 1.0)
        return np.where(sends, self.reward * np.exp(-ratio), 0.0) - self.per_w * power - self.fixed

    def slope(self, share: Floats) -> Floats:
        """dv/du [J²], by the envelope theorem."""
        power, x = self.power_w(share), self.nats / share
        sends = power > 0
        safe = np.where(sends, power, 1.0)
        ratio = np.where(sends, self.outage_w(share) / safe, 0.0)
        rise = np.expm1(-x) + x
        # −dc/du = (s/nats) (x e^x − e^x + 1)
        with np.errstate(over="ignore"):
            fall = self.least_w / self.nats * rise * np.exp(np.minimum(x, 700.0))
        return np.where(sends, self.reward * np.exp(-ratio) * fall / safe, 0.0)

    def least_share(self, worth: float) -> float:
        """The share at which v reaches `worth`, from below; v rises with the band."""
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            if float(self.value(np.array([middle]))[0]) < worth:
                low = middle
            else:
                high = middle
        return low if low > 0.0 else high

    def tangents(self, least: float, count: int) -> list[tuple[float, float]]:
        """(value at u = 0, slope) of lines above v on [least, 1], v(least) ≥ 0 being the left end.

        A tangent that lies above v at the left end lies above it everywhere, v being convex and then concave.
        """
        share = np.geomspace(least, 1.0, 4 * count)
        value, slope = self.value(share), self.slope(share)
        left = max(float(value[0]), 0.0)
        bad = np.flatnonzero(value[1:] - slope[1:] * (share[1:] - least) < left) + 1
        first = int(bad[-1]) + 1 if len(bad) else 1
        if first == len(share):
            chord = (float(value[-1]) - left) / (1.0 - least)
            return [(left - chord * least, chord)]
        at = np.geomspace(share[first], 1.0, count)
        value, slope = self.value(at), self.slope(at)
        return [(float(v - g * u), float(g)) for v, g, u in zip(value, slope, at, strict=True)]


def options_of(problem: Problem) -> list[Option]:
    """The modules that some device could gain from if it had the whole band."""
    link = problem.link
    if not isinstance(link, OutageLink):
        raise AirtuneError(f"exact: link must be an OutageLink, got {type(link).__name__}")
    found: list[Option] = []
    for k, column in np.argwhere(problem.feasible & (problem.uplink_s > 0) & (problem.power_max_w > 0)).tolist():
        uplink, queue = float(problem.uplink_s[k, column]), float(problem.queue_j[k])
        reward, gain = problem.tradeoff_v * float(problem.utility[k, column]), float(problem.gain[k])
        if reward <= 0 or gain <= 0:
            continue
        nats_hz = math.log(2.0) * float(problem.payload_bit[k, column]) / uplink
        option = Option(
            device=k,
            module=column + 1,
            reward=reward,
            fixed=queue * float(problem.compute_j[k, column] + problem.circuit_power_w[k] * uplink),
            per_w=queue * uplink / float(problem.pa_efficiency[k]),
            cap_w=float(problem.power_max_w[k, column]),
            nats=nats_hz / problem.bandwidth_hz,
            least_w=link.snr_gap * link.noise_w_per_hz * nats_hz / gain,
        )
        if float(option.value(np.ones(1))[0]) > 0:
            found.append(option)
    return found


@dataclass(frozen=True, slots=True)
class ExactPolicy:
    """(P1) by spatial branch and bound with SCIP; for K ≤ 10 or so.

    Source: SCIP (Bestuzheva et al., 2023) through PySCIPOpt; the formulation is our own.
    """

    gap: float = 1e-6
    """Relative gap at which a solution counts as optimal."""
    time_limit_s: float = 600.0

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round. `upper_bound` is SCIP's dual bound, `iterations` its nodes, `status` "optimal" or "time limit".

        Raises:
            AirtuneError: PySCIPOpt is missing, a link other than the outage link, or SCIP ended without a solution.
        """
        scip = _scip()
        devices = len(problem.gain)
        options = options_of(problem)
        if not options:
            nothing = np.zeros(devices)
            return make_decision(problem, nothing.astype(np.int64), nothing, nothing, upper_bound=0.0, status="optimal")
        scale = max(float(option.value(np.ones(1))[0]) for option in options)
        options = [option for option in options if float(option.value(np.ones(1))[0]) > _NEGLIGIBLE * scale]
        model = scip.Model()
        model.hideOutput()
        model.setParam("limits/gap", self.gap)
        model.setParam("limits/time", self.time_limit_s)
        taken = _build(scip, model, options, scale)
        model.optimize()
        return self._read(problem, model, options, taken, scale)

    def _read(self, problem: Problem, model: Any, options: list[Option], taken: list[Any], scale: float) -> Decision:
        state = model.getStatus()
        if state not in ("optimal", "gaplimit", "timelimit") or model.getNSols() == 0:
            raise AirtuneError(f"exact: SCIP ended with status {state} and no solution; raise time_limit_s")
        devices = len(problem.gain)
        module, share = np.zeros(devices, np.int64), np.zeros(devices)
        power = np.zeros(devices)
        for option, (on, part) in zip(options, taken, strict=True):
            if model.getVal(on) > 0.5:
                module[option.device], share[option.device] = option.module, model.getVal(part)
        share = share / max(float(share.sum()), 1e-300)
        for option in options:
            if module[option.device] == option.module:
                power[option.device] = float(option.power_w(share[[option.device]])[0])
        module = np.where(power > 0, module, 0)
        return make_decision(
            problem,
            module,
            power,
            share * problem.bandwidth_hz,
            upper_bound=scale * (float(model.getDualbound()) + _NEGLIGIBLE * devices),
            iterations=int(model.getNTotalNodes()),
            status="time limit" if state == "timelimit" else "optimal",
        )


def _build(scip: Any, model: Any, options: list[Option], scale: float) -> list[tuple[Any, Any]]:
    """Add all options to the model; (binary, share) of each."""
    taken = [_add_option(scip, model, option, scale, index) for index, option in enumerate(options)]
    for device in {option.device for option in options}:
        model.addCons(
            scip.quicksum(on for option, (on, _, _) in zip(options, taken, strict=True) if option.device == device) <= 1
        )
    model.addCons(scip.quicksum(part for _, part, _ in taken) <= 1)
    model.setObjective(scip.quicksum(worth for _, _, worth in taken), "maximize")
    return [(on, part) for on, part, _ in taken]


def _add_option(scip: Any, model: Any, option: Option, scale: float, index: int) -> tuple[Any, Any, Any]:
    """One option's variables and constraints; its binary, its share of the band and its worth in units of `scale`."""
    least = option.least_share(_NEGLIGIBLE * scale)
    most = float(option.value(np.ones(1))[0]) / scale
    wide, narrow = option.outage_w(np.array([1.0, least]))
    exponent_max = max(1.0, float(narrow) / option.cap_w)
    exponent_max = min(exponent_max, math.log(option.reward / max(option.fixed, _NEGLIGIBLE * scale)))
    exponent_min = float(wide) / option.cap_w
    on = model.addVar(f"z{index}", vtype="B")
    part = model.addVar(f"u{index}", lb=0.0, ub=1.0)
    worth = model.addVar(f"f{index}", lb=0.0, ub=most)
    model.addCons(part <= on)
    model.addCons(part >= least * on)
    for start, slope in option.tangents(least, _TANGENTS):
        model.addCons(worth <= (start / scale) * on + (slope / scale) * part)
    model.addCons(worth <= most * on)
    x = model.addVar(f"x{index}", lb=option.nats, ub=option.nats / least)
    inside = model.addVar(f"w{index}", lb=least, ub=1.0)
    exponent = model.addVar(f"t{index}", lb=exponent_min, ub=max(exponent_max, exponent_min * (1 + 1e-9)))
    success = model.addVar(f"y{index}", lb=math.exp(-exponent_max), ub=math.exp(-exponent_min))
    power = model.addVar(f"p{index}", lb=min(exponent_min / exponent_max, 1.0), ub=1.0)
    model.addCons(inside * x >= option.nats)
    model.addCons(part >= inside - (1 - on))
    model.addCons(success <= scip.exp(-exponent))
    logs = scip.log(power) + scip.log(exponent) + scip.log(x) - x - scip.log(1 - scip.exp(-x))
    model.addCons(logs >= math.log(option.least_w / option.cap_w))
    earned = (option.reward / scale) * success - (option.per_w * option.cap_w / scale) * power - option.fixed / scale
    model.addCons(worth <= earned)
    return on, part, worth


def _scip() -> Any:
    """PySCIPOpt, on demand."""
    try:
        import pyscipopt
    except ImportError:
        raise AirtuneError('exact: PySCIPOpt is missing; pip install "airtune[exact]"') from None
    return pyscipopt
