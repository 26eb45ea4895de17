"""Many runs: one after the other in this process, or side by side as Ray tasks; a run that fails loses only itself."""

import logging
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from airtune.config import RunConfig
from airtune.experiment import out_of, run_or_resume
from airtune.logs.log import log_of
from airtune.types import AirtuneError

CONNECT_S = 10.0
"""How long the head of a Ray cluster may take to answer."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, well or not."""

    config: RunConfig
    summary: dict[str, Any] | None
    """`rows.Summary`; None if it failed."""
    error: str | None
    """What went wrong, in one line; None if it ended well."""
    trace: str | None = None
    """The traceback of a failure that airtune does not explain."""


def carry_out(
    configs: Sequence[RunConfig], jobs: int = 1, ray_address: str | None = None, log: str | None = None
) -> Iterator[Ended]:
    """Start, resume or read back every run, and yield each as it ends; those of one job in their order.

    Rows depend on a run's threads, not on how many runs go side by side; runs without `threads` share this machine's
    cores.

    Args:
        configs: the runs, each with a folder of its own; on a cluster one that all machines share.
        jobs: runs side by side on this machine, Ray processes if more than one.
        ray_address: a Ray cluster to use instead ("auto" for the one that this machine belongs to), with as many runs
            side by side as its cores hold.
        log: TOOL or TOOL:TARGET that gets a copy of the rows.

    Raises:
        AirtuneError: Ray is asked for and missing, or no cluster answers.
    """
    if ray_address is None and jobs == 1:
        for number, config in enumerate(configs, 1):
            yield _ended(config, f"[{number}/{len(configs)}] ", log)
        return
    cores = len(os.sched_getaffinity(0))
    given = [replace(config, threads=config.threads or max(cores // jobs, 1)) for config in configs]
    left: list[RunConfig] = []
    for config in given:
        if (out_of(config) / "summary.json").exists():
            yield _ended(config)  # read back, or refused where the folder holds another run
        else:
            left.append(config)
    if left:
        yield from _on_ray(left, jobs, ray_address, log)


def _ended(config: RunConfig, prefix: str = "", log: str | None = None) -> Ended:
    """One run in this process."""
    try:
        return Ended(config, run_or_resume(config, prefix, None if log is None else log_of(log)), None)
    except AirtuneError as error:
        return Ended(config, None, str(error))
    except Exception as error:  # whatever it is, the other runs go on
        return Ended(config, None, _line(error), traceback.format_exc())


def _on_ray(configs: Sequence[RunConfig], jobs: int, address: str | None, log: str | None) -> Iterator[Ended]:
    """Runs as Ray tasks, never tried twice."""
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError:
        raise AirtuneError("runs side by side need Ray: pip install 'airtune[ray]', or use --jobs 1") from None
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    try:
        _connect(ray, jobs, address)
        task: Any = ray.remote(max_retries=0)(_ended)
        waiting: dict[Any, RunConfig] = {}
        for config in configs:
            cores = config.threads if address else 1  # here, `jobs` of them make the whole
            waiting[task.options(num_cpus=cores).remote(config, "", log)] = config
        while waiting:
            (reference,), _ = ray.wait(list(waiting))
            config = waiting.pop(reference)
            try:
                yield ray.get(reference)
            except RayError as error:  # the process died
                yield Ended(config, None, _line(error), str(error))
    finally:
        ray.shutdown()


def _connect(ray: Any, jobs: int, address: str | None) -> None:
    """Start Ray on this machine, or join a cluster."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address is None:
        ray.init("local", num_cpus=jobs, include_dashboard=False, **quiet)
        return
    try:
        if address != "auto":  # Ray itself would try for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise AirtuneError(f"--ray-address {address}: no Ray cluster answers there ({_line(error)})") from None


def _line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
