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
from airtune.types import AirtuneError, Policy

PACKAGES = ("airtune", "torch", "transformers", "peft", "numpy", "scipy", "safetensors")


def environment(experiment: Experiment, policy: Policy | None = None) -> dict[str, Any]:
    """What a run ran on: versions, commit, machine, and the digests of model, data and policy file."""
    learner = experiment.learner
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "threads": torch.get_num_threads(),
        "model": _used(str(learner.source.path), learner.source.description, dict(learner.source.files)),
        "data": _used(learner.data.source, learner.data.description, dict(learner.data.sha256)),
        "policy": _policy_used(experiment.config, policy),
    }


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
    """Git commit of airtune's own source, if it runs from a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def same_policy(folder: RunFolder, policy: Policy | None) -> None:
    """Refuse to go on with a policy object where there was none, or without the one there was."""
    began_with = folder.read_environment().get("policy", {})
    if (began_with.get("source") == "object") != (policy is not None):
        raise AirtuneError(
            f"run folder {folder.path} was begun with the {began_with.get('description')}; "
            + ("resume it without one" if policy is not None else "resume it from Python with resume(path, policy)")
        )


def same_surroundings(folder: RunFolder, now: dict[str, Any]) -> None:
    """Refuse to resume on other data, another model or another policy file than the run began with."""
    then = folder.read_environment()
    for part in ("model", "data", "policy"):
        if then.get(part, {}).get("sha256") != now[part]["sha256"]:
            raise AirtuneError(
                f"run folder {folder.path}: the {part} has changed since the run began "
                f"({now[part]['description']}); restore it or start a new run"
            )
