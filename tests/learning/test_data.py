import bz2
import csv
import hashlib
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from airtune.config import TaskConfig
from airtune.learning import corpora, data, pypi
from airtune.learning.data import Examples, load_task, tokenize
from airtune.learning.glue import GLUE, read_tsv
from airtune.types import AirtuneError

# Two samples of each task, as the official files write them, and what they mean.
FILES = {
    "sst2": ("SST-2", "dev.tsv", "sentence\tlabel\n\"a 'quoted start \t1\ndull \t0\n", [1, 0]),
    "cola": ("CoLA", "dev.tsv", "gj04\t1\t\tOur friends won't.\nbc01\t0\t*\tThem \"left.\n", [1, 0]),
    "mrpc": (
        "MRPC",
        "dev.tsv",
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tIt \"is.\tIt's so.\r\n0\t9\t10\tYes.\tNo.\r\n",
        [1, 0],
    ),
    "qqp": (
        "QQP",
        "dev.tsv",
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWhy?\tHow "so?\t0\n4\t5\t6\tWho?\tWho is?\t1\n',
        [0, 1],
    ),
    "mnli": (
        "MNLI",
        "dev_matched.tsv",
        "index\tgenre\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n"
        "0\tfiction\tA.\tB.\tneutral\tentailment\tneutral\n1\tslate\tC.\tD.\tneutral\tneutral\tcontradiction\n",
        [1, 2],
    ),
    "qnli": (
        "QNLI",
        "dev.tsv",
        "index\tquestion\tsentence\tlabel\n0\tWhat?\tThis.\tentailment\n1\tWhen?\tHere.\tnot_entailment\n",
        [0, 1],
    ),
    "rte": (
        "RTE",
        "dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n",
        [1, 0],
    ),
    "wnli": ("WNLI", "dev.tsv", "index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\t1\n1\tC.\tD.\t0\n", [1, 0]),
}
TEXTS = {
    "sst2": (("\"a 'quoted start ", "dull "), None),
    "cola": (("Our friends won't.", 'Them "left.'), None),
    "mrpc": (('It "is.', "Yes."), ("It's so.", "No.")),
    "qqp": (("Why?", "Who?"), ('How "so?', "Who is?")),
    "mnli": (("A.", "C."), ("B.", "D.")),
    "qnli": (("What?", "When?"), ("This.", "Here.")),
    "rte": (("A.", "C."), ("B.", "D.")),
    "wnli": (("A.", "C."), ("B.", "D.")),
}


def write_task(root, name, folder=None):
    official, dev, content, _ = FILES[name]
    path = root / (official if folder is None else folder)
    path.mkdir(parents=True, exist_ok=True)
    for file in ("train.tsv", dev):
        (path / file).write_bytes(content.encode())
    return path


@pytest.mark.parametrize("name", FILES)
def test_every_task_from_its_official_files(tmp_path, name):
    folder = write_task(tmp_path, name)
    task = load_task(TaskConfig(name=name), tmp_path, 0)
    for split in (task.train, task.dev):
        assert (split.text, split.text_pair) == TEXTS[name]
        assert split.label.tolist() == FILES[name][3] and split.label.dtype == np.int64
        assert split.group is None
    content = hashlib.sha256(FILES[name][2].encode()).hexdigest()
    assert dict(task.sha256) == {"train.tsv": content, FILES[name][1]: content}
    assert task.source == str(folder)
    assert name in task.description and "\n" not in task.description
    assert len(task.label_names) == len(GLUE[name].classes)


def test_label_names_mean_the_class_numbers(tmp_path):
    for name in FILES:
        write_task(tmp_path, name)
    names = {n: load_task(TaskConfig(name=n), tmp_path, 0).label_names for n in FILES}
    assert names["sst2"] == ("negative", "positive")
    assert names["cola"] == ("unacceptable", "acceptable")
    assert names["mnli"] == ("entailment", "neutral", "contradiction")
    assert names["rte"] == names["qnli"] == ("entailment", "not_entailment")
    assert names["wnli"] == ("not_entailment", "entailment")


@pytest.mark.parametrize("folder", ["SST-2", "sst-2", "sst2", "SST2", "."])
def test_folder_names(tmp_path, folder):
    path = write_task(tmp_path, "sst2", folder)
    assert load_task(TaskConfig(name="sst2"), tmp_path, 0).source == str(path)


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(AirtuneError, match="there is no folder"):
        load_task(TaskConfig(name="sst2"), tmp_path / "no", 0)
    with pytest.raises(AirtuneError, match=r"holds neither a folder MNLI nor train.tsv and dev_matched.tsv"):
        load_task(TaskConfig(name="mnli"), tmp_path, 0)
    (write_task(tmp_path, "mnli") / "dev_matched.tsv").unlink()
    with pytest.raises(AirtuneError, match=r"dev_matched.tsv is missing"):
        load_task(TaskConfig(name="mnli"), tmp_path, 0)


SST2 = b"sentence\tlabel\ngood \t1\nbad \t0\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("sst2", b"", 1, "the file is empty"),
        ("sst2", b"sentence\tlabel\n", None, "no samples"),
        ("sst2", b"good \t1\nbad \t0\n", 1, "the header lacks sentence, label"),
        ("qnli", SST2, 1, "the header lacks question"),
        ("cola", SST2, 1, "2 tab-separated columns; 4 would be right"),
        ("sst2", SST2 + b"no label\n", 4, "1 tab-separated columns; 2 would be right"),
        ("sst2", SST2 + b"a\tb\t1\n", 4, "3 tab-separated columns; 2 would be right"),
        ("sst2", SST2 + b"\n", 4, "1 tab-separated columns; 2 would be right"),
        ("sst2", SST2 + b"fine \t2\nmore \t1\n", 4, "unknown label '2'; right would be 0, 1"),
        ("sst2", SST2 + b"cut sen", 4, "without a line break: the file may be cut"),
        ("sst2", SST2 + b"cut sentence\t", 4, "unknown label ''"),
        ("qnli", FILES["qnli"][2].encode()[:-5], 3, "unknown label 'not_entail"),
        ("cola", FILES["cola"][2].encode()[:-3], 2, "the file ends inside a text without a line break"),
        ("mrpc", FILES["mrpc"][2].encode()[:-4], 3, "the file ends inside a text without a line break"),
        ("sst2", b"sentence\tlabel\ngood \t1\nb\0d \t0\n", 3, "a NUL byte"),
        ("sst2", b"sentence\tlabel\ngood \t1\nb\xffd \t0\n", 3, "byte 0xff is not UTF-8"),
        ("mnli", FILES["mnli"][2].replace("contradiction", "-").encode(), 3, "unknown label '-'"),
    ],
)
def test_damaged_files(tmp_path, name, content, line, message):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(AirtuneError) as caught:
        read_tsv(path, GLUE[name])
    told = str(caught.value)
    assert message in told and "\n" not in told
    assert told.startswith(f"{path}: " + ("" if line is None else f"line {line}"))


def test_missing_file(tmp_path):
    with pytest.raises(AirtuneError, match="cannot be read"):
        read_tsv(tmp_path / "train.tsv", GLUE["sst2"])


def test_a_whole_last_row_needs_no_line_break(tmp_path):
    (tmp_path / "x.tsv").write_bytes(SST2[:-1])
    examples, skipped = read_tsv(tmp_path / "x.tsv", GLUE["sst2"])
    assert examples.label.tolist() == [1, 0] and skipped == 0


def test_qqp_skips_the_few_broken_rows_of_the_official_file_and_says_so(tmp_path):
    folder = write_task(tmp_path, "qqp")
    head, first, second = FILES["qqp"][2].splitlines(keepends=True)
    (folder / "train.tsv").write_text(head + first + "broken\n" * 10 + second)
    task = load_task(TaskConfig(name="qqp"), tmp_path, 0)
    assert task.train.label.tolist() == [0, 1]
    assert "10 broken rows skipped" in task.description
    (folder / "train.tsv").write_text(head + first + "broken\n" * 11 + second)
    with pytest.raises(AirtuneError, match="line 13: 1 tab-separated columns; 6 would be right"):
        load_task(TaskConfig(name="qqp"), tmp_path, 0)
    (folder / "train.tsv").write_text(head + first + second + "7\t8\t9\tWhy n")
    with pytest.raises(AirtuneError, match=r"line 4 .the last, without a line break: the file may be cut"):
        load_task(TaskConfig(name="qqp"), tmp_path, 0)


CELL = st.text(st.characters(exclude_characters="\t\n\r\0", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELL, CELL, st.sampled_from(["0", "1"])), min_size=1, max_size=8))
def test_any_text_comes_back_as_the_csv_module_reads_it(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tsv") / "train.tsv"
    table = [("index", "sentence1", "sentence2", "label")] + [(str(i), *row) for i, row in enumerate(rows)]
    path.write_bytes("".join("\t".join(row) + "\n" for row in table).encode())
    with path.open(encoding="utf-8", newline="\n") as file:
        read = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    examples, _ = read_tsv(path, GLUE["wnli"])
    assert examples.text == tuple(r["sentence1"] for r in read)
    assert examples.text_pair == tuple(r["sentence2"] for r in read)
    assert examples.label.tolist() == [int(r["label"]) for r in read]


def test_unknown_and_unsuitable_tasks(tmp_path):
    with pytest.raises(AirtuneError, match="no task 'imdb'; there are rotten-tomatoes, sst2"):
        load_task(TaskConfig(name="imdb"), None, 0)
    with pytest.raises(AirtuneError, match="comes from PyPI"):
        load_task(TaskConfig(), tmp_path, 0)


def many(root, n):
    folder = write_task(root, "sst2")
    (folder / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"text {i}\t{i % 2}\n" for i in range(n)))


def test_train_limit_is_drawn_from_the_seed_in_file_order(tmp_path):
    many(tmp_path, 200)
    limited = [load_task(TaskConfig(name="sst2", train_limit=50), tmp_path, seed) for seed in (0, 0, 1)]
    numbers = [[int(t.split()[1]) for t in task.train.text] for task in limited]
    assert numbers[0] == numbers[1] != numbers[2]
    for drawn, task in zip(numbers, limited, strict=True):
        assert len(drawn) == 50 and drawn == sorted(set(drawn))
        assert task.train.label.tolist() == [i % 2 for i in drawn]
        assert "50 of 200 train" in task.description
        assert len(task.dev) == 2
    assert len(load_task(TaskConfig(name="sst2", train_limit=10**6), tmp_path, 0).train) == 200


def fake_datasets(monkeypatch, tables, commit=None):
    asked = []

    def load_dataset(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        if isinstance(tables, Exception):
            raise tables
        folder = f"/cache/nyu-mll___glue/{name}/0.0.0/{commit or revision}"
        return Table(tables[split], [{"filename": f"{folder}/glue-{split}.arrow"}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


class Table(dict):
    """As much of a `datasets.Dataset` as is used."""

    def __init__(self, columns, cache_files):
        super().__init__(columns)
        self.cache_files = cache_files


PINNED = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
MNLI = {
    "train": {"premise": ["A", "B"], "hypothesis": ["C", "D"], "label": [2, 0]},
    "validation_matched": {"premise": ["E"], "hypothesis": ["F"], "label": [1]},
}


def test_hub(monkeypatch):
    asked = fake_datasets(monkeypatch, MNLI)
    task = load_task(TaskConfig(name="mnli", revision="v9"), None, 0)
    assert asked == [("nyu-mll/glue", "mnli", "train", "v9"), ("nyu-mll/glue", "mnli", "validation_matched", "v9")]
    assert (task.train.text, task.train.text_pair, task.train.label.tolist()) == (("A", "B"), ("C", "D"), [2, 0])
    assert (task.dev.text, task.dev.text_pair, task.dev.label.tolist()) == (("E",), ("F",), [1])
    assert task.sha256["train"] == hashlib.sha256(b"A\tC\t2\nB\tD\t0\n").hexdigest()
    assert task.source == "nyu-mll/glue mnli at v9" and "nyu-mll/glue at v9" in task.description


@pytest.mark.parametrize(("train", "dev", "wrong"), [(635, 71, None), (634, 71, "train"), (635, 72, "validation")])
def test_hub_counts_at_the_pinned_commit(monkeypatch, train, dev, wrong):
    """WNLI has 635 and 71 samples in GLUE's release."""
    tables = {
        split: {"sentence1": ["A"] * count, "sentence2": ["B"] * count, "label": [1] * count}
        for split, count in (("train", train), ("validation", dev))
    }
    asked = fake_datasets(monkeypatch, tables)
    for revision in (None, PINNED):
        config = TaskConfig(name="wnli", revision=revision)
        if wrong is None:
            task = load_task(config, None, 0)
            assert (len(task.train), len(task.dev), task.source) == (635, 71, f"nyu-mll/glue wnli at {PINNED}")
        else:
            had, right = {"train": (634, 635), "validation": (72, 71)}[wrong]
            with pytest.raises(AirtuneError, match=rf"split {wrong}, has {had} samples, {right} would be") as caught:
                load_task(config, None, 0)
            assert "\n" not in str(caught.value)
    assert {revision for *_, revision in asked} == {PINNED}
    assert len(load_task(TaskConfig(name="wnli", revision="v9"), None, 0).train) == train


def test_another_commit_in_the_hubs_cache_is_told(monkeypatch):
    """Without a network, datasets hands out what it has, whatever was asked for."""
    other = "c0ffee" * 6 + "abcd"
    fake_datasets(monkeypatch, MNLI, commit=other)
    for revision in (None, PINNED, "d" * 40):
        with pytest.raises(
            AirtuneError, match=rf"at {other}, split train, is all that .* {revision or PINNED} would be"
        ):
            load_task(TaskConfig(name="mnli", revision=revision), None, 0)
    for revision in (other, "main"):
        assert load_task(TaskConfig(name="mnli", revision=revision), None, 0).source == f"nyu-mll/glue mnli at {other}"


def test_hub_counts_are_those_of_the_page():
    """docs/data.md has a row for each task: name, classes, train, dev, files."""
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) \| ([\d,]+) \|", page, re.MULTILINE)
    told = {name: (int(train.replace(",", "")), int(dev.replace(",", ""))) for name, train, dev in rows}
    assert told == {name: task.hub_rows for name, task in GLUE.items()}


def test_a_revision_of_what_is_not_on_the_hub_is_refused(tmp_path):
    for name, folder in (("rotten-tomatoes", None), ("sst2", tmp_path)):
        with pytest.raises(
            AirtuneError, match=rf"^task\.revision: {name} does not come from the Hugging Face Hub here"
        ):
            load_task(TaskConfig(name=name, revision="v1"), folder, 0)


def test_hub_without_network_names_the_way_out(monkeypatch):
    fake_datasets(monkeypatch, ConnectionError("Couldn't reach the Hub\nbecause"))
    with pytest.raises(AirtuneError, match=r"rte could not be had .*Couldn't reach the Hub\); .*--data-dir$"):
        load_task(TaskConfig(name="rte"), None, 0)


def test_hub_samples_without_label_are_refused(monkeypatch):
    table = {"sentence": ["A"], "label": [-1]}
    fake_datasets(monkeypatch, {"train": table, "validation": table})
    with pytest.raises(AirtuneError, match="without a label"):
        load_task(TaskConfig(name="cola"), None, 0)


def snippets(path, rows):
    lines = ["category,text,movie_name,has_plot_and_reviews"] + [f'{c},"{t}",{f},False' for c, t, f in rows]
    path.write_bytes(bz2.compress("\n".join(lines).encode()))
    return path


ROWS = [
    ("plot", "A man.", "talk_to_her"),
    ("fresh", "Lovely, and how.", "spirited_away"),
    ("rotten", "Dull.", "talk_to_her"),
    ("fresh", "Fine.", "talk_to_her"),
    ("rotten", "Dull.", "spirited_away"),
    ("rotten", "Long.", "the_crime_of_padre_amaro"),
    ("fresh", "Bold.", "el_crimen_del_padre_amaro"),
]


def test_rotten_tomatoes_splits_whole_films(tmp_path):
    train, dev = corpora.rotten_tomatoes(snippets(tmp_path / "x.csv.bz2", ROWS))
    rows = [list(zip(e.text, e.label.tolist(), e.group.tolist(), strict=True)) for e in (train, dev)]
    # sha256sum of the names: spirited_away da3a…, talk_to_her 032f…, el_crimen_del_padre_amaro 1cf1…; the threshold is
    # 0.15 · 16⁴ = 2666…. "Dull." comes twice and the first counts. Films by name: el_crimen 0, spirited 1, talk 2.
    assert rows[0] == [("Lovely, and how.", 1, 1)]
    assert rows[1] == [("Dull.", 0, 2), ("Fine.", 1, 2), ("Long.", 0, 0), ("Bold.", 1, 0)]


def test_rotten_tomatoes_damage(tmp_path):
    with pytest.raises(AirtuneError, match="unknown category 'meh'"):
        corpora.rotten_tomatoes(snippets(tmp_path / "a.csv.bz2", [*ROWS, ("meh", "x", "y")]))
    with pytest.raises(AirtuneError, match="leave one split empty"):
        corpora.rotten_tomatoes(snippets(tmp_path / "b.csv.bz2", ROWS[1:2]))
    (tmp_path / "c.csv.bz2").write_bytes(bz2.compress(b"a,b\n1,2\n"))
    with pytest.raises(AirtuneError, match="line 1: the header lacks category, text, movie_name"):
        corpora.rotten_tomatoes(tmp_path / "c.csv.bz2")
    (tmp_path / "d.csv.bz2").write_bytes(b"not bzip2")
    with pytest.raises(AirtuneError, match="not a readable CSV file"):
        corpora.rotten_tomatoes(tmp_path / "d.csv.bz2")
    (tmp_path / "e.csv.bz2").write_bytes((tmp_path / "a.csv.bz2").read_bytes()[:-20])
    with pytest.raises(AirtuneError, match="not a readable CSV file"):
        corpora.rotten_tomatoes(tmp_path / "e.csv.bz2")


def test_dev_share_of_films():
    share = np.mean([corpora.in_dev(f"film {i}") for i in range(4000)])
    assert abs(share - 0.15) < 4 * np.sqrt(0.15 * 0.85 / 4000)


def test_the_real_snippets_where_they_are_cached():
    if not (pypi.cache_dir() / "rotten-tomatoes-0.2.2").is_dir():
        pytest.skip("rotten-tomatoes is not in the cache; any run with it fetches it")
    task = load_task(TaskConfig(), None, 0)
    assert (len(task.train), len(task.dev)) == (10873, 1879)
    assert not set(task.train.text) & set(task.dev.text)
    assert not set(task.train.group) & set(task.dev.group)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh"), "film", "."]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return BertTokenizerFast(vocab=str(path), model_max_length=32)


TEXT = st.text("abcdefghx film.", max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    pairs=st.lists(st.tuples(TEXT, TEXT), max_size=7),
    paired=st.booleans(),
    max_length=st.integers(5, 32),
    chunk=st.integers(1, 4),
)
def test_tokens_as_one_by_one(tokenizer, pairs, paired, max_length, chunk):
    text = tuple(a for a, _ in pairs)
    second = tuple(b for _, b in pairs) if paired else None
    label = np.arange(len(pairs), dtype=np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_CHUNK", chunk)
        tokens = tokenize(Examples(text, second, label, label * 2), tokenizer, max_length)
    assert len(tokens) == len(pairs)
    assert (tokens.ids.dtype, tokens.type_ids.dtype, tokens.offsets.dtype) == (np.int32, np.int8, np.int64)
    assert tokens.label.tolist() == label.tolist() and tokens.group.tolist() == (label * 2).tolist()
    for i, (a, b) in enumerate(pairs):
        alone = tokenizer([(a, b)] if paired else [a], truncation="longest_first", max_length=max_length)
        assert tokens.ids[tokens.span(i)].tolist() == alone["input_ids"][0]
        assert tokens.type_ids[tokens.span(i)].tolist() == alone["token_type_ids"][0]
        assert tokens.lengths[i] == len(alone["input_ids"][0]) <= max_length
    assert tokens.offsets[-1] == len(tokens.ids) == tokens.lengths.sum()


def test_tokens_by_hand(tokenizer):
    tokens = tokenize(Examples(("film", "a film."), None, np.array([0, 1])), tokenizer, 32)
    cls, sep, a, film, dot = 2, 3, 5, 21, 22
    assert tokens.ids.tolist() == [cls, film, sep, cls, a, film, dot, sep]
    assert tokens.offsets.tolist() == [0, 3, 8]
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 1
    with pytest.raises(IndexError):
        tokens.span(2)


def test_no_segments_where_the_model_has_none(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    assert tokenize(Examples(("film",), None, np.array([0])), tokenizer, 8).type_ids is None


@pytest.mark.parametrize(("paired", "least"), [(False, 3), (True, 5)])
def test_max_length_within_what_the_model_takes(tokenizer, paired, least):
    examples = Examples(("film",), ("film",) if paired else None, np.array([0]))
    assert tokenize(examples, tokenizer, least).lengths.tolist() == [least]
    for wrong in (least - 1, 33):
        with pytest.raises(AirtuneError, match=f"{wrong} tokens; this model and task take {least} to 32"):
            tokenize(examples, tokenizer, wrong)


def test_examples_of_unequal_length():
    with pytest.raises(ValueError, match="1 texts"):
        Examples(("a",), None, np.array([0, 1]))
