"""What a run ran on, and whether it is still the same when the run is resumed."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from airtune.build import Experiment
from airtune.config import RunConfig
from airtune.record import RunFolder
from airtune.settings import label_of
from airtune.types import AirtuneError, Policy

PACKAGES = ("airtune", "torch", "transformers", "peft", "numpy", "scipy", "numba", "safetensors")
SIONNA = "sionna-no-rt"
"""Named where its channels are used."""
CODE = ("airtune", "torch", "transformers", "numpy")
"""Packages whose change a resumed run warns about."""


def environment(experiment: Experiment, policy: Policy | None = None) -> dict[str, Any]:
    """What a run ran on: versions, commit, machine, and the digests of model, adapter, data and policy file."""
    learner, adapter, config = experiment.learner, experiment.adapter, experiment.config
    packages = (*PACKAGES, SIONNA) if config.world.kind == "sionna" else PACKAGES
    started = None if adapter is None else _used(str(adapter.path), adapter.description, dict(adapter.sha256))
    return (
        {
            "versions": {name: _version(name) for name in packages},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "commit": _commit(),
            "threads": torch.get_num_threads(),
            "device": learner.engine.device_name,
            "model": _used(str(learner.source.path), learner.source.description, dict(learner.source.files)),
            "data": _used(learner.data.source, learner.data.description, dict(learner.data.sha256)),
            "policy": _policy_used(config, policy) | {"label": label_of(config.policy)},
        }
        | ({} if started is None else {"adapter": started})
        | _trace_used(config)
    )


def _trace_used(config: RunConfig) -> dict[str, object]:
    file = config.trace.file
    if file is None:
        return {}
    return {"trace": _used(str(file), f"trace {file}", hashlib.sha256(file.read_bytes()).hexdigest())}


def _used(source: str, description: str, sha256: object) -> dict[str, object]:
    return {"source": source, "description": description, "sha256": sha256}


def _policy_used(config: RunConfig, policy: Policy | None) -> dict[str, object]:
    file = config.policy.file
    if policy is not None:
        return _used("object", f"policy object {type(policy).__name__}", None)
    if file is None:
        return _used("name", f"policy {config.policy.name}", None)
    return _used("file", f"policy file {file}", hashlib.sha256(file.read_bytes()).hexdigest())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _commit() -> str | None:
    """Git commit of airtune's own source, "-dirty" if it differs from that; None if git does not track this file."""
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None or (head := _git("rev-parse", "HEAD")) is None:
        return None
    return f"{head}-dirty" if _git("status", "--porcelain", "--", ".") else head


def _git(*arguments: str) -> str | None:
    """What git says in this file's folder; None if it fails or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def changed_code(folder: RunFolder) -> str | None:
    """One line that names what has changed of the code since the run began; None if nothing has."""
    then = folder.read_environment()
    began = then.get("versions", {})
    versions = [(name, began.get(name), _version(name)) for name in (*CODE, *({SIONNA} & began.keys()))]
    pairs = [*versions, ("commit", _short(then.get("commit")), _short(_commit()))]
    changes = [f"{name} {old or 'unknown'} → {new or 'unknown'}" for name, old, new in pairs if old != new]
    if not changes:
        return None
    return f"run folder {folder.path} was begun by other code, so it may differ from a new run: {', '.join(changes)}"


def _short(commit: str | None) -> str | None:
    """A commit in twelve digits, and whether it is dirty."""
    return commit and commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def same_policy(folder: RunFolder, policy: Policy | None) -> None:
    """Refuse to go on with a policy object where there was none, or without the one there was."""
    began_with = folder.read_environment().get("policy", {})
    if (began_with.get("source") == "object") != (policy is not None):
        raise AirtuneError(
            f"run folder {folder.path} was begun with the {began_with.get('description')}; "
            + ("resume it without one" if policy is not None else "resume it from Python with resume(path, policy)")
        )


def same_surroundings(folder: RunFolder, now: dict[str, Any]) -> None:
    """Refuse to resume on other data, another model, adapter, policy or trace file than the run began with."""
    then = folder.read_environment()
    for part in ("model", "adapter", "data", "policy", "trace"):
        if then.get(part, {}).get("sha256") != now.get(part, {}).get("sha256"):
            raise AirtuneError(
                f"run folder {folder.path}: the {part} has changed since the run began "
                f"({now.get(part, {}).get('description', 'none')}); restore it or start a new run"
            )
