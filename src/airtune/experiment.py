"""Run, resume and compare: the loops around `round.step`, and what they write."""

import dataclasses
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from airtune.build import Experiment, build, learner_of, use_threads
from airtune.config import RunConfig
from airtune.display import RunDisplay
from airtune.learning.aggregate import ServerState
from airtune.learning.export import export_peft
from airtune.learning.lora import Adapters
from airtune.record import RunFolder
from airtune.report import summarise
from airtune.round import Record, State, step
from airtune.types import AirtuneError, Memory, Policy

PACKAGES = ("airtune", "torch", "transformers", "peft", "numpy", "scipy", "safetensors")


def run(config: RunConfig, policy: Policy | None = None) -> dict[str, Any]:
    """Fine-tune under a configuration and write its run folder; returns the summary.

    Args:
        config: the configuration; `out` names the folder, which must be new or empty.
        policy: a policy object of your own, used instead of `config.policy` (such a run resumes only from Python).

    Raises:
        AirtuneError: in one line, for anything the user can mend.
    """
    config = dataclasses.replace(config, threads=use_threads(config.threads), out=out_of(config))
    experiment = build(config, policy)
    with RunFolder.create(out_of(config), dump(config), environment(experiment)) as folder:
        return _drive(experiment, folder, experiment.start)


def resume(path: Path, policy: Policy | None = None) -> dict[str, Any]:
    """Finish an interrupted run; the result is bit-identical to an uninterrupted one on the same machine."""
    with RunFolder.open(path, write=True) as folder:
        finished = folder.read_summary()
        if finished is not None:
            return finished
        config = dataclasses.replace(load(folder.read_config(), str(path)), out=path)
        use_threads(config.threads)
        experiment = build(config, policy)
        _same_surroundings(folder, experiment)
        checkpoint = folder.load_checkpoint()
        state = experiment.start if checkpoint is None else _from_checkpoint(*checkpoint)
        folder.truncate_to(state.t)
        return _drive(experiment, folder, state)


def run_or_resume(config: RunConfig) -> dict[str, Any]:
    """Start the run, or finish it if its folder already holds the same one."""
    path = out_of(config)
    if not (path / "run.json").exists():
        return run(config)
    mine = dump(dataclasses.replace(config, threads=None, out=path))
    theirs = load(RunFolder.open(path).read_config(), str(path))
    if dump(dataclasses.replace(theirs, threads=None, out=path)) != mine:
        raise AirtuneError(f"run folder {path} holds a run of another configuration; choose another --out")
    return resume(path)


def out_of(config: RunConfig) -> Path:
    """The run's folder: `out`, or runs/NAME-POLICY-sSEED."""
    return config.out or Path("runs") / f"{config.name}-{config.policy.name}-s{config.seed}"


def dump(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values."""
    return TypeAdapter(RunConfig).dump_python(config, mode="json")


def load(values: dict[str, Any], where: str) -> RunConfig:
    """A configuration from plain values; `where` names their source in an error."""
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        raise AirtuneError(f"{where}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """A validation error in one line: each wrong key, what it should be, what it is."""
    parts: list[str] = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            parts.append(f"{key}: unknown key")
        else:
            message = item["msg"].removeprefix("Value error, ")
            got = "" if isinstance(item["input"], dict) or not key else f", got {item['input']!r}"
            parts.append(f"{key + ': ' if key else ''}{message[:1].lower()}{message[1:]}{got}")
    return "; ".join(parts)


def environment(experiment: Experiment) -> dict[str, Any]:
    """What a run ran on: versions, commit, machine, and the digests of model and data."""
    learner = experiment.learner
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "model": _used(str(learner.source.path), learner.source.description, learner.source.sha256),
        "data": _used(learner.data.source, learner.data.description, dict(learner.data.sha256)),
    }


def _used(source: str, description: str, sha256: object) -> dict[str, object]:
    return {"source": source, "description": description, "sha256": sha256}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> str | None:
    """Git commit of airtune's own source, if it runs from a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _same_surroundings(folder: RunFolder, experiment: Experiment) -> None:
    """Refuse to resume on other data or another model than the run began with."""
    then, now = folder.read_environment(), environment(experiment)
    for part in ("model", "data"):
        if then.get(part, {}).get("sha256") != now[part]["sha256"]:
            raise AirtuneError(
                f"run folder {folder.path}: the {part} has changed since the run began "
                f"({now[part]['description']}); restore it or start a new run"
            )


def _drive(experiment: Experiment, folder: RunFolder, state: State) -> dict[str, Any]:
    """The caller's loop: step, evaluate, write, show."""
    config = experiment.config
    budget_j = config.rounds * float(experiment.system.cell.devices.budget_j.sum())
    title = f"{config.task.name} · {config.policy.name} · seed {config.seed}"
    with RunDisplay(title, rounds=config.rounds, budget_j=budget_j) as display:
        for fact in experiment.learner.facts:
            display.message(f"  {fact}")
        while state.t < config.rounds:
            began = time.perf_counter()
            state, record = step(experiment.system, state)
            stepped = time.perf_counter()
            accuracy = _evaluated(experiment, state)
            ended = time.perf_counter()
            row = _round_row(experiment, state, record, accuracy)
            timing = {
                "t": record.problem.t,
                "observe_s": record.observe_s,
                "decide_s": record.decide_s,
                "execute_s": stepped - began - record.observe_s - record.decide_s,
                "evaluate_s": ended - stepped,
                "wall_s": ended - began,
            }
            folder.append_round(row, _device_rows(experiment, state, record), timing)
            folder.save_checkpoint(*_to_checkpoint(state))
            display.update(row)
    return _finish(experiment, folder, state, budget_j)


def _evaluated(experiment: Experiment, state: State) -> float | None:
    """Accuracy of the running average on the dev subset, every `eval_every` rounds and after the last one."""
    config, learner = experiment.config, experiment.learner
    if state.t % config.task.eval_every and state.t < config.rounds:
        return None
    return learner.engine.accuracy(state.server.average, learner.dev, experiment.subset)


def _finish(experiment: Experiment, folder: RunFolder, state: State, budget_j: float) -> dict[str, Any]:
    """Evaluate on the whole dev set, export the adapter, write the summary."""
    config, learner = experiment.config, experiment.learner
    accuracy = learner.engine.accuracy(state.server.average, learner.dev, np.arange(len(learner.dev)))
    family, names = learner.engine.family, learner.data.label_names
    export_peft(folder.adapter_path, state.server.average, family, learner.source, names)
    rows = folder.read_rounds()
    summary = dict(
        summarise(
            rows,
            task=config.task.name,
            model=config.model.name,
            policy=config.policy.name,
            seed=config.seed,
            budget_j=budget_j,
            wall_s=sum(row["wall_s"] for row in folder.read_timings()),
        )
    )
    summary |= {"accuracy": accuracy, "accuracy_samples": len(learner.dev), "bound_kind": "estimated"}
    folder.write_summary(summary)
    return summary


def _round_row(experiment: Experiment, state: State, record: Record, accuracy: float | None) -> dict[str, Any]:
    cell, outcome, memory = experiment.system.cell, record.outcome, state.memory
    counts = np.bincount(record.decision.module, minlength=len(cell.modules) + 1)
    return {
        "t": record.problem.t,
        "scheduled": int(outcome.scheduled.sum()),
        "delivered": int(outcome.delivered.sum()),
        "energy_compute_j": float(outcome.compute_j.sum()),
        "energy_transmit_j": float(outcome.transmit_j.sum()),
        "tokens": float(outcome.tokens.sum()),
        "loss": record.loss,
        "accuracy": accuracy,
        "objective": record.decision.objective,
        "upper_bound": record.decision.upper_bound,
        "status": record.decision.status,
        "phi": record.phi,
        "bound": memory.bound,
        "bound_kind": "estimated",
        "queue_mean_j": float(memory.queue_j.mean()),
        "queue_max_j": float(memory.queue_j.max()),
        "spent_j": float(memory.spent_j.sum()),
        "max_overspend_ratio": float((memory.spent_j / (state.t * cell.devices.budget_j)).max()),
        "modules": [int(count) for count in counts],
    }


def _device_rows(experiment: Experiment, state: State, record: Record) -> Iterator[dict[str, Any]]:
    decision, outcome, devices = record.decision, record.outcome, experiment.system.cell.devices
    columns: dict[str, Any] = {
        "gain": record.observation.gain,
        "module": decision.module,
        "power_w": decision.power_w,
        "bandwidth_hz": decision.bandwidth_hz,
        "success_probability": decision.success_probability,
        "delivered": outcome.delivered,
        "energy_compute_j": outcome.compute_j,
        "energy_transmit_j": outcome.transmit_j,
        "tokens": outcome.tokens,
        "queue_j": state.memory.queue_j,
        "spent_j": state.memory.spent_j,
    }
    for device, kind in enumerate(devices.kind):
        row: dict[str, Any] = {"t": record.problem.t, "device": device, "kind": kind}
        yield row | {name: column[device].item() for name, column in columns.items()}


def _to_checkpoint(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors: dict[str, Any] = {f"adapters/{name}": tensor for name, tensor in state.adapters.items()}
    tensors |= {f"momentum/{name}": tensor for name, tensor in state.server.momentum.items()}
    tensors |= {f"average/{name}": tensor for name, tensor in state.server.average.items()}
    tensors |= {"queue_j": state.memory.queue_j, "spent_j": state.memory.spent_j}
    return tensors, {"t": state.t, "bound": state.memory.bound}


def _from_checkpoint(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> State:
    def part(prefix: str) -> Adapters:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    memory = Memory(tensors["queue_j"].numpy(), tensors["spent_j"].numpy(), float(meta["bound"]))
    return State(int(meta["t"]), part("adapters/"), ServerState(part("momentum/"), part("average/")), memory)


def export(path: Path, out: Path) -> str:
    """Write a run's adapter (of its last finished round, if it has not ended) as a PEFT folder; returns one line."""
    folder = RunFolder.open(path)
    config = load(folder.read_config(), str(path))
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        raise AirtuneError(f"run folder {path} has no finished round to export")
    state = _from_checkpoint(*checkpoint)
    learner = learner_of(config)
    export_peft(out, state.server.average, learner.engine.family, learner.source, learner.data.label_names)
    summary = folder.read_summary()
    told = f"dev accuracy {summary['accuracy']:.4f}" if summary else f"unfinished run, after round {state.t}"
    return f"{out}: PEFT adapter over {learner.source.name} ({told})"
