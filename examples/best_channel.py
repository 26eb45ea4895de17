"""Best-channel scheduling: the n best gains share the band equally, at full power, with the smallest module.

Run it with policy.name = "file" and policy.file = "examples/best_channel.py".
"""

import numpy as np

from airtune.control.evaluation import make_decision
from airtune.types import Decision, Problem

SCHEDULED = 5


def policy(problem: Problem) -> Decision:
    """Schedule the best channels."""
    able = problem.feasible[:, 0] & (problem.power_max_w[:, 0] > 0)
    best = np.argsort(np.where(able, -problem.gain, np.inf))[: min(SCHEDULED, int(able.sum()))]
    module = np.zeros(len(problem.gain), np.int64)
    module[best] = 1
    share = np.full(len(module), problem.bandwidth_hz / max(len(best), 1))
    return make_decision(problem, module, problem.power_max_w[:, 0], share)
