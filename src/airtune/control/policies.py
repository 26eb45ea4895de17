"""The policy a configuration asks for; docs/policies.md has a line on each."""

from collections.abc import Callable, Sequence

import numpy as np

from airtune.config import PolicyConfig
from airtune.control.alternating import AlternatingPolicy
from airtune.control.baselines import CapabilityPolicy, TraditionalPolicy, UnlimitedPolicy, load_policy
from airtune.control.digest import DigestPolicy
from airtune.control.foresight import oracle_policy
from airtune.control.joint import JointPolicy
from airtune.control.restricted import EqualBandPolicy, FixedModulePolicy, FullPowerPolicy, MyopicPolicy
from airtune.control.scheduling import ScheduledPolicy
from airtune.rng import Stream, generator
from airtune.types import AirtuneError, Devices, FloatK, Policy, Problem


def policy_of(
    config: PolicyConfig,
    devices: Devices,
    modules: int,
    seed: int,
    problems: Callable[[], Sequence[Problem]] = tuple,
) -> Policy:
    """The policy a configuration asks for.

    Args:
        config: name and dials.
        devices: the fleet.
        modules: M.
        seed: the run's seed; phases and random schedules are drawn from it.
        problems: poses all rounds for devices that have spent nothing; the oracle alone asks for it.

    Raises:
        AirtuneError: a policy file that cannot be used.
    """
    match config.name:
        case "joint":
            return JointPolicy()
        case "alternating":
            return AlternatingPolicy()
        case "traditional":
            return TraditionalPolicy(config.module, _phase(devices, seed))
        case "capability":
            speed = devices.frequency_hz * devices.flop_per_cycle
            place = np.argsort(np.argsort(speed, kind="stable"), kind="stable")
            return CapabilityPolicy(1 + place * modules // len(speed), _phase(devices, seed))
        case "random" | "round-robin" | "best-channel" as order:
            count = config.scheduled or -(-len(devices.kind) // 4)
            return ScheduledPolicy(order, count, config.module, _phase(devices, seed), seed)
        case "myopic":
            return MyopicPolicy()
        case "no-switching":
            return FixedModulePolicy(config.module)
        case "no-power-control":
            return FullPowerPolicy()
        case "no-bandwidth-allocation":
            return EqualBandPolicy()
        case "oracle":
            return oracle_policy(problems())
        case "unlimited":
            return UnlimitedPolicy(config.module)
        case "digest":
            return DigestPolicy()
        case "file":
            if config.file is None:
                raise AirtuneError("policy.file must be given when policy.name is 'file'")
            return load_policy(config.file)


def _phase(devices: Devices, seed: int) -> FloatK:
    return generator(seed, Stream.BASELINE).random(len(devices.kind))
