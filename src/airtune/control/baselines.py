"""Policies to compare with, and policies from a file."""

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airtune.control.evaluation import RELATIVE_SLACK, energy_j, make_decision, validate_decision
from airtune.physics.link import least_bandwidth_hz, max_efficiency_of
from airtune.types import AirtuneError, BoolK, Decision, FloatK, IntK, Problem


@dataclass(frozen=True, slots=True, eq=False)
class TraditionalPolicy:
    """Traditional federated fine-tuning: one fixed module, equal bandwidth, full power, as often as energy allows.

    Source: FedAvg (McMahan et al., 2017) on a fixed LoRA module; the baseline that arXiv 2509.19306 compares with.
    """

    module: int | None
    """The module every device trains; None for the largest."""
    phase: FloatK
    """Where in its saving cycle each device starts, in [0, 1), so that not all save up for the same rounds."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round: who can pay from its account takes part.

        The account of device k before round t (from 0) holds (t + 1) Ē_k + phase_k E_k − spent_k, and it takes part if
        that covers E_k, the cost of this round, and the whole run's budget T Ē_k is not passed.
        """
        return _all_who_can_pay(problem, np.full(len(problem.gain), fixed_module(problem, self.module)), self.phase)


@dataclass(frozen=True, slots=True, eq=False)
class CapabilityPolicy:
    """Static modules by capability: the faster a device computes, the larger its module; otherwise as traditional.

    The fleet is cut into M groups of equal size by φ f; a device whose group's module is not feasible in a round (its
    memory, the deadline) takes the largest smaller one that is. Source: HetLoRA (Cho et al., EMNLP 2024), whose devices
    have fixed ranks.
    """

    module: IntK
    """Module of each device, 1…M."""
    phase: FloatK
    """As in `TraditionalPolicy`."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round: who can pay from its account takes part, with its own module."""
        allowed = problem.feasible & (np.arange(1, problem.feasible.shape[1] + 1) <= self.module[:, None])
        largest = allowed.shape[1] - np.argmax(allowed[:, ::-1], axis=1)
        return _all_who_can_pay(problem, np.where(allowed.any(axis=1), largest, self.module), self.phase)


def _all_who_can_pay(problem: Problem, module: IntK, phase: FloatK) -> Decision:
    """Every device whose account covers this round's cost takes part at full power, the band shared equally."""
    able, power = who_can_pay(problem, module, phase)
    return equal_share(problem, module, power, able)


def who_can_pay(problem: Problem, module: IntK, phase: FloatK) -> tuple[BoolK, FloatK]:
    """Who can train its module at full power and pay for it from its account, and that power [W], each shape K.

    Args:
        problem: the round.
        module: of each device, 1…M.
        phase: where in its saving cycle each device starts, as in `TraditionalPolicy`.
    """
    devices = np.arange(len(problem.gain))
    if phase.shape != devices.shape:
        raise AirtuneError(f"traditional: phase must have one entry per device, {len(devices)}, got {phase.shape}")
    power = np.maximum(problem.power_max_w[devices, module - 1], 0.0)
    cost = energy_j(problem, module, power)
    able = problem.feasible[devices, module - 1] & (problem.uplink_s[devices, module - 1] > 0) & (power > 0)
    saved = (problem.t + 1) * problem.budget_j + phase * cost - problem.spent_j
    left = problem.rounds * problem.budget_j - problem.spent_j
    slack = RELATIVE_SLACK * cost
    return able & (saved + slack >= cost) & (left + slack >= cost), power


def equal_share(problem: Problem, module: IntK, power_w: FloatK, takes_part: BoolK) -> Decision:
    """The decision in which those who take part share the band equally.

    Under a ceiling on the rate, (16), only as many do as an equal share carries: those who need the most band sit out.
    """
    devices = np.arange(len(module))
    payload_bit, uplink_s = problem.payload_bit[devices, module - 1], problem.uplink_s[devices, module - 1]
    least_hz = least_bandwidth_hz(payload_bit, uplink_s, max_efficiency_of(problem.link))
    order = np.argsort(np.where(takes_part, least_hz, np.inf), kind="stable")
    carried = takes_part[order] & (least_hz[order] * (devices + 1) <= problem.bandwidth_hz * (1.0 + RELATIVE_SLACK))
    takes_part = np.zeros_like(takes_part)
    takes_part[order[carried]] = True
    share = problem.bandwidth_hz / max(int(takes_part.sum()), 1)
    return make_decision(problem, np.where(takes_part, module, 0), power_w, np.where(takes_part, share, 0.0))


@dataclass(frozen=True, slots=True)
class UnlimitedPolicy:
    """The upper bound: every candidate takes part in every round, error-free, whatever its memory, time and energy.

    Source: the ideal case (error-free links, no resource limits) that wireless federated learning is measured against.
    """

    module: int | None
    """The module every device trains; None for the largest."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round; the objective is V Σ U, energy being free."""
        module, devices = fixed_module(problem, self.module), len(problem.gain)
        joins, worth = np.ones(devices, np.bool_), problem.utility[:, module - 1]
        if problem.candidates is not None:
            joins, worth = problem.candidates, worth[problem.candidates]
        return Decision(
            module=np.where(joins, module, 0),
            power_w=np.zeros(devices),
            bandwidth_hz=np.zeros(devices),
            success_probability=np.where(joins, 1.0, 0.0),
            objective=float(problem.tradeoff_v * worth.sum()),
            error_free=True,
        )


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """A policy from the user's own file; every decision it makes is checked against the round's constraints.

    Source: the user.
    """

    path: Path
    function: Callable[[Problem], object]

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round.

        Raises:
            AirtuneError: the function failed, or returned something else than a Decision, or one that is not allowed.
        """
        try:
            decision = self.function(problem)
        except (Exception, SystemExit) as error:
            raise AirtuneError(f"{_place(error, self.path)}: round {problem.t}: {_named(error)}") from error
        if not isinstance(decision, Decision):
            kind = type(decision).__name__
            raise AirtuneError(
                f"{self.path}: round {problem.t}: policy(problem) must return an airtune.types.Decision, got {kind}"
            )
        try:
            validate_decision(problem, decision)
        except AirtuneError as error:
            raise AirtuneError(f"{self.path}: round {problem.t}: {error}") from None
        return decision


def load_policy(path: Path) -> FilePolicy:
    """The policy that a Python file defines under the name `policy`.

    Raises:
        AirtuneError: no such file, it fails on import, or `policy` is missing or not callable.
    """
    if not path.is_file():
        raise AirtuneError(f"policy.file: {path} does not exist; give a Python file that defines policy(problem)")
    name = f"airtune_policy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AirtuneError(f"policy.file: {path} is not a Python file; its name must end in .py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise AirtuneError(f"policy.file: {_place(error, path)} fails on import: {_named(error)}") from error
    function = getattr(loaded, "policy", None)
    if function is None:
        raise AirtuneError(f"policy.file: {path} defines no `policy`; define policy(problem) -> Decision")
    if not callable(function):
        raise AirtuneError(f"policy.file: `policy` in {path} is a {type(function).__name__}; it must be callable")
    return FilePolicy(path, function)


def _place(error: BaseException, path: Path) -> str:
    """The file, and its line where the error arose if it was reached."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _named(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def fixed_module(problem: Problem, module: int | None) -> int:
    """The module asked for, 1…M, the largest if None."""
    count = problem.utility.shape[1]
    if module is not None and not 1 <= module <= count:
        raise AirtuneError(f"policy.module is {module}, but the family has modules 1 to {count}")
    return count if module is None else module
