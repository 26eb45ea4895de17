"""GLUE's measures of agreement beside accuracy: Matthews, F1, Pearson, Spearman."""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def matthews(predicted: NDArray[np.int64], label: NDArray[np.int64]) -> float:
    """Matthews correlation of two labellings with classes 0…C−1; 0 where one of them is constant.

    It is Pearson's correlation of the indicator vectors, summed over classes (Gorodkin 2004).
    """
    classes = int(max(predicted.max(), label.max())) + 1
    x, y = np.eye(classes)[predicted], np.eye(classes)[label]
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / scale) if scale > 0.0 else 0.0


def f1(predicted: NDArray[np.int64], label: NDArray[np.int64]) -> float:
    """F1 = 2TP / (2TP + FP + FN) of class 1; 0 where class 1 neither occurs nor is predicted."""
    hit = int(((predicted == 1) & (label == 1)).sum())
    total = int((predicted == 1).sum() + (label == 1).sum())
    return 2.0 * hit / total if total else 0.0


def pearson(predicted: NDArray[np.floating], label: NDArray[np.floating]) -> float:
    """Pearson's correlation; 0 where either side is constant or there is one sample."""
    return float(cast(Any, stats.pearsonr(predicted, label))[0]) if _vary(predicted, label) else 0.0


def spearman(predicted: NDArray[np.floating], label: NDArray[np.floating]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either side is constant or there is one sample."""
    return float(cast(Any, stats.spearmanr(predicted, label))[0]) if _vary(predicted, label) else 0.0


def _vary(*sides: NDArray[np.floating]) -> bool:
    return all(float(np.ptp(side)) > 0.0 for side in sides)
