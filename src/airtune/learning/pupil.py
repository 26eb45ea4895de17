"""One device's local training as a value: what is handed to an engine, to another process, or to a stack of devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine, Rates, Trained


@dataclass(frozen=True, slots=True, eq=False)
class Pupil:
    """The arguments of `Engine.train` but for the samples."""

    start: Mapping[str, Tensor]
    batches: Sequence[NDArray[np.int64]]
    rates: Rates
    prior: Tensor | None = None
    rest: Mapping[str, Tensor] | None = None
    fixed: Mapping[str, Tensor] | None = None
    pruning: int | None = None
    measure: bool = False

    def train(self, engine: Engine, tokens: TokenSet) -> Trained:
        """Train on the samples `tokens`; raises what `Engine.train` does."""
        return engine.train(
            self.start,
            tokens,
            self.batches,
            self.rates,
            self.prior,
            self.rest,
            fixed=self.fixed,
            pruning=self.pruning,
            measure=self.measure,
        )
