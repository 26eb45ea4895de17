"""Labelled texts, and the film-review snippets of Rotten Tomatoes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from airtune.types import AirtuneError, freeze


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Labelled texts or pairs of texts, n of them."""

    text: tuple[str, ...]
    text_pair: tuple[str, ...] | None
    """Second text of each pair; None where the task has single texts."""
    label: NDArray[Any]
    """Class 0…C−1, int64, or score, float32; shape [n]."""
    group: NDArray[np.int64] | None = None
    """Natural group (film) of each example, shape [n]; None where the task has none."""

    def __post_init__(self) -> None:
        for part in (self.text_pair, self.label, self.group):
            if part is not None and len(part) != len(self.text):
                raise ValueError(f"{len(self.text)} texts, but {len(part)} second texts, labels or groups")
        freeze(self)

    def __len__(self) -> int:
        return len(self.text)

    def take(self, index: NDArray[np.int64]) -> "Examples":
        """The examples at the given indices, in that order."""
        return Examples(
            text=tuple(self.text[i] for i in index),
            text_pair=None if self.text_pair is None else tuple(self.text_pair[i] for i in index),
            label=self.label[index],
            group=None if self.group is None else self.group[index],
        )


def content_sha256(examples: Examples) -> str:
    """SHA-256 of texts and labels, for data that came without files of its own."""
    digest = hashlib.sha256()
    second = examples.text_pair or ("",) * len(examples)
    for text, pair, label in zip(examples.text, second, examples.label, strict=True):
        digest.update(f"{text}\t{pair}\t{label}\n".encode())
    return digest.hexdigest()


SNIPPET_LABELS: Final = ("rotten", "fresh")
"""Class names of the Rotten Tomatoes snippets."""

DEV_SHARE: Final = 0.15
"""Share of the films whose snippets are the dev split."""

SAME_FILM: Final = MappingProxyType({"the_crime_of_padre_amaro": "el_crimen_del_padre_amaro"})
"""Films that the corpus lists under two names with the same snippets."""


def in_dev(film: str) -> bool:
    """Whether a film's snippets are in the dev split: a hash of its name alone decides, so the split never changes.

    >>> in_dev("spirited_away"), in_dev("talk_to_her")
    (False, True)
    """
    return int.from_bytes(hashlib.sha256(film.encode()).digest()[:8], "big") < DEV_SHARE * 2**64


def rotten_tomatoes(path: Path) -> tuple[Examples, Examples]:
    """Train and dev split of the snippets: rotten (0) or fresh (1), grouped by film, in file order.

    Plot summaries are dropped, a text that was there before is dropped (so none is in both splits), and each film is
    wholly in one split. Films are numbered by name over both splits.

    Args:
        path: CSV file, possibly .bz2, with columns category, text and movie_name.

    Raises:
        AirtuneError: the file is not such a table.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, EOFError) as error:
        raise AirtuneError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if lacking := [c for c in ("category", "text", "movie_name") if c not in table.columns]:
        raise AirtuneError(f"{path}: line 1: the header lacks {', '.join(lacking)}")
    table = table.loc[table["category"] != "plot"].drop_duplicates(subset=["text"])
    if strange := sorted(set(table["category"]) - set(SNIPPET_LABELS)):
        raise AirtuneError(f"{path}: unknown category {strange[0]!r}; fresh, rotten or plot would be right")
    films = [SAME_FILM.get(name, name) for name in table["movie_name"]]
    number = {name: i for i, name in enumerate(sorted(set(films)))}
    every = Examples(
        text=tuple(table["text"]),
        text_pair=None,
        label=(table["category"] == "fresh").to_numpy(dtype=np.int64),
        group=np.array([number[name] for name in films], dtype=np.int64),
    )
    dev = np.array([in_dev(name) for name in films], dtype=np.bool_)
    if dev.all() or not dev.any():
        raise AirtuneError(
            f"{path}: {len(films)} snippets of {len(number)} films leave one split empty; more are needed"
        )
    return every.take(np.flatnonzero(~dev)), every.take(np.flatnonzero(dev))
