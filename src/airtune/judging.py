"""How good the model of a state is on dev samples."""

import numpy as np
from numpy.typing import NDArray

from airtune.build import Experiment, Learner
from airtune.learning.lora import Adapters
from airtune.round import State
from airtune.types import AirtuneError


def judged(experiment: Experiment, state: State, index: NDArray[np.int64]) -> tuple[float, dict[str, float]]:
    """The judged score of the running average on the dev samples `index`, and the measures beside it.

    Where devices have models of their own, each sample is judged by one of them, in turn.
    """
    learner = experiment.learner
    models = experiment.system.method.models(dict(state.server.average), state.server)
    scores = _scores(learner, models, index)
    if not np.isfinite(scores).all():
        config = learner.engine.config
        raise AirtuneError(
            f"training diverged: the model's scores are not finite; lower learning.rate (now {config.rate:g}) or "
            f"learning.server_rate (now {config.server_rate:g})"
        )
    objective = learner.engine.objective
    return objective.judge(scores, learner.dev, index), dict(objective.beside(scores, learner.dev, index))


def _scores(learner: Learner, models: tuple[Adapters, ...], index: NDArray[np.int64]) -> NDArray[np.float32]:
    """What is judged of the samples, sample i from model i mod their number."""
    turn = np.arange(len(index)) % len(models)
    parts = [
        learner.engine.logits(model, learner.dev, index[turn == j]) for j, model in enumerate(models[: len(index)])
    ]
    scores = np.empty((len(index), parts[0].shape[1]), dtype=np.float32)
    for j, part in enumerate(parts):
        scores[turn == j] = part
    return scores
