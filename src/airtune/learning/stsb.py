"""STS-B, pairs of sentences with a similarity of 0 to 5: GLUE's files, the Hub, or the wheel on PyPI."""

import math
from pathlib import Path
from typing import Final

import numpy as np

from airtune.learning.corpora import Examples
from airtune.learning.glue import GlueTask, line_of, lines_of
from airtune.types import AirtuneError

STSB: Final = GlueTask(
    "STS-B",
    ("sentence1", "sentence2", "score"),
    ("sentence1", "sentence2"),
    "score",
    (),
    label_names=("similarity",),
    hub_rows=(5_749, 1_500),
)
"""How STS-B is written in GLUE."""
HIGHEST: Final = 5.0
"""Greatest similarity."""
_WHEEL_COLUMNS: Final = (7, 9)


def read_scores(path: Path, *, header: bool) -> Examples:
    """One file of pairs and scores, in file order; quotes have no meaning.

    Args:
        path: GLUE's file (columns by name), or one of the wheel's.
        header: whether it is GLUE's; the wheel's has no header, the score in column 5 and the texts in 6 and 7, some
            rows with two more.

    Raises:
        AirtuneError: naming file, line and what would be right.
    """
    lines, ended = lines_of(path)
    columns = lines[0].split("\t") if header else []
    if header and (lacking := [c for c in STSB.columns if c not in columns]):
        raise AirtuneError(
            f"{path}: line 1: the header lacks {', '.join(lacking)}; STS-B has tab-separated columns with "
            f"{', '.join(STSB.columns)}"
        )
    right = (len(columns),) if header else _WHEEL_COLUMNS
    first, second, score = (columns.index(c) for c in STSB.columns) if header else (5, 6, 4)
    if header and not ended and score != len(columns) - 1:
        raise AirtuneError(
            f"{path}: line {len(lines)}: the file ends inside a text without a line break; fetch it again"
        )
    texts: list[tuple[str, str]] = []
    scores: list[float] = []
    for number, line in enumerate(lines[1:] if header else lines, 2 if header else 1):
        fields = line.split("\t")
        where = f"{path}: {line_of(number, number == len(lines) and not ended)}"
        if len(fields) not in right:
            raise AirtuneError(
                f"{where}: {len(fields)} tab-separated columns; {' or '.join(map(str, right))} would be right"
            )
        scores.append(_score(fields[score], where))
        texts.append((fields[first], fields[second]))
    if not texts:
        raise AirtuneError(f"{path}: no samples; STS-B has one per line after the header")
    left, other = zip(*texts, strict=True)
    return Examples(left, other, np.array(scores, dtype=np.float32))


def _score(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= HIGHEST:
        raise AirtuneError(f"{where}: score {text[:40]!r}; a number from 0 to {HIGHEST:g} would be right")
    return value
