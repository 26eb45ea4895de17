"""(P1) over the outage link to proven optimality with SCIP, §6. An optional extra: `pip install "airtune[exact]"`.

For each option (k, m): x = a/b nats per symbol with a = S ln 2/τ_up, part u = b/B of the band, part ρ = p/P of the
power, exponent t = c/p and success y, scaled so that every variable is of the order of one:

    max Σ f   f ≤ V U y − Z (τ_up/ξ) P ρ − F   y ≤ e^{−t}   ln ρ + ln t + ln x − x − ln(1 − e^{−x}) ≥ ln(s/P)   Σ u ≤ 1

with s = Γ_g N0 a/g the least c, F = Z (E_cmp + P_circ τ_up), a binary z that is 1 where the option is taken, and
u ≥ z b_min/B, (16). What a device may earn given its band alone, v(b) of `control.exact_curve`, is convex up to a point
and concave beyond. So tangents to its concave envelope, f ≤ v(b0) z + v'(b0) (b − b0 z), hold for every decision and
make the relaxation tight: only modules, and what little of the convex part matters, are left to branch on.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from airtune.control.evaluation import make_decision
from airtune.control.exact_curve import Option, options_of
from airtune.types import AirtuneError, Decision, Problem

_NEGLIGIBLE = 1e-9
"""An option worth less than this part of the best single one may be left out; the bound makes up for it."""
_TANGENTS = 30
"""Tangents to the envelope of each option's value that SCIP has from the start; more follow where it needs them."""
_SEPARATED = 1e-4
"""An option taken to a lesser part than this in the relaxation gets no tangent."""
_VIOLATION = 1e-7
"""Least excess of the relaxation over a tangent for it to be added, in units of the best single option."""


@dataclass(frozen=True, slots=True)
class Taken:
    """SCIP's variables of one option."""

    on: Any
    """1 if the option is taken."""
    part: Any
    """Its share of the band."""
    worth: Any
    """What it earns, in units of the model's scale."""
    touching: float | None
    """From this share on tangents are valid; None if there are none."""


@dataclass(frozen=True, slots=True)
class ExactPolicy:
    """(P1) by spatial branch and bound with SCIP; for K ≤ 10 or so.

    Source: SCIP (Bestuzheva et al., 2023) through PySCIPOpt; the formulation is our own.
    """

    gap: float = 1e-6
    """Relative gap at which a solution counts as optimal."""
    time_limit_s: float = 600.0

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round: SCIP's dual bound as `upper_bound`, its nodes, and whether it was "optimal" or "time limit".

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
        model.setParam("separating/maxroundsroot", -1)
        model.setParam("separating/maxrounds", 20)
        taken = _build(scip, model, options, scale)
        separator = _separator(scip, options, taken, scale)
        model.includeSepa(separator, "tangent", "tangents to the value of the band", priority=100000, freq=1)
        model.optimize()
        return self._read(problem, model, options, taken, scale)

    def _read(self, problem: Problem, model: Any, options: list[Option], taken: list[Taken], scale: float) -> Decision:
        state = model.getStatus()
        found = model.getNSols() > 0  # else nothing but everybody idle is known
        if state not in ("optimal", "gaplimit", "timelimit") or not (found or state == "timelimit"):
            raise AirtuneError(f"exact: SCIP ended with status {state} and no solution")
        devices = len(problem.gain)
        alone = np.zeros(devices)  # the bound of a search that ended before its first relaxation
        for option in options:
            alone[option.device] = max(alone[option.device], (option.reward - option.fixed) / scale)
        module, share = np.zeros(devices, np.int64), np.zeros(devices)
        power, floor = np.zeros(devices), np.zeros(devices)
        for option, each in zip(options, taken, strict=True):
            if found and model.getVal(each.on) > 0.5:
                module[option.device], share[option.device] = option.module, model.getVal(each.part)
                floor[option.device] = option.floor
        above = np.maximum(share - floor, 0.0)  # the solver keeps to constraints within its tolerance only
        share = floor + above / max(float(above.sum()), 1e-300) * (1.0 - float(floor.sum()))
        for option in options:
            if module[option.device] == option.module:
                power[option.device] = float(option.power_w(share[[option.device]])[0])
        module = np.where(power > 0, module, 0)
        return make_decision(
            problem,
            module,
            power,
            share * problem.bandwidth_hz,
            upper_bound=scale * (min(float(model.getDualbound()), float(alone.sum())) + _NEGLIGIBLE * devices),
            iterations=int(model.getNTotalNodes()),
            status="time limit" if state == "timelimit" else "optimal",
        )


def _build(scip: Any, model: Any, options: list[Option], scale: float) -> list[Taken]:
    """Add all options to the model."""
    taken = [_add_option(scip, model, option, scale, index) for index, option in enumerate(options)]
    for device in {option.device for option in options}:
        own = [each.on for option, each in zip(options, taken, strict=True) if option.device == device]
        model.addCons(scip.quicksum(own) <= 1)
    model.addCons(scip.quicksum(each.part for each in taken) <= 1)
    model.setObjective(scip.quicksum(each.worth for each in taken), "maximize")
    return taken


def _separator(scip: Any, options: list[Option], taken: list[Taken], scale: float) -> Any:
    """A SCIP separator that adds the tangent at the relaxation's share wherever the relaxation earns more than that."""

    def separate(self: Any) -> dict[str, Any]:
        model, added = self.model, False
        for option, each in zip(options, taken, strict=True):
            if each.touching is None:
                continue
            on, part, worth = (model.getTransformedVar(var) for var in (each.on, each.part, each.worth))
            z, u, f = (model.getSolVal(None, var) for var in (on, part, worth))
            if z < _SEPARATED:
                continue
            at = np.array([min(max(u / z, each.touching), 1.0)])
            start, slope = (value / scale for value in option.tangents(at)[0])
            if f - start * z - slope * u <= _VIOLATION:
                continue
            row = model.createEmptyRowSepa(self, "tangent", lhs=None, rhs=0.0, local=False, removable=True)
            model.cacheRowExtensions(row)
            for var, weight in ((worth, 1.0), (on, -start), (part, -slope)):
                model.addVarToRow(row, var, weight)
            model.flushRowExtensions(row)
            model.addCut(row, forcecut=True)
            model.releaseRow(row)
            added = True
        return {"result": scip.SCIP_RESULT.SEPARATED if added else scip.SCIP_RESULT.DIDNOTFIND}

    return type("Separator", (scip.Sepa,), {"sepaexeclp": separate})()


def _add_option(scip: Any, model: Any, option: Option, scale: float, index: int) -> Taken:
    """One option's variables and constraints."""
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
    touching = option.touching(least)
    if touching is None:
        left = max(float(option.value(np.array([least]))[0]), 0.0) / scale
        chord = (most - left) / (1.0 - least)
        lines = [(left - chord * least, chord)]
    else:
        lines = option.tangents(np.geomspace(touching, 1.0, _TANGENTS))
        lines = [(start / scale, slope / scale) for start, slope in lines]
    for start, slope in lines:
        model.addCons(worth <= start * on + slope * part)
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
    return Taken(on, part, worth, touching)


def _scip() -> Any:
    """PySCIPOpt, on demand."""
    try:
        import pyscipopt
    except ImportError:
        raise AirtuneError('exact: PySCIPOpt is missing; pip install "airtune[exact]"') from None
    return pyscipopt
