"""How good the model of a state is on dev samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.build import Experiment
from airtune.learning.lora import Adapters, same_tensors
from airtune.round import State
from airtune.types import AirtuneError


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What a model is worth on some samples."""

    score: float
    """The objective's metric, greater is better."""
    measures: Mapping[str, float]
    """Further measures by name."""


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """The last judgement, and what it is of."""

    models: tuple[Adapters, ...]
    index: NDArray[np.int64]
    judgement: Judgement

    def covers(self, models: tuple[Adapters, ...], index: NDArray[np.int64]) -> bool:
        """Whether models and samples are the same, tensor for tensor."""
        return (
            len(models) == len(self.models)
            and np.array_equal(index, self.index)
            and all(map(same_tensors, models, self.models))
        )


class Judge:
    """Scores a run's states on dev samples, and not once more while neither model nor samples change."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._last: _Judged | None = None

    def judge(self, state: State, index: NDArray[np.int64]) -> Judgement:
        """The running average of a state on the dev samples `index`.

        Where devices have models of their own, each sample is judged by one of them, in turn.

        Raises:
            AirtuneError: a score is not finite.
        """
        models = self._experiment.system.method.models(dict(state.server.average), state.server)
        if self._last is None or not self._last.covers(models, index):
            self._last = _Judged(models, index, self._judged(models, index))
        return self._last.judgement

    def _judged(self, models: tuple[Adapters, ...], index: NDArray[np.int64]) -> Judgement:
        engine, dev = self._experiment.learner.engine, self._experiment.learner.dev
        scores = self._scores(models, index)
        if not np.isfinite(scores).all():
            raise AirtuneError(
                "training diverged: the model's scores are not finite; lower learning.rate (now "
                f"{engine.config.rate:g}) or learning.server_rate (now {engine.config.server_rate:g})"
            )
        objective = engine.objective
        return Judgement(objective.judge(scores, dev, index), objective.beside(scores, dev, index))

    def _scores(self, models: tuple[Adapters, ...], index: NDArray[np.int64]) -> NDArray[np.float32]:
        """What is judged of the samples, sample i from model i mod their number."""
        engine, dev = self._experiment.learner.engine, self._experiment.learner.dev
        turn = np.arange(len(index)) % len(models)
        parts = [engine.logits(model, dev, index[turn == j]) for j, model in enumerate(models[: len(index)])]
        scores = np.empty((len(index), parts[0].shape[1]), dtype=np.float32)
        for j, part in enumerate(parts):
            scores[turn == j] = part
        return scores
