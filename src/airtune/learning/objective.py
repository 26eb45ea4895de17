"""What is minimised and how predictions are judged: classes, a score, or the next token of a response."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from airtune.learning.data import TokenSet
from airtune.learning.metrics import f1, matthews, pearson, spearman

Kind: TypeAlias = Literal["classification", "regression", "language"]
"""What a task asks for."""
Scores: TypeAlias = NDArray[np.float32]
"""What is kept of the model's output for each sample, [n × c]."""


class Objective(Protocol):
    """Loss and judgement of one kind of task."""

    @property
    def kind(self) -> Kind:
        """What the task asks for."""
        ...

    @property
    def metric(self) -> str:
        """Name of the judged score."""
        ...

    def size(self, tokens: TokenSet, index: NDArray[np.int64]) -> int:
        """Number of terms whose mean is the loss of the samples `index`."""
        ...

    def loss(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64], prior: Tensor | None) -> Tensor:
        """Mean loss of the samples `index`, from the model's float32 output for them."""
        ...

    def read(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """What is kept of the output for judging, [n × c]."""
        ...

    def judge(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> float:
        """The metric, greater is better."""
        ...

    def beside(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> Mapping[str, float]:
        """Further measures by name."""
        ...


@dataclass(frozen=True, slots=True)
class Classification:
    """Cross-entropy of classes; judged by accuracy."""

    kind: Kind = "classification"
    metric: str = "accuracy"

    def size(self, tokens: TokenSet, index: NDArray[np.int64]) -> int:
        """Samples."""
        return len(index)

    def loss(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64], prior: Tensor | None) -> Tensor:
        """Mean cross-entropy of logits [n × C], the prior's log frequencies added to them."""
        label = torch.from_numpy(tokens.label[index]).to(output.device)
        return functional.cross_entropy(output if prior is None else output + prior.to(output.device), label)

    def read(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """The logits."""
        return output

    def judge(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> float:
        """Share of the samples classified correctly."""
        return float((scores.argmax(axis=1) == tokens.label[index]).mean())

    def beside(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> Mapping[str, float]:
        """Matthews correlation; with two classes also F1 of class 1."""
        predicted, label = scores.argmax(axis=1), tokens.label[index]
        found = {"matthews": matthews(predicted, label)}
        return found | {"f1": f1(predicted, label)} if scores.shape[1] == 2 else found


@dataclass(frozen=True, slots=True)
class Regression:
    """Mean squared error of a score; judged by Pearson's correlation."""

    kind: Kind = "regression"
    metric: str = "pearson"

    def size(self, tokens: TokenSet, index: NDArray[np.int64]) -> int:
        """Samples."""
        return len(index)

    def loss(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64], prior: Tensor | None) -> Tensor:
        """Mean squared error of the output [n × 1]; `prior` has no meaning here."""
        label: Any = tokens.label[index]
        return functional.mse_loss(output[:, 0], torch.from_numpy(label).to(output.device, output.dtype))

    def read(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """The predicted scores."""
        return output

    def judge(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> float:
        """Pearson's correlation."""
        return pearson(*self._sides(scores, tokens, index))

    def beside(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> Mapping[str, float]:
        """Spearman's correlation and the mean squared error."""
        predicted, label = self._sides(scores, tokens, index)
        return {"spearman": spearman(predicted, label), "loss": float(np.mean((predicted - label) ** 2))}

    def _sides(
        self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return scores[:, 0].astype(np.float64), tokens.label[index].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Language:
    """Cross-entropy of the response's tokens, each given all before it; judged by the share predicted correctly."""

    kind: Kind = "language"
    metric: str = "token_accuracy"

    def size(self, tokens: TokenSet, index: NDArray[np.int64]) -> int:
        """Response tokens."""
        return len(tokens.responses(index))

    def loss(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64], prior: Tensor | None) -> Tensor:
        """Mean cross-entropy over all response tokens of the batch, from logits [P × V]; `prior` has no meaning."""
        return functional.cross_entropy(output, self._target(output, tokens, index))

    def read(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        """Of each sample the sum of its tokens' cross-entropies and how many were predicted correctly, [n × 2]."""
        target = self._target(output, tokens, index)
        each = functional.cross_entropy(output, target, reduction="none")
        hit = (output.argmax(dim=1) == target).to(each.dtype)
        cuts = tokens.response_lengths[index].tolist()
        return torch.stack([part.sum(dim=0) for part in torch.stack([each, hit], dim=1).split(cuts)])

    def judge(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> float:
        """Share of the response tokens that are the likeliest after what stands before them."""
        return float(scores[:, 1].sum(dtype=np.float64) / self.size(tokens, index))

    def beside(self, scores: Scores, tokens: TokenSet, index: NDArray[np.int64]) -> Mapping[str, float]:
        """Mean cross-entropy of a response token, and its exponential."""
        loss = float(scores[:, 0].sum(dtype=np.float64) / self.size(tokens, index))
        return {"loss": loss, "perplexity": float(np.exp(loss))}

    def _target(self, output: Tensor, tokens: TokenSet, index: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(tokens.ids[tokens.responses(index)].astype(np.int64)).to(output.device)


def objective_of(kind: Kind) -> Objective:
    """The objective of a kind of task."""
    match kind:
        case "classification":
            return Classification()
        case "regression":
            return Regression()
        case "language":
            return Language()
