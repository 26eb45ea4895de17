"""The page: it needs no network, and what it shows is what the rows and the comparison say."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from airtune.cli import run_cli
from airtune.commands.page import positions_of
from airtune.compare import compare
from airtune.experiment import resume, run
from airtune.page import headline
from airtune.page.data import gather
from airtune.record import RunFolder
from airtune.report import load_run, summarise
from airtune.settings import dump, load, override
from airtune.tables import facts


class Page(HTMLParser):
    """What the tests ask of a page: its elements in order, figures, tables and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags, self.figures, self.tables, self.blocks, self.notes = [], {}, [], {}, []
        self.open, self.figure = [], None
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag in ("meta", "link"):
            return
        self.open.append((tag, attrs))
        if tag == "figure":
            self.figure = (
                {"kind": attrs["data-kind"], "title": "", "paths": [], "svg": None} if "data-kind" in attrs else None
            )
        if self.figure is not None:
            if tag == "svg":
                self.figure["svg"] = attrs
            if tag == "path":
                self.figure["paths"].append(attrs)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "h4" and self.figure is not None:
            self.figure["title"] += data
            self.figures.setdefault(self.figure["title"], []).append(self.figure)
        elif tag == "script" and attrs.get("type") == "application/json":
            self.figure["data"] = json.loads(data)
        elif tag in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif tag == "pre":
            self.blocks[attrs["class"]] = self.blocks.get(attrs["class"], "") + data
        elif tag == "p":
            self.notes.append(data)

    def data(self, title, number=0):
        return self.figures[title][number]["data"]

    def lines(self, title):
        return {line["name"]: line for line in self.data(title)["lines"]}


@pytest.fixture(scope="module")
def six(tiny_config, tmp_path_factory):
    """Two policies, two seeds of each, and a third seed of one that was stopped after two rounds."""
    root = tmp_path_factory.mktemp("six")
    for policy in ("joint", "traditional"):
        for seed in (0, 1):
            run(tiny_config(root / f"{policy}-s{seed}", seed=seed, policy={"name": policy}))
    run(tiny_config(root / "joint-s2", seed=2))
    cut(root / "joint-s2", 2)
    return root


def cut(path: Path, rounds: int) -> None:
    """Leave what a run killed after so many rounds leaves of its rows."""
    (path / "summary.json").unlink()
    with RunFolder.open(path, write=True) as folder:
        folder.truncate_to(4)
    for name in ("rounds", "devices", "timings"):
        file = path / f"{name}.jsonl"
        lines = [line for line in file.read_text().splitlines() if json.loads(line)["t"] < rounds]
        file.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture(scope="module")
def page(six):
    out = six / "page.html"
    assert run_cli(["report", str(six), "--out", str(out)]) == 0
    return Page(out)


def rounds_of(path):
    return RunFolder.open(path).read_rounds()


def test_nothing_is_loaded_from_anywhere(six, page):
    for tag, attrs in page.tags:
        assert not {"src", "srcset", "action", "data"} & attrs.keys(), (tag, attrs)
        assert attrs.get("href", "data:,") == "data:,"
    text = (six / "page.html").read_text()
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert "viewport" in text and "prefers-color-scheme: dark" in text
    assert len(text) < 1_000_000


def test_the_table_is_that_of_the_comparison(six, page):
    names = ["traditional-s0", "traditional-s1", "joint-s0", "joint-s1"]
    comparison = compare([load_run(six / name) for name in names], "traditional")
    head, *rows = page.tables[0]
    assert head == ["", "traditional", "joint"]
    shown = {row[0]: row[1:] for row in rows}
    columns = [facts(policy) for policy in comparison.policies]
    for label in columns[0]:
        values = [column[label] for column in columns]
        if set(values) != {"–"}:
            assert shown[label.strip()] == values, label
    assert len(page.figures["Energy"]) == 1 and "To the target [s]" in shown
    assert "±" in shown["Accuracy [%]"][1] and "±" in shown["difference [points]"][1]


def test_more_policies_than_fit_side_by_side_are_rows_with_the_same_figures(six, page, monkeypatch):
    monkeypatch.setattr(headline, "SIDE_BY_SIDE", 1)
    assert run_cli(["report", str(six), "--out", str(six / "rows.html")]) == 0
    brief, whole = Page(six / "rows.html").tables[:2]
    assert whole == page.tables[0]  # to be unfolded
    columns = {name.lower(): values for name, *values in whole}
    assert [row[0] for row in brief] == ["Policy", "traditional", "joint"]
    assert "Accuracy [%]" in brief[0] and "Accuracy per kJ [%/kJ]" in brief[0] and len(brief[0]) < len(whole)
    for place, name in enumerate(brief[0][1:], 1):
        assert [row[place] for row in brief[1:]] == columns[name.lower()]


def test_curves_are_means_over_seeds_of_the_rows(six, page):
    for policy in ("joint", "traditional"):
        rows = [rounds_of(six / f"{policy}-s{seed}") for seed in (0, 1)]
        for title, second, keys in (
            ("Virtual energy queues", ", mean device", "queue_mean_j"),
            ("Virtual energy queues", ", largest", "queue_max_j"),
            ("Bound on the inference risk gap", ", Theorem 1", "bound"),
            ("Bound on the inference risk gap", ", Theorem 2", "bound_tight"),
            ("Uploads per round", ", delivered", "delivered"),
            ("Worst device", "", "max_overspend_ratio"),
            ("Training loss", "", "loss"),
        ):
            values = np.array([[row[keys] for row in run] for run in rows], dtype=float)
            line = page.lines(title)[policy + second]
            assert line["x"] == [1, 2, 3, 4]
            assert line["mean"] == pytest.approx(list(values.mean(axis=0)))
            assert (line["low"], line["high"]) == (list(values.min(axis=0)), list(values.max(axis=0)))
        evaluated = [[(sum(r["energy_compute_j"] + r["energy_transmit_j"] for r in run[: i + 1]), row["accuracy"])
                      for i, row in enumerate(run) if row["accuracy"] is not None] for run in rows]  # fmt: skip
        energy_j, accuracy = np.mean(evaluated, axis=0).T
        assert page.lines("Accuracy per round")[policy]["x"] == [2, 4]
        assert page.lines("Accuracy per round")[policy]["mean"] == pytest.approx(list(accuracy))
        assert page.lines("Accuracy per joule")[policy]["x"] == pytest.approx(list(energy_j))
        assert page.lines("Accuracy per joule")[policy]["mean"] == pytest.approx(list(accuracy))
    assert page.lines("Certificate of each decision").keys() == {"joint"}  # traditional proves nothing
    gaps = [
        [(r["upper_bound"] - r["objective"]) / r["upper_bound"] for r in rounds_of(six / f"joint-s{s}")] for s in (0, 1)
    ]
    assert page.lines("Certificate of each decision")["joint"]["mean"] == pytest.approx(list(np.mean(gaps, axis=0)))


def test_what_is_drawn_is_the_data(page):
    """Points of the curves, taken back from the picture through its axes."""
    for title in ("Accuracy per round", "Virtual energy queues", "Worst device"):
        figure = page.figures[title][0]
        x0, x1, y0, y1, scale = (float(figure["svg"][f"data-{key}"]) for key in ("x0", "x1", "y0", "y1", "scale"))
        paths = [path["d"] for path in figure["paths"] if path["class"].startswith("line")]
        assert len(paths) == len(figure["data"]["lines"])
        for path, line in zip(paths, figure["data"]["lines"], strict=True):
            points = np.array([[float(v) for v in point.split()] for point in re.split("[ML]", path)[1:]])
            x = x0 + (points[:, 0] - 56) / (384 - 56) * (x1 - x0)
            y = (y0 + (points[:, 1] - 210) / (8 - 210) * (y1 - y0)) / scale
            np.testing.assert_allclose(x, line["x"], atol=0.002 * (x1 - x0))
            np.testing.assert_allclose(y, line["mean"], atol=0.002 * (y1 - y0) / scale)


def test_energy_bars_are_the_summaries(six, page):
    for bar in page.data("Energy"):
        sums = [json.loads((six / f"{bar['policy']}-s{seed}/summary.json").read_text()) for seed in (0, 1)]
        for name, key in (
            ("compute_j", "energy_compute_j"),
            ("transmit_j", "energy_transmit_j"),
            ("budget_j", "budget_j"),
        ):
            assert bar[name] == pytest.approx(np.mean([each[key] for each in sums]))


def test_heat_map_and_cell_are_the_device_rows(six, page):
    for policy in ("joint", "traditional"):
        rows = RunFolder.open(six / f"{policy}-s0").read_devices()
        heat = page.data(f"{policy}, seed 0")
        gain = [np.mean([row["gain"] for row in rows if row["device"] == k]) for k in range(6)]
        assert heat["device"] == list(np.argsort(gain)[::-1])
        did = {(row["device"], row["t"]): row for row in rows}
        for k, device in enumerate(heat["device"]):
            for i, t in enumerate(heat["round"]):
                row = did[device, t - 1]
                assert (heat["module"][k][i], bool(heat["delivered"][k][i])) == (row["module"], row["delivered"])
                assert heat["kind"][k] == row["kind"]
        cells = np.full((6, 4), "", dtype=object)  # painted from the picture
        (figure,) = page.figures[f"{policy}, seed 0"]
        for path in figure["paths"]:
            for column, line, width in re.findall(r"M(\d+) (\d+)h(\d+)", path["d"]):
                assert (cells[int(line), int(column) : int(column) + int(width)] == "").all()
                cells[int(line), int(column) : int(column) + int(width)] = path["class"]
        states = [["m0" if m == 0 else f"m{m:g}" if d else "lost" for m, d in zip(*both, strict=True)]
                  for both in zip(heat["module"], heat["delivered"], strict=True)]  # fmt: skip
        assert cells.tolist() == states
    from airtune.worlds.analytic import AnalyticWorld

    config = load(RunFolder.open(six / "joint-s0").read_config())
    devices = dataclasses.make_dataclass("D", ["kind"])(kind=("x",) * 6)
    world = AnalyticWorld(config.world, devices, config.seed, lambda t: np.zeros(6))
    for mark in page.data("The cell"):
        assert (mark["x_m"], mark["y_m"]) == tuple(world.position_m[mark["device"]])
        assert sum(mark["counts"].values()) == 4


def test_an_unfinished_run_is_named_and_left_out_of_means(page):
    note = "joint-s2 has not ended, 2 of 4 rounds so far"
    assert any(line.startswith(note) for line in page.notes)
    runs = next(table for table in page.tables if table[0][0] == "Run")
    assert [row[0] for row in runs[1:]] == [
        "traditional, seed 0", "traditional, seed 1", "joint, seed 0", "joint, seed 1", "joint, seed 2",
    ]  # fmt: skip
    assert runs[-1][1] == "2 of 4, not ended"


def test_commands_make_the_same_configurations(six, page, tmp_path):
    (tmp_path / "config.toml").write_text(page.blocks["config"])
    from airtune.settings import read_config

    base = read_config(str(tmp_path / "config.toml"))
    lines = page.blocks["commands"].splitlines()
    assert len(lines) == 5
    for line in lines:
        words = line.split()
        assert words[:3] == ["airtune", "run", "config.toml"]
        made = override(base, words[3:])
        theirs = load(RunFolder.open(six / made.out.name).read_config())
        assert dump(dataclasses.replace(made, out=None)) == dump(dataclasses.replace(theirs, out=None))


def test_an_unfinished_run_alone_then_resumed(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "r"))
    whole = tmp_path / "whole.html"
    assert run_cli(["report", str(tmp_path / "r"), "--out", str(whole)]) == 0

    class Stopping:
        """A log at which Ctrl-C is pressed after two rounds."""

        def begin(self, start):
            return None

        def values(self, step, values):
            if step == 2:
                raise KeyboardInterrupt

        def end(self, *, finished):
            assert not finished

    with pytest.raises(KeyboardInterrupt):
        run(tiny_config(tmp_path / "again" / "r"), log=Stopping())
    half = tmp_path / "half.html"
    assert run_cli(["report", str(tmp_path / "again"), "--out", str(half)]) == 0
    page = Page(half)
    assert page.lines("Accuracy per round")["joint"]["x"] == [2]
    assert any("has not ended" in line for line in page.notes)
    resume(tmp_path / "again" / "r")
    assert run_cli(["report", str(tmp_path / "again"), "--out", str(half)]) == 0
    one, two = Page(whole), Page(half)
    for title in one.figures:
        assert one.data(title) == two.data(title)


def test_a_reference_that_has_not_ended_leaves_the_table_of_the_others(tiny_config, tmp_path):
    """The table has the policies that have ended; nothing is set against the reference, and the page says why."""
    for policy in ("joint", "traditional"):
        run(tiny_config(tmp_path / policy, policy={"name": policy}))
    cut(tmp_path / "traditional", 2)
    assert run_cli(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = Page(tmp_path / "page.html")
    head, *rows = page.tables[0]
    shown = {row[0]: row[1:] for row in rows}
    assert head == ["", "joint"] and shown["Seeds"] == ["1"] and shown["Accuracy [%]"] != ["–"]
    assert not {"difference [points]", "To the target [J]"} & shown.keys()
    assert any("Where no run of traditional has ended, nothing is set against it." in note for note in page.notes)


def test_a_run_without_a_round_and_one_without_device_rows(tiny_config, tmp_path):
    with RunFolder.create(tmp_path / "empty", dump(tiny_config(tmp_path / "empty")), {}):
        pass
    out = tmp_path / "page.html"
    assert run_cli(["report", str(tmp_path / "empty"), "--out", str(out)]) == 0
    assert "empty has no finished round yet and is left out." in Page(out).notes
    run(tiny_config(tmp_path / "bare"))
    (tmp_path / "bare/devices.jsonl").unlink()
    assert run_cli(["report", str(tmp_path / "bare"), str(tmp_path / "empty"), "--out", str(out)]) == 0
    page = Page(out)
    assert "Left out: what devices did under joint; its rows of devices were not kept." in page.notes
    assert "The cell" not in page.figures and "Accuracy per round" in page.figures


def test_scenarios_are_told_apart(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "a" / "joint-s0"))
    run(tiny_config(tmp_path / "b" / "joint-s0", world={"bandwidth_hz": 6e4}))
    out = tmp_path / "page.html"
    assert run_cli(["report", str(tmp_path), "--out", str(out)]) == 0
    page = Page(out)
    text = out.read_text()
    assert "<h2>sst2, world.bandwidth_hz 30000.0</h2>" in text and "<h2>sst2, world.bandwidth_hz 60000.0</h2>" in text
    assert [len(page.figures["Energy"]), len(page.tables)] == [2, 8]


def test_points_of_a_sweep_over_a_policy_s_dial_are_scenarios(tiny_config, tmp_path):
    """Each policy stays with those that have its dial, in whatever order the folders come."""
    folders = []
    for name, v in (("joint", 5.0), ("traditional", 20.0), ("traditional", 5.0), ("joint", 20.0)):
        config = tiny_config(tmp_path / f"{name}-{v}", rounds=2)
        policy = dataclasses.replace(config.policy, name=name, v=v)
        run(dataclasses.replace(config, policy=policy))
        folders.append(tmp_path / f"{name}-{v}")
    found, _ = gather(folders)
    dials = [[member.run.config["policy"]["v"] for own in one.policies.values() for member in own] for one in found]
    assert dials == [[5.0, 5.0], [20.0, 20.0]]
    assert [one.title.rpartition(", ")[2] for one in found] == ["policy.v 5.0", "policy.v 20.0"]
    found, _ = gather([folders[0], folders[1]])  # a dial of its own is no scenario
    assert [list(one.policies) for one in found] == [["traditional", "joint"]]


def test_names_are_escaped(tiny_config, tmp_path):
    path = tmp_path / "x"
    run(tiny_config(path, rounds=1))
    with RunFolder.open(path, write=True) as folder:
        rows = folder.read_rounds()
        about = {"task": "<script>alert(1)</script>", "model": "m", "policy": "</script><b>", "seed": 0}
        folder.write_summary(summarise(rows, **about, budget_j=20.0, wall_s=8.0))
    out = tmp_path / "page.html"
    assert run_cli(["report", str(path), "--out", str(out)]) == 0
    page = Page(out)
    assert not any(tag == "b" and "class" in attrs for tag, attrs in page.tags)
    assert "alert(1)" not in "".join(str(attrs) for _, attrs in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 1 + sum(map(len, page.figures.values()))


def test_mistakes_are_one_line(tiny_config, six, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ([], "report: name at least one run folder"),
        ([tmp_path / "none"], "is not a run folder and holds none"),
        ([tmp_path / "gone"], "is not a run folder and holds none"),
        ([six, "--reference", "digest"], "no run of the reference policy digest"),
        ([six / "joint-s0", six / "joint-s0"], "are both policy joint with seed 0"),
        ([six / "joint-s0", "--out", tmp_path / "file/page.html"], "cannot be written"),
        ([six / "joint-s0", "--colour", "red"], "report: "),
    ):
        assert run_cli(["report", *map(str, arguments)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("airtune: ") and told.count("\n") == 1 and message in told, told


def test_positions_need_the_configuration_alone(six):
    cell = positions_of(RunFolder.open(six / "joint-s0").read_config())
    assert cell is not None
    position_m, radius_m = cell
    assert position_m.shape == (6, 2) and radius_m == 500.0
    assert (np.hypot(*position_m.T) <= radius_m).all()
