"""Classical schedulers: traditional federated fine-tuning with a fixed number of devices a round, in some order."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from airtune.control.baselines import equal_share, fixed_module, who_can_pay
from airtune.rng import Stream, generator
from airtune.types import BoolK, Decision, FloatK, Problem

Order = Literal["random", "round-robin", "best-channel"]


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledPolicy:
    """Traditional, but for N devices a round: one fixed module, full power, the band shared equally among them.

    - random: N of those who can pay, every such set as likely.
    - round-robin: devices take turns in order of their number, N a round; who cannot pay in its turn misses it.
    - best-channel: the N greatest gains of those who can pay.

    Source: random selection is that of FedAvg (McMahan et al., 2017); random and round-robin over wireless links are
    those of Yang, Liu, Quek and Poor (IEEE Trans. Commun. 68(1), 2020), best-channel is the baseline by channel alone
    of Amiri, Gündüz, Kulkarni and Poor (IEEE Trans. Wireless Commun. 20(6), 2021).
    """

    order: Order
    count: int
    """N ≥ 1, devices a round at most."""
    module: int | None
    """The module every device trains; None for the largest."""
    phase: FloatK
    """As in `TraditionalPolicy`."""
    seed: int
    """Of the random order."""

    def __call__(self, problem: Problem) -> Decision:
        """Decide a round: the N devices whose turn it is, as far as their energy accounts allow."""
        devices = len(problem.gain)
        module = np.full(devices, fixed_module(problem, self.module))
        able, power = who_can_pay(problem, module, self.phase)
        return equal_share(problem, module, power, able & self._turn(problem, able))

    def _turn(self, problem: Problem, able: BoolK) -> BoolK:
        """Whose turn it is, shape K."""
        devices = len(able)
        match self.order:
            case "random":
                order = generator(self.seed, Stream.SCHEDULE, problem.t).permutation(devices)
                order = order[able[order]]
            case "round-robin":
                order = (problem.t * self.count + np.arange(min(self.count, devices))) % devices
            case "best-channel":
                order = np.argsort(-problem.gain, kind="stable")
                order = order[able[order]]
        turn = np.zeros(devices, np.bool_)
        turn[order[: self.count]] = True
        return turn
