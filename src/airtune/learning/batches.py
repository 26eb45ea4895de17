"""Which of its samples a device trains on in a round, and its local training as a value; the same wherever it runs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, log_prior, rates_at
from airtune.learning.pupil import Pupil
from airtune.rng import Stream, generator
from airtune.types import Lesson


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """How devices study: a pure function of the run's seed, the round, the device and its samples.

    With `measured`, balanced batches are balanced one by one, so that their noise is that of independent draws within
    each class.
    """

    engine: Engine
    tokens: TokenSet
    seed: int
    """Of the run."""
    rounds: int
    """T, for the learning-rate schedule."""
    measured: bool = False
    """Whether devices report energy and noise of their gradient, for the online estimates."""
    classes: bool = True
    """Whether labels are classes; where not, batches are plain draws and there is no prior."""

    def batches(self, part: NDArray[np.int64], t: int, device: int) -> list[NDArray[np.int64]]:
        """Sample indices of each of the E local steps of a device in round t; no repeats while samples last.

        Args:
            part: the device's samples.
            t: round, from 0.
            device: from 0.
        """
        config = self.engine.config
        count = config.local_steps * config.batch_size
        draw = generator(self.seed, Stream.BATCHES, t, device)
        if config.balanced_batches and self.classes and len(part) >= count:
            index = balanced(draw.permutation(part), self.tokens.label, count)
            if self.measured:
                return dealt(index, self.tokens.label, config.local_steps)
            index = draw.permutation(index)
        else:
            index = draw.choice(part, size=count, replace=len(part) < count)
        return np.split(index, config.local_steps)

    def token_count(self, part: NDArray[np.int64], t: int, device: int) -> float:
        """Tokens N_k that a device processes in round t if it is scheduled."""
        return float(sum(self.tokens.lengths[index].sum() for index in self.batches(part, t, device)))

    def pupil(self, lesson: Lesson, batches: list[NDArray[np.int64]], t: int) -> Pupil:
        """The training of round t on these batches."""
        config = self.engine.config
        label = self.tokens.label[np.concatenate(batches)]
        return Pupil(
            start=lesson.start,
            batches=batches,
            rates=rates_at(config, t, self.rounds),
            prior=log_prior(label, self.engine.classes) if config.prior_correction and self.classes else None,
            rest=lesson.rest,
            fixed=lesson.fixed,
            pruning=lesson.pruning,
            measure=self.measured,
        )


def balanced(shuffled: NDArray[np.int64], label: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the shuffled samples, every class as often as every other as far as its samples last.

    >>> balanced(np.arange(6), np.array([0, 0, 0, 0, 0, 1]), 4).tolist()
    [0, 5, 1, 2]
    """
    own = label[shuffled]
    turn = np.empty(len(shuffled), dtype=np.int64)
    for kind in np.unique(own):
        turn[own == kind] = np.arange(int((own == kind).sum()))
    return shuffled[np.argsort(turn, kind="stable")[:count]]


def dealt(index: NDArray[np.int64], label: NDArray[np.int64], hands: int) -> list[NDArray[np.int64]]:
    """The samples in batches of equal size whose class counts differ by one at most, as do those of a batch's halves.

    >>> [hand.tolist() for hand in dealt(np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1]), 2)]
    [[0, 1], [2, 3]]
    """
    order = index[np.argsort(label[index], kind="stable")]
    return [order[hand::hands] for hand in range(hands)]
