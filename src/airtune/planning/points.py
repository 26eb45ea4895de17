"""Configurations around a given one: what a run comes to as band, devices, deadline or budget change."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from airtune.build import Learner, learner_of
from airtune.config import RunConfig
from airtune.paired import Estimate, estimate
from airtune.planning.trial import Trial, refuse_dependent, trial
from airtune.settings import dump, load
from airtune.types import AirtuneError, Policy


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting that a plan varies."""

    key: str
    """Dotted key of the setting."""
    unit: str
    whole: bool = False
    """Whether values are whole numbers."""


AXES: Mapping[str, Axis] = {
    "bandwidth": Axis("world.bandwidth_hz", "Hz"),
    "devices": Axis("fleet.devices", "", whole=True),
    "deadline": Axis("world.deadline_s", "s"),
    "budget": Axis("fleet.budget_scale", "×"),
}


@dataclass(frozen=True, slots=True)
class Point:
    """One configuration over several seeds; ± is a 95 % t-interval over seeds."""

    axis: str
    """The setting that differs from the base, a name of `AXES`."""
    value: float
    bandwidth_hz: float
    devices: int
    deadline_s: float
    budget_scale: float
    tradeoff_v: float
    """V [J² per unit of utility]."""
    utility: Estimate
    """Delivered utility as a share of the most there is, `Trial.utility`."""
    delivered: Estimate
    """Delivered uploads per device and round."""
    delivery_rate: Estimate | None
    """Delivered uploads of those sent."""
    energy_j: Estimate
    energy_compute_j: Estimate
    energy_transmit_j: Estimate
    max_overspend_ratio: float
    """Worst device of all seeds, energy over budget."""
    run_s: float
    """T·τ [s]: a round lasts as long as its deadline, since uploads take all the time that it leaves, (4)."""
    bound: Estimate
    """(9) after the last round; estimated."""
    base_bound_s: Estimate | None
    """Time until the bound is as low as the base's at its end [s]; None unless every seed gets there."""


class Planner:
    """Trials of a configuration and its neighbours on the same seeds, each made once.

    Args:
        config: the base; its seed and those after it are used.
        seeds: how many.
        policy: used instead of `config.policy` if given.
        learner: makes model, data and engine, once for all seeds, or for each where the training data depend on it.
        scale_v: whether V goes with the square of the budget on the budget's axis, as its unit does; else it stays.

    Raises:
        AirtuneError: no seed, or a configuration whose decisions depend on training.
    """

    def __init__(
        self,
        config: RunConfig,
        seeds: int,
        policy: Policy | None = None,
        learner: Callable[[RunConfig], Learner] = learner_of,
        *,
        scale_v: bool = False,
    ) -> None:
        if seeds < 1:
            raise AirtuneError(f"--seeds: at least 1 would be right, got {seeds}")
        refuse_dependent(config)
        self.config = config
        self.seeds = tuple(range(config.seed, config.seed + seeds))
        self._policy = policy
        self._scale_v = scale_v
        self._learner = learner
        self._learners: dict[int, Learner] = {}
        self._trials: dict[tuple[str, float], tuple[Trial, ...]] = {}

    def value(self, axis: str) -> float:
        """The base's own value of an axis."""
        table, key = _axis(axis).key.split(".")
        return float(getattr(getattr(self.config, table), key))

    def point(self, axis: str, value: float) -> Point:
        """The base with another value of one axis.

        Raises:
            AirtuneError: no such axis, a value that the setting refuses, or what `build` refuses.
        """
        config = at(self.config, axis, value)
        if axis == "budget" and self._scale_v:
            v = config.policy.v * (value / self.value(axis)) ** 2
            config = dataclasses.replace(config, policy=dataclasses.replace(config.policy, v=v))
        trials = self._tried(axis, value, config)
        base = self._tried(axis, self.value(axis), self.config)
        reached = [
            _reached_s(one, other.bounds[-1], config.world.deadline_s) for one, other in zip(trials, base, strict=True)
        ]
        times = [each for each in reached if each is not None]
        rates = [each.delivery_rate for each in trials if each.delivery_rate is not None]

        def over_seeds(name: str) -> Estimate:
            return _estimate([getattr(each, name) for each in trials])

        return Point(
            axis=axis,
            value=value,
            bandwidth_hz=config.world.bandwidth_hz,
            devices=config.fleet.devices,
            deadline_s=config.world.deadline_s,
            budget_scale=config.fleet.budget_scale,
            tradeoff_v=config.policy.v,
            utility=over_seeds("utility"),
            delivered=over_seeds("delivered"),
            delivery_rate=estimate(rates),
            energy_j=over_seeds("energy_j"),
            energy_compute_j=over_seeds("energy_compute_j"),
            energy_transmit_j=over_seeds("energy_transmit_j"),
            max_overspend_ratio=max(each.max_overspend_ratio for each in trials),
            run_s=config.rounds * config.world.deadline_s,
            bound=_estimate([each.bounds[-1] for each in trials]),
            base_bound_s=estimate(times) if len(times) == len(trials) else None,
        )

    def _tried(self, axis: str, value: float, config: RunConfig) -> tuple[Trial, ...]:
        key = ("", 0.0) if value == self.value(axis) else (axis, value)
        if key not in self._trials:
            each = (dataclasses.replace(config, seed=seed) for seed in self.seeds)
            self._trials[key] = tuple(trial(one, self._shared(one), self._policy) for one in each)
        return self._trials[key]

    def _shared(self, config: RunConfig) -> Learner:
        """Model and data of a seed; the seed matters only where it draws the training samples."""
        seed = config.seed if config.task.train_limit is not None else self.seeds[0]
        if seed not in self._learners:
            self._learners[seed] = self._learner(config)
        return self._learners[seed]


def values_of(base: float, factors: Sequence[float], *, whole: bool = False) -> tuple[float, ...]:
    """The base times each factor, ascending, each once; whole numbers ≥ 1 where asked.

    >>> values_of(5.0, (0.1, 0.5, 1.0, 2.0), whole=True), values_of(2.0, (2.0, 1.0))
    ((1.0, 2.0, 5.0, 10.0), (2.0, 4.0))
    """
    products = (base * factor for factor in factors)
    return tuple(sorted({float(max(round(one), 1)) if whole else one for one in products}))


def _axis(name: str) -> Axis:
    if name not in AXES:
        raise AirtuneError(f"plan: no axis {name!r}; there are {', '.join(AXES)}")
    return AXES[name]


def at(config: RunConfig, axis: str, value: float) -> RunConfig:
    """The configuration with another value on an axis."""
    asked = _axis(axis)
    if asked.whole and value != math.floor(value):
        raise AirtuneError(f"plan: {asked.key} must be a whole number, got {value:g}")
    table, key = asked.key.split(".")
    values = dump(config)
    values[table][key] = int(value) if asked.whole else value
    return load(values, "plan")


def _reached_s(one: Trial, goal: float, deadline_s: float) -> float | None:
    """Time until the bound is at most the goal, and the end of that round [s]; None if it never is."""
    return next(((t + 1) * deadline_s for t, bound in enumerate(one.bounds) if bound <= goal), None)


def _estimate(values: Sequence[float]) -> Estimate:
    found = estimate(values)
    assert found is not None  # a planner has at least one seed
    return found
