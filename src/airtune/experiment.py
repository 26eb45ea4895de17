"""Run, resume and compare: the loops around `round.step`, and what they write."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from airtune.build import Experiment, build, learner_of, use_threads
from airtune.card import Judged, card_of
from airtune.checkpoint import from_checkpoint, to_checkpoint
from airtune.config import RunConfig
from airtune.display import RunDisplay
from airtune.judging import Judge, Judgement
from airtune.learning.accountant import spent
from airtune.learning.export import export_merged, export_peft
from airtune.learning.pypi import MODELS
from airtune.logs.log import RunLog, Watched
from airtune.record import RunFolder, refuse_occupied
from airtune.report import elapsed_s, summarise
from airtune.round import Record, State, rounds
from airtune.settings import dump, label_of, load
from airtune.surroundings import changed_code, environment, same_policy, same_surroundings
from airtune.theory.estimates import delta_of, gamma_sq_of, noise_of
from airtune.types import AirtuneError, Note, Policy

NOTHING = Note(None, "none")
"""Of a device that sat the round out."""
Make: TypeAlias = Callable[[RunConfig, Policy | None], Experiment]
"""What makes a run of its configuration, and of a policy object that takes the place of the configured one."""


def run(
    config: RunConfig,
    policy: Policy | None = None,
    *,
    prefix: str = "",
    log: RunLog | None = None,
    make: Make | None = None,
) -> dict[str, Any]:
    """Fine-tune under a configuration and write its run folder; returns the summary.

    Args:
        config: the configuration; `out` names the folder, which must be new or empty.
        policy: a policy object of your own, used instead of `config.policy` (such a run resumes only from Python).
        prefix: put before the title that is shown.
        log: where a copy of every round's values goes, too.
        make: makes what runs of the configuration and the policy; None for `build`.

    Raises:
        AirtuneError: in one line, for anything the user can mend.
    """
    clock, path = _clock(0.0), out_of(config)
    refuse_occupied(path)
    config = dataclasses.replace(placed(config), threads=use_threads(config.threads, config.workers), out=path)
    experiment = (make or build)(config, policy)
    with RunFolder.create(path, dump(config), environment(experiment, policy)) as folder:
        with Watched(log, folder, config.name, first=1) as watched:
            return _drive(experiment, folder, experiment.start, prefix, clock, watched)


def resume(
    path: Path,
    policy: Policy | None = None,
    *,
    prefix: str = "",
    log: RunLog | None = None,
    make: Make | None = None,
) -> dict[str, Any]:
    """Finish an interrupted run; the result is bit-identical to an uninterrupted one on the same machine.

    Other versions of the code than the run was begun with are told on standard error, in one line.

    Args:
        path: the run folder.
        policy: the policy object, if the run was started with one.
        prefix: put before the title that is shown.
        log: where a copy of every round's values goes, too.
        make: makes what runs of the configuration and the policy; None for `build`.

    Raises:
        AirtuneError: no run folder, damaged, or its model, data or policy have changed.
    """
    with RunFolder.open(path, write=True) as folder:
        if (changes := changed_code(folder)) is not None:
            print(f"airtune: warning: {changes}", file=sys.stderr)
        finished = folder.read_summary()
        if finished is not None:
            return finished
        clock = _clock(elapsed_s(folder.read_timings()))
        config = dataclasses.replace(load(folder.read_config(), str(path / "config.toml")), out=path)
        same_policy(folder, policy)
        use_threads(config.threads, config.workers)
        experiment = (make or build)(config, policy)
        same_surroundings(folder, environment(experiment, policy))
        checkpoint = folder.load_checkpoint()
        if checkpoint is not None and checkpoint[1].get("config") != _digest(config):
            raise AirtuneError(f"run folder {path}: config.toml was changed since the run began; undo it or run anew")
        state = experiment.start if checkpoint is None else from_checkpoint(*checkpoint)
        folder.truncate_to(state.t)
        with Watched(log, folder, config.name, first=state.t + 1) as watched:
            return _drive(experiment, folder, state, prefix, clock, watched)


def run_or_resume(
    config: RunConfig, prefix: str = "", log: RunLog | None = None, make: Make | None = None
) -> dict[str, Any]:
    """Start the run, or finish it if its folder already holds the same one."""
    path = out_of(config)
    if not (path / "run.json").exists():
        return run(config, prefix=prefix, log=log, make=make)
    theirs = load(RunFolder.open(path).read_config(), str(path / "config.toml"))
    if _comparable(placed(theirs)) != _comparable(placed(config)):
        raise AirtuneError(f"run folder {path} holds a run of another configuration; choose another --out")
    return resume(path, prefix=prefix, log=log, make=make)


def _comparable(config: RunConfig) -> dict[str, Any]:
    return dump(dataclasses.replace(config, threads=None, workers=1, out=None))


def placed(config: RunConfig) -> RunConfig:
    """The configuration with absolute paths, so that a run can be resumed from anywhere."""
    data_dir, file, model = config.data_dir, config.policy.file, Path(config.model.name).expanduser()
    trace = config.trace.file
    adapter = config.model.adapter
    name = str(model.absolute()) if config.model.name not in MODELS and model.is_dir() else config.model.name
    return dataclasses.replace(
        config,
        data_dir=data_dir and data_dir.expanduser().absolute(),
        model=dataclasses.replace(config.model, name=name, adapter=adapter and adapter.expanduser().absolute()),
        policy=dataclasses.replace(config.policy, file=file and file.expanduser().absolute()),
        trace=dataclasses.replace(config.trace, file=trace and trace.expanduser().absolute()),
    )


def out_of(config: RunConfig) -> Path:
    """The run's folder: `out`, or runs/NAME-POLICY-sSEED."""
    return config.out or Path("runs") / f"{config.name}-{label_of(config.policy)}-s{config.seed}"


def _clock(spent_s: float) -> Callable[[], float]:
    """Seconds spent on the run so far: by processes before this one, and since this call."""
    began = time.perf_counter()
    return lambda: spent_s + time.perf_counter() - began


def _drive(
    experiment: Experiment, folder: RunFolder, start: State, prefix: str, clock: Callable[[], float], watched: Watched
) -> dict[str, Any]:
    """The caller's loop: step, evaluate, write, show."""
    config = experiment.config
    budget_j = config.rounds * float(experiment.system.cell.devices.budget_j.sum())
    title = f"{prefix}{config.task.name} · {label_of(config.policy)} · seed {config.seed}"
    metric = experiment.learner.engine.objective.metric
    with RunDisplay(title, rounds=config.rounds, budget_j=budget_j, metric=metric) as display:
        for fact in (*experiment.learner.facts, *experiment.facts):
            display.message(f"  {fact}")
        state, judge, began = start, Judge(experiment), time.perf_counter()
        for state, record in rounds(experiment.system, start):
            stepped = time.perf_counter()
            judgement = judge.judge(state, experiment.subset) if _due(config, state) else None
            ended = time.perf_counter()
            row = _round_row(experiment, state, record, judgement)
            timing = {
                "t": record.problem.t,
                "observe_s": record.observe_s,
                "decide_s": record.decide_s,
                "execute_s": stepped - began - record.observe_s - record.decide_s,
                "evaluate_s": ended - stepped,
                "wall_s": ended - began,
                "elapsed_s": clock(),
            }
            folder.append_round(row, _device_rows(experiment, state, record), timing)
            folder.save_checkpoint(*to_checkpoint(state, _digest(config)))
            display.update(row)
            watched.row(row)
            began = time.perf_counter()
    summary = _finish(experiment, folder, state, judge, budget_j, clock)
    watched.summary(summary)
    return summary


def _due(config: RunConfig, state: State) -> bool:
    """Whether a state is evaluated on the dev subset: every `eval_every` rounds, and after the last one."""
    return state.t % config.task.eval_every == 0 or state.t >= config.rounds


def _finish(
    experiment: Experiment, folder: RunFolder, state: State, judge: Judge, budget_j: float, clock: Callable[[], float]
) -> dict[str, Any]:
    """Evaluate on the whole dev set, export the adapter, write the summary."""
    config, learner = experiment.config, experiment.learner
    judgement, metric = judge.judge(state, np.arange(len(learner.dev))), learner.engine.objective.metric
    family, names = learner.engine.family, learner.data.label_names
    card = card_of(folder, "peft", state.t, names, Judged(judgement.score, len(learner.dev), metric))
    export_peft(folder.adapter_path, state.server.average, family, learner.source, names, card)
    rows = folder.read_rounds()
    summary = dict(
        summarise(
            rows,
            task=config.task.name,
            model=config.model.name,
            policy=label_of(config.policy),
            seed=config.seed,
            budget_j=budget_j,
            wall_s=clock(),
        )
    )
    summary |= {"accuracy": judgement.score, "accuracy_samples": len(learner.dev), "bound_kind": "estimated"}
    summary |= {"metric": metric, "measures": dict(judgement.measures)}
    folder.write_summary(summary)
    return summary


def _round_row(experiment: Experiment, state: State, record: Record, judgement: Judgement | None) -> dict[str, Any]:
    cell, outcome, memory = experiment.system.cell, record.outcome, state.memory
    counts = np.bincount(record.decision.module, minlength=len(cell.modules) + 1)
    return {
        "t": record.problem.t,
        "scheduled": int(outcome.scheduled.sum()),
        "delivered": int(outcome.delivered.sum()),
        "energy_compute_j": float(outcome.compute_j.sum()),
        "energy_transmit_j": float(outcome.transmit_j.sum()),
        "tokens": float(outcome.tokens.sum()),
        "uplink_bit": float(counts[1:] @ record.offer.payload_bit),
        "downlink_bit": float(counts[1:] @ record.offer.downlink_bit),
        "loss": record.loss,
        "accuracy": None if judgement is None else judgement.score,
        "measures": None if judgement is None else dict(judgement.measures),
        "objective": record.decision.objective,
        "upper_bound": record.decision.upper_bound,
        "certificate": record.decision.certificate,
        "price": record.decision.price,
        "status": record.decision.status,
        "phi": record.phi,
        "phi_tight": record.phi_tight,
        "bound": memory.bound,
        "bound_tight": memory.bound_tight,
        "bound_kind": "estimated",
        "queue_mean_j": float(memory.queue_j.mean()),
        "queue_max_j": float(memory.queue_j.max()),
        "spent_j": float(memory.spent_j.sum()),
        "max_overspend_ratio": float((memory.spent_j / (state.t * cell.devices.budget_j)).max()),
        "modules": [int(count) for count in counts],
        "delta": delta_of(memory.estimates, cell.prior),
        "noise_sq": noise_of(memory.estimates, cell.prior).sum(),
    } | spent(experiment.config.privacy, state.server)


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
        "gamma_sq": gamma_sq_of(state.memory.estimates, experiment.system.cell.prior),
    }
    drawn = record.observation.candidates
    for device in range(len(devices.kind)) if drawn is None else map(int, np.flatnonzero(drawn)):
        row: dict[str, Any] = {"t": record.problem.t, "device": device, "kind": devices.kind[device]}
        row |= {name: column[device].item() for name, column in columns.items()}
        yield row if outcome.notes is None else row | dataclasses.asdict(outcome.notes.get(device, NOTHING))


def _digest(config: RunConfig) -> str:
    """SHA-256 of the configuration, wherever run, data, model, adapter and trace lie (the files are checked apart)."""
    model = dataclasses.replace(config.model, name="-", adapter=config.model.adapter and Path("-"))
    trace = dataclasses.replace(config.trace, file=config.trace.file and Path("-"))
    placeless = dataclasses.replace(config, data_dir=None, model=model, trace=trace)
    return hashlib.sha256(json.dumps(_comparable(placeless), sort_keys=True).encode()).hexdigest()


def export(path: Path, out: Path, *, merged: bool = False) -> str:
    """Write a run's adapter (of its last finished round, if it has not ended) to a folder; returns one line.

    Args:
        path: the run folder.
        out: folder to write.
        merged: write a plain Transformers model with the adapter merged into it, instead of a PEFT folder.

    Raises:
        AirtuneError: no run folder, no finished round, model or data missing, or `out` holds something else.
    """
    folder = RunFolder.open(path)
    config = load(folder.read_config(), str(path))
    checkpoint = folder.load_checkpoint()
    if checkpoint is None:
        raise AirtuneError(f"run folder {path} has no finished round to export")
    state, summary = from_checkpoint(*checkpoint), folder.read_summary()
    learner = learner_of(config)
    names = learner.data.label_names
    judged = (
        Judged(summary["accuracy"], summary["accuracy_samples"], learner.engine.objective.metric) if summary else None
    )
    card = card_of(folder, "merged" if merged else "peft", state.t, names, judged)
    write = export_merged if merged else export_peft
    write(out, state.server.average, learner.engine.family, learner.source, names, card)
    told = (
        f"dev {learner.engine.objective.metric} {summary['accuracy']:.4f}"
        if summary
        else f"unfinished run, after round {state.t}"
    )
    what = "merged into" if merged else "over"
    return f"{out}: {'model with the adapter' if merged else 'PEFT adapter'} {what} {learner.source.name} ({told})"
