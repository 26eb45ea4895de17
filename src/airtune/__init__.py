"""Federated fine-tuning of foundation models with switchable LoRA modules over wireless networks.

A run is described by a `RunConfig`, carried out by `run` and finished after an interruption by `resume`. A policy is
any function from a round's `Problem` to a `Decision`; `make_decision` fills in what follows from module, power and
bandwidth. `solve` decides a single round of somebody else's simulator.

>>> config = RunConfig(rounds=2, seed=1)
>>> config.rounds, config.task.name
(2, 'rotten-tomatoes')
>>> RunConfig(rounds=0)  # doctest: +ELLIPSIS
Traceback (most recent call last):
...
pydantic_core._pydantic_core.ValidationError: 1 validation error for RunConfig
...

Importing the package is quick; torch is loaded when `run` or `resume` is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airtune.config import RunConfig
from airtune.types import AirtuneError, Decision, Modules, Observation, Policy, Problem

if TYPE_CHECKING:
    from airtune.control.evaluation import make_decision
    from airtune.experiment import resume, run
    from airtune.settings import read_config
    from airtune.solving import Solution, solve

__all__ = [
    "AirtuneError",
    "Decision",
    "Modules",
    "Observation",
    "Policy",
    "Problem",
    "RunConfig",
    "Solution",
    "make_decision",
    "read_config",
    "resume",
    "run",
    "solve",
]

_LATER = {
    "Solution": "airtune.solving",
    "make_decision": "airtune.control.evaluation",
    "read_config": "airtune.settings",
    "resume": "airtune.experiment",
    "run": "airtune.experiment",
    "solve": "airtune.solving",
}


def __getattr__(name: str) -> Any:
    """Names whose modules load more than an `import airtune` should."""
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'airtune' has no attribute {name!r}")
