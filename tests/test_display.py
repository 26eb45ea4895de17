import io
import re
from typing import Any

from rich.console import Console

from airtune.display import RunDisplay, span


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def row(t: int, accuracy: float | None, **measures: float) -> dict[str, Any]:
    return {
        "t": t, "scheduled": 9, "delivered": 7, "accuracy": accuracy, "spent_j": 10.0 * (t + 1),
        "max_overspend_ratio": 1.25, "modules": [11, 2, 7], "loss": 2.5,
        "measures": None if accuracy is None else measures,
    }  # fmt: skip


def show(console: Console, rounds: int = 10, budget_j: float | None = 200.0) -> None:
    clock = Clock()
    with RunDisplay("alternating [red] on sst2", rounds=rounds, budget_j=budget_j, console=console, clock=clock) as d:
        assert d.left_s is None
        for t in range(4):
            clock.now_s += 30.0
            d.update(row(t, 0.5 + t / 10 if t % 2 else None))
        assert d.left_s == 180.0
        clock.now_s += 10.0
        assert d.left_s == 170.0


def test_plain_lines_without_a_terminal():
    out = io.StringIO()
    show(Console(file=out, width=40))
    assert out.getvalue().splitlines() == [
        "alternating [red] on sst2",
        "round 2/10  accuracy 60.0 %  delivered 7/9  energy 20.0 J of 200 J (10 %)  4:00 left",
        "round 4/10  accuracy 80.0 %  delivered 7/9  energy 40.0 J of 200 J (20 %)  3:00 left",
    ]
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, width=80, _environ={"TERM": "dumb"}), budget_j=None)
    assert out.getvalue().splitlines()[2].endswith("energy 40.0 J  3:00 left")
    assert "\x1b" not in out.getvalue()


def test_live_display_on_a_terminal_of_80_columns():
    out = io.StringIO()
    show(Console(file=out, force_terminal=True, width=80, height=24, _environ={"TERM": "xterm"}))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
    last = text.rstrip().splitlines()[-5:]
    assert last[0].rstrip() == "alternating [red] on sst2"
    assert re.search(r"━+ round 4/10  2:10, 2:50 left$", last[1].rstrip())
    assert "80.0 %  (best 80.0 %)" in last[2]
    assert "7 of 9" in last[2]
    assert "40.0 J of 200 J (20 %)" in last[3]
    assert "1.25× its budget so far" in last[3]
    assert last[4].split() == ["modules", "idle", "█", "11", "m1", "▂", "2", "m2", "▆", "7"]
    assert max(map(len, last)) <= 80


def test_the_dev_loss_of_tasks_that_have_one():
    """Under the metric's own name; it stays on the screen between evaluations."""
    for terminal in (False, True):
        out = io.StringIO()
        screen = {"force_terminal": True, "_environ": {"TERM": "xterm"}} if terminal else {}
        console = Console(file=out, width=80, height=24, **screen)
        with RunDisplay("x", rounds=9, console=console, clock=Clock(), metric="token_accuracy") as display:
            display.update(row(0, 0.25, loss=3.256, perplexity=26.0))
            display.update(row(1, None))
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue()).replace("\r", "\n")
        if terminal:
            last = text.rstrip().splitlines()[-5:]
            assert last[1].split()[:4] == ["token", "accuracy", "25.0", "%"]
            assert last[3].split() == ["dev", "loss", "3.26", "training", "loss", "2.50"]
        else:
            assert text.splitlines()[1].startswith("round 1/9  token accuracy 25.0 %  dev loss 3.26  delivered 7/9")


def test_time_left_follows_the_recent_pace():
    clock = Clock()
    with RunDisplay("x", rounds=100, console=Console(file=io.StringIO()), clock=clock) as display:
        for t in range(30):
            clock.now_s += 60.0 if t < 15 else 2.0
            display.update(row(t, None))
        assert display.left_s == 140.0


def test_spans():
    assert [span(x) for x in (0.0, 59.6, 3599.0, 3600.0, None)] == ["0:00", "1:00", "59:59", "1:00:00", "-:--"]
