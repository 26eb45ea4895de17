"""From a configuration to the objects of a run: one explicit `match` per choice, no registry."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from airtune.air import FadingAir
from airtune.config import LearningConfig, ModelConfig, ModulesConfig, RunConfig, TaskConfig
from airtune.control.policies import policy_of
from airtune.control.problem import Cell, first_memory, pose
from airtune.fleets.simulated import SimulatedFleet
from airtune.fleets.workers import Workers
from airtune.learning.accountant import promise
from airtune.learning.assets import ModelSource, load_model, resolve_model
from airtune.learning.corpora import Examples
from airtune.learning.data import TaskData, TokenSet, load_task, tokenize
from airtune.learning.engine import Engine
from airtune.learning.instructions import tokenize_dialogues
from airtune.learning.lora import Family, NestedLinear, family_of, install
from airtune.learning.methods.chosen import method_of
from airtune.learning.objective import Kind, objective_of
from airtune.learning.partition import partition, strata
from airtune.learning.privacy import guard_of
from airtune.learning.server import first_server
from airtune.learning.warm_start import AdapterSource, read_adapter, warm_start
from airtune.learning.workload import modules_of
from airtune.physics.devices import sample_devices
from airtune.physics.fading import rayleigh_power
from airtune.physics.link import link_of
from airtune.rng import Stream, generator
from airtune.round import State, System
from airtune.theory.constants import prior_constants
from airtune.theory.estimates import Online
from airtune.types import Air, AirtuneError, Devices, FloatK, Modules, Policy, Problem, Radio
from airtune.worlds.analytic import AnalyticWorld, candidates, radio_of, received_w
from airtune.worlds.sionna import SionnaWorld
from airtune.worlds.trace import TraceWorld
from airtune.worlds.transport import TransportAir


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """Model, data and engine: what the runs of a comparison share."""

    engine: Engine
    modules: Modules
    train: TokenSet
    dev: TokenSet
    source: ModelSource
    data: TaskData

    @property
    def facts(self) -> list[str]:
        """What is used, a line each; printed by every run."""
        facts = [
            self.source.description,
            self.data.description,
            f"sequences are {self.engine.batcher.layout}, {self.train.lengths.mean():.1f} tokens on average",
        ]
        if self.data.kind != "classification":
            judged = self.engine.objective.metric
            facts.append(f"{self.data.kind}: judged by {judged}; no balanced batches and no prior correction")
        return facts


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """A run ready to go."""

    config: RunConfig
    learner: Learner
    system: System
    start: State
    subset: NDArray[np.int64]
    """Dev samples evaluated during the run."""
    adapter: AdapterSource | None = None
    """What θ_0 was read from; None for a fresh one."""
    facts: tuple[str, ...] = ()
    """What is used besides model and data, a line each."""


def use_threads(threads: int | None, workers: int = 1) -> int:
    """Set torch's threads; for None the machine's cores, shared by the worker processes. Returns their number."""
    count = threads or max(len(os.sched_getaffinity(0)) // workers, 1)
    torch.set_num_threads(count)
    return count


def learner_of(config: RunConfig) -> Learner:
    """Model, data and engine of a configuration; the last one is kept, so runs of a comparison share it."""
    limit_seed = config.seed if config.task.train_limit is not None else 0
    model = replace(config.model, adapter=None)
    return _learner(config.task, model, config.modules, config.learning, config.data_dir, limit_seed)


@lru_cache(maxsize=1)
def _learner(
    task: TaskConfig,
    model_config: ModelConfig,
    modules_config: ModulesConfig,
    learning: LearningConfig,
    data_dir: Path | None,
    seed: int,
) -> Learner:
    source = resolve_model(model_config)
    data = load_task(task, data_dir, seed)
    model, tokenizer = load_model(source, len(data.label_names))
    train, dev = (_tokens(each, data.kind, model, tokenizer, task.max_length) for each in (data.train, data.dev))
    family, installed = _adapted(model, modules_config, data.kind)
    length = float(train.lengths.mean())
    modules = modules_of(  # before the engine packs the model: a device runs the plain layers
        model,
        family,
        installed,
        modules_config,
        length,
        length * learning.batch_size,
        learning.context == "whole",
        1.0 if train.response is None else float(train.response.sum() / len(train.ids)),
    )
    engine = Engine(model, family, installed, learning, train, objective_of(data.kind))
    return Learner(engine, modules, train, dev, source, data)


def _tokens(examples: Examples, kind: Kind, model: Any, tokenizer: Any, max_length: int) -> TokenSet:
    if kind != "language":
        return tokenize(examples, tokenizer, max_length)
    most = min(tokenizer.model_max_length, model.config.get_text_config().max_position_embeddings)
    return tokenize_dialogues(examples, tokenizer, max_length, most)


def _adapted(model: Any, modules_config: ModulesConfig, kind: Kind) -> tuple[Family, dict[str, NestedLinear]]:
    """The family over a loaded model, which is changed in place; a language model's head stays frozen."""
    family = family_of(model, model.base_model_prefix, modules_config)
    if kind == "language":
        family = replace(family, head=())
    return family, install(model, family)


def _engine_again(
    source: ModelSource,
    outputs: int,
    kind: Kind,
    modules_config: ModulesConfig,
    learning: LearningConfig,
    train: TokenSet,
) -> Engine:
    """The same engine in another process."""
    model = load_model(source, outputs)[0]
    return Engine(model, *_adapted(model, modules_config, kind), learning, train, objective_of(kind))


def _workers(config: RunConfig, learner: Learner) -> Workers | None:
    """The processes that train; None for this one alone."""
    if config.workers == 1:
        return None
    source = replace(learner.source, files=dict(learner.source.files))
    data = learner.data
    make = partial(_engine_again, source, len(data.label_names), data.kind, config.modules, config.learning)
    return Workers(config.workers, make, learner.train)


@dataclass(frozen=True, slots=True, eq=False)
class _Surroundings:
    """Where channels come from and who delivers over them."""

    world: AnalyticWorld | SionnaWorld | TraceWorld
    air: Air
    facts: tuple[str, ...] = ()
    ceiling: float | None = None
    """Highest spectral efficiency of what delivers [bit/s/Hz], which the configuration may overrule; None for none."""


def _surroundings(config: RunConfig, devices: Devices, radio: Radio, tokens: Callable[[int], FloatK]) -> _Surroundings:
    """World and air of a configuration."""
    seed, count = config.seed, len(devices.kind)
    rayleigh = FadingAir(lambda t: rayleigh_power(seed, t, count))
    match config.world.kind:
        case "analytic":
            return _Surroundings(AnalyticWorld(config.world, devices, seed, tokens, config.fleet.active), rayleigh)
        case "sionna":
            world, told = SionnaWorld(config, devices, tokens), config.sionna
            channel = f"channels of TR 38.901 {told.scenario} at {told.carrier_hz / 1e9:g} GHz by Sionna"
            if told.deliveries == "rayleigh":
                return _Surroundings(world, rayleigh, (f"{channel}; deliveries by Rayleigh fades",))
            air = TransportAir(config, world.fading_power, radio.noise_w_per_hz)
            by = f"NR link tables, {told.retransmissions} HARQ retransmissions"
            return _Surroundings(world, air, (f"{channel}; deliveries by {by}",), air.max_efficiency_bit_per_s_hz)
        case "trace":
            measured = TraceWorld(config, devices, radio, tokens)
            return _Surroundings(measured, FadingAir(measured.fading_power), (measured.description,))


def build(
    config: RunConfig, policy: Policy | None = None, learner: Callable[[RunConfig], Learner] = learner_of
) -> Experiment:
    """Everything a run needs.

    Args:
        config: the configuration.
        policy: used instead of `config.policy.name` if given.
        learner: makes (or hands out) model, data and engine.

    Raises:
        AirtuneError: anything missing, damaged or impossible, in one line.
    """
    guard = guard_of(config.privacy, config.seed)
    facts = () if guard is None else (promise(config.privacy, config.rounds),)
    shared = learner(config)
    family = shared.engine.family
    label = strata(shared.train.label, shared.data.kind, config.partition)
    parts = partition(label, shared.train.group, config.partition, config.fleet.devices, config.seed)
    samples = parts.sizes
    devices = sample_devices(config.fleet, samples, config.seed)
    if config.policy.module is not None and config.policy.module > len(shared.modules):
        raise AirtuneError(f"policy.module: {config.policy.module}, but the family has {len(shared.modules)} modules")
    learned = config.constants.source == "estimated"
    radio = radio_of(config.world)

    def tokens(t: int) -> FloatK:
        return fleet.token_counts(t, candidates(config.seed, t, len(parts), config.fleet.active))

    surroundings = _surroundings(config, devices, radio, tokens)
    world = surroundings.world
    received = received_w(config.world, world.gain, devices.power_max_w, config.rounds)
    fleet = SimulatedFleet(
        shared.engine,
        shared.train,
        parts,
        devices.weight,
        config.seed,
        config.rounds,
        measured=learned,
        workers=_workers(config, shared),
        classes=shared.data.kind == "classification",
        air=surroundings.air,
        guard=guard,
    )
    method = method_of(config, family)
    cell = Cell(
        devices=devices,
        modules=shared.modules,
        radio=radio,
        link=link_of(config.world, radio, received, surroundings.ceiling),
        constants=prior_constants(config.constants, shared.modules, samples),
        rounds=config.rounds,
        tradeoff_v=config.policy.v,
        account=config.policy.account == "horizon",
        horizon=config.policy.horizon,
        online=Online(
            config.constants.source == "estimated",
            config.constants.forgetting,
            config.constants.optimism,
            config.constants.generalisation,
            config.learning.local_steps,
        ),
    )
    initial, adapter, facts = family.initial(config.seed), None, (*facts, *surroundings.facts)
    if config.model.adapter is not None:
        adapter = read_adapter(config.model.adapter)
        initial, told = warm_start(adapter, family, initial)
        facts = (f"{adapter.description}, {told}", *facts)
    adapters, kept = method.start(initial)
    server, memory = first_server(adapters, kept), first_memory(cell, config.policy.queue_start)

    def problems() -> list[Problem]:
        each = ((world.observe(t), method.offer(t, server)) for t in range(config.rounds))
        return [pose(cell, memory, observation, offer) for observation, offer in each]

    system = System(
        cell=cell,
        world=world,
        policy=policy or policy_of(config.policy, devices, len(shared.modules), config.seed, problems),
        fleet=fleet,
        method=method,
        learning=config.learning,
        guard=guard,
    )
    start = State(0, adapters, server, memory)
    count = min(config.task.eval_samples, len(shared.dev))
    subset = np.sort(generator(config.seed, Stream.EVALUATION).choice(len(shared.dev), count, replace=False))
    return Experiment(config, shared, system, start, subset, adapter, facts)
