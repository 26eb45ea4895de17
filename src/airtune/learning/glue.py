"""The GLUE tasks, from their official tab-separated files, read strictly, or from the Hugging Face Hub."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from airtune.learning.corpora import Examples
from airtune.types import AirtuneError

HUB_NAME: Final = "nyu-mll/glue"
"""GLUE on the Hugging Face Hub."""
HUB_COMMIT: Final = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
"""The commit of it that is read unless another revision is asked for."""
_COMMIT: Final = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class GlueTask:
    """How one GLUE task is written, in its official files and on the Hub."""

    folder: str
    """Official folder name."""
    columns: tuple[str, ...]
    """Columns that must be in the header; all columns, in order, where there is no header."""
    texts: tuple[str, ...]
    """Column of the text, or columns of the pair."""
    label: str
    """Column of the label."""
    classes: tuple[str, ...]
    """Labels as written in the file, in the order of the class numbers (those of the Hub's version)."""
    label_names: tuple[str, ...]
    """The same for people."""
    header: bool = True
    dev: str = "dev.tsv"
    hub_dev: str = "validation"
    hub_texts: tuple[str, ...] = field(default=())
    """Text columns on the Hub, where named otherwise."""
    hub_rows: tuple[int, int] = field(kw_only=True)
    """Train and dev samples on the Hub at `HUB_COMMIT`, the counts of GLUE's release."""
    broken_rows: int = 0
    """Most rows with a wrong number of columns that are skipped, because the official file has some."""


_BINARY: Final = ("0", "1")
_ENTAILED: Final = ("entailment", "not_entailment")
_THREE: Final = ("entailment", "neutral", "contradiction")
_PAIR: Final = ("sentence1", "sentence2")
_QUESTION: Final = ("question", "sentence")
_QUESTIONS: Final = ("question1", "question2")
_MRPC: Final = ("#1 String", "#2 String")
_COLA: Final = ("source", "label", "mark", "sentence")

GLUE: Final = MappingProxyType(
    {
        "sst2": GlueTask(
            "SST-2",
            ("sentence", "label"),
            ("sentence",),
            "label",
            _BINARY,
            label_names=("negative", "positive"),
            hub_rows=(67_349, 872),
        ),
        "cola": GlueTask(
            "CoLA",
            _COLA,
            ("sentence",),
            "label",
            _BINARY,
            ("unacceptable", "acceptable"),
            header=False,
            hub_rows=(8_551, 1_043),
        ),
        "mrpc": GlueTask(
            "MRPC",
            ("Quality", *_MRPC),
            _MRPC,
            "Quality",
            _BINARY,
            label_names=("not_equivalent", "equivalent"),
            hub_texts=_PAIR,
            hub_rows=(3_668, 408),
        ),
        "qqp": GlueTask(
            "QQP",
            (*_QUESTIONS, "is_duplicate"),
            _QUESTIONS,
            "is_duplicate",
            _BINARY,
            label_names=("not_duplicate", "duplicate"),
            broken_rows=10,
            hub_rows=(363_846, 40_430),
        ),
        "mnli": GlueTask(
            "MNLI",
            (*_PAIR, "gold_label"),
            _PAIR,
            "gold_label",
            _THREE,
            label_names=_THREE,
            dev="dev_matched.tsv",
            hub_dev="validation_matched",
            hub_texts=("premise", "hypothesis"),
            hub_rows=(392_702, 9_815),
        ),
        "qnli": GlueTask(
            "QNLI",
            (*_QUESTION, "label"),
            _QUESTION,
            "label",
            _ENTAILED,
            label_names=_ENTAILED,
            hub_rows=(104_743, 5_463),
        ),
        "rte": GlueTask(
            "RTE", (*_PAIR, "label"), _PAIR, "label", _ENTAILED, label_names=_ENTAILED, hub_rows=(2_490, 277)
        ),
        "wnli": GlueTask(
            "WNLI", (*_PAIR, "label"), _PAIR, "label", _BINARY, ("not_entailment", "entailment"), hub_rows=(635, 71)
        ),
    }
)
"""The classification tasks of GLUE by their Hub names."""


def find_folder(task: GlueTask, name: str, data_dir: Path) -> Path:
    """The folder with the task's two files: a folder of `data_dir` named after the task, else `data_dir` itself.

    Raises:
        AirtuneError: no such folder, or a file is missing from it.
    """
    if not data_dir.is_dir():
        raise AirtuneError(f"data_dir: there is no folder {data_dir}")
    names = tuple(dict.fromkeys((task.folder, task.folder.lower(), name, name.upper())))
    folder = next((data_dir / n for n in names if (data_dir / n).is_dir()), data_dir)
    lacking = [f for f in ("train.tsv", task.dev) if not (folder / f).is_file()]
    if folder == data_dir and lacking:
        raise AirtuneError(
            f"data_dir: {data_dir} holds neither a folder {task.folder} nor train.tsv and {task.dev} (task {name})"
        )
    if lacking:
        raise AirtuneError(f"data_dir: {folder / lacking[0]} is missing; task {name} needs train.tsv and {task.dev}")
    return folder


def read_tsv(path: Path, task: GlueTask) -> tuple[Examples, int]:
    """One GLUE file, in file order, and the number of broken rows skipped (only where the official file has some).

    Quotes have no meaning. Every row must have all columns and a known label, so that a cut, mixed-up or foreign file
    is noticed.

    Raises:
        AirtuneError: naming file, line and what would be right.
    """
    lines, ended = lines_of(path)
    columns = _columns(path, task, lines[0])
    at_text, at_label = [columns.index(c) for c in task.texts], columns.index(task.label)
    code = {name: i for i, name in enumerate(task.classes)}
    if not ended and at_label != len(columns) - 1:
        raise AirtuneError(
            f"{path}: line {len(lines)}: the file ends inside a text without a line break, so it may be cut; fetch it "
            "again, or end it with a line break if it is whole"
        )
    texts: list[list[str]] = []
    labels: list[int] = []
    skipped = 0
    first = 2 if task.header else 1
    for number, line in enumerate(lines[first - 1 :], first):
        fields = line.split("\t")
        cut = number == len(lines) and not ended
        if len(fields) != len(columns):
            skipped += 1
            if skipped > task.broken_rows or cut:
                wrong = f"{len(fields)} tab-separated columns; {len(columns)} would be right"
                raise AirtuneError(f"{path}: {line_of(number, cut)}: {wrong}")
        elif fields[at_label] not in code:
            wrong = f"unknown label {fields[at_label][:40]!r}; right would be {', '.join(task.classes)}"
            raise AirtuneError(f"{path}: {line_of(number, cut)}: {wrong}")
        else:
            texts.append([fields[i] for i in at_text])
            labels.append(code[fields[at_label]])
    if not labels:
        raise AirtuneError(f"{path}: no samples; {task.folder} has one per line after the header")
    return _examples(list(zip(*texts, strict=True)), labels), skipped


def line_of(number: int, cut: bool) -> str:
    """The line as told in a message."""
    return f"line {number}" + (" (the last, without a line break: the file may be cut)" if cut else "")


def _examples(texts: list[tuple[str, ...]], labels: list[Any]) -> Examples:
    dtype = np.float32 if isinstance(labels[0], float) else np.int64
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, np.array(labels, dtype=dtype))


def lines_of(path: Path) -> tuple[list[str], bool]:
    """The file's lines, at least one, and whether the last is ended by a line break."""
    try:
        raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise AirtuneError(f"{path}: cannot be read ({error.strerror})") from error
    if not raw:
        raise AirtuneError(f"{path}: line 1: the file is empty; a header or a sample would be right")
    if (at := raw.find(b"\0")) >= 0:
        line = raw.count(b"\n", 0, at) + 1
        raise AirtuneError(f"{path}: line {line}: a NUL byte; UTF-8 text would be right")
    try:
        lines = raw.decode().split("\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise AirtuneError(
            f"{path}: line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; UTF-8 text would be right"
        ) from error
    if ended := lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines], ended


def _columns(path: Path, task: GlueTask, line: str) -> list[str]:
    """Names of the columns, from the header or, where the task has none, from the task."""
    if not task.header:
        return list(task.columns)
    columns = line.split("\t")
    if lacking := [c for c in task.columns if c not in columns]:
        raise AirtuneError(
            f"{path}: line 1: the header lacks {', '.join(lacking)}; {task.folder} has tab-separated columns with "
            f"{', '.join(task.columns)}"
        )
    return columns


def from_hub(name: str, task: GlueTask, revision: str | None = None) -> tuple[Examples, Examples, str]:
    """Train and dev split from the Hugging Face Hub or its local cache (HF_HUB_OFFLINE is respected), and the commit.

    Args:
        name: of the task on the Hub.
        task: how it is written there.
        revision: of the data set; None for `HUB_COMMIT`, whose numbers of samples are checked.

    Raises:
        AirtuneError: neither has it, or it is not as expected.
    """
    at = revision or HUB_COMMIT
    splits: list[Examples] = []
    for split, rows in zip(("train", task.hub_dev), task.hub_rows, strict=True):
        texts, labels, commit = _hub_split(name, task, split, at)
        where = f"task.name: {name}: {HUB_NAME} at {commit}, split {split},"
        if _COMMIT.fullmatch(at) and commit != at:
            raise AirtuneError(
                f"{where} is all that the Hub's cache holds, {at} would be right; connect, or ask for the one with "
                "task.revision"
            )
        if not labels or not all(_known(label, task) for label in labels):
            raise AirtuneError(f"{where} is empty or has samples without a label")
        if commit == HUB_COMMIT and len(labels) != rows:
            raise AirtuneError(
                f"{where} has {len(labels)} samples, {rows} would be right; delete it from the Hub's cache to fetch it "
                "again"
            )
        splits.append(_examples(texts, labels))
        at = commit  # both splits from one commit
    return splits[0], splits[1], at


def _known(label: float, task: GlueTask) -> bool:
    """Whether it is a class of the task, or where it has none a similarity."""
    return label in range(len(task.classes)) if task.classes else 0.0 <= label <= 5.0


def _hub_split(name: str, task: GlueTask, split: str, at: str) -> tuple[list[tuple[str, ...]], list[Any], str]:
    """Text columns, labels and commit of one split; the cache may answer with another commit than `at`."""
    import datasets

    try:
        table = datasets.load_dataset(HUB_NAME, name, split=split, revision=at)
        texts = [tuple(table[column]) for column in task.hub_texts or task.texts]
        labels = list(table["label"])
        folders = {Path(file["filename"]).parent.name for file in table.cache_files}
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AirtuneError(
            f"task.name: {name} could not be had from the Hugging Face Hub or its cache ({HUB_NAME} at {at}: {reason})"
            f"; connect, or give a folder that holds {task.folder}/train.tsv and {task.dev} with --data-dir"
        ) from error
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]  # datasets keeps a folder for each commit
    return texts, labels, commits[0] if len(commits) == 1 else at
