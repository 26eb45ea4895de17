import csv
import dataclasses
import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from airtune.compare import compare
from airtune.curves import evaluated, table
from airtune.paired import Paired, Reached, estimate, paired, reach
from airtune.plots import plot_compare, plot_run
from airtune.record import RunFolder
from airtune.report import Run, elapsed_s, jain_index, load_run, report_run, summarise
from airtune.tables import bars, number, render_comparison, render_run, write_comparison
from airtune.types import AirtuneError


def round_row(t: int, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "t": t, "scheduled": 2, "delivered": 1, "energy_compute_j": 3.0, "energy_transmit_j": 1.0,
        "uplink_bit": 8e6, "downlink_bit": 8e6, "tokens": 10.0,
        "loss": 0.5, "accuracy": None, "measures": None, "objective": 9.9, "upper_bound": 10.0,
        "certificate": 0.01, "price": 1e-6, "status": "ok", "phi": 1.0, "delta": [0.4, 0.2, 0.0], "noise_sq": 0.1,
        "phi_tight": 0.5, "bound": 0.9, "bound_tight": 0.8, "bound_kind": "estimated",
        "queue_mean_j": 0.0, "queue_max_j": 0.0, "spent_j": 4.0 * (t + 1),
        "max_overspend_ratio": 0.8, "modules": [1, 0, 2],
    }  # fmt: skip
    return row | fields


def device_row(t: int, device: int, **fields: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "t": t, "device": device, "kind": "sensor" if device == 0 else "vehicle", "gain": 1e-10, "module": device,
        "power_w": 0.1, "bandwidth_hz": 1e5, "success_probability": 0.9, "delivered": device == 2,
        "energy_compute_j": 1.0, "energy_transmit_j": 0.5, "tokens": 5.0, "queue_j": float(t), "spent_j": 1.5,
        "gamma_sq": 1.0,
    }  # fmt: skip
    return row | fields


TIMES = {"observe_s": 0.0, "decide_s": 0.25, "execute_s": 1.0, "evaluate_s": 0.0, "wall_s": 2.0, "elapsed_s": 0.0}


def write_run(
    path: Path, policy: str, seed: int, accuracies: list[float | None], *, task: str = "sst2", scale: float = 1.0,
    ended: bool = True, **fields: Any,
) -> Path:  # fmt: skip
    config = {"seed": seed, "task": {"name": task}, "model": {"name": "mini"}, "policy": {"name": policy}}
    config |= {"world": {"deadline_s": 10.0}}
    with RunFolder.create(path, config, {}) as folder:
        for t, accuracy in enumerate(accuracies):
            energy = {"energy_compute_j": 3.0 * scale, "energy_transmit_j": 1.0 * scale}
            row = round_row(t, accuracy=accuracy, **energy, **fields)
            folder.append_round(row, [device_row(t, k) for k in range(3)], TIMES | {"t": t, "elapsed_s": 5.0 + 2.0 * t})
        if ended:
            rows = folder.read_rounds()
            about = {"task": task, "model": "mini", "policy": policy, "seed": seed}
            folder.write_summary(summarise(rows, **about, budget_j=20.0, wall_s=8.0))  # pyright: ignore
    return path


def text_of(what: Any, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def test_summary_of_hand_worked_rows():
    rows = [round_row(0, accuracy=0.6), round_row(1, accuracy=0.7, bound=0.8), round_row(2, scheduled=0, delivered=0)]
    summary = summarise(rows, task="t", model="m", policy="p", seed=4, budget_j=15.0, wall_s=1.0)
    assert summary == {
        "task": "t", "model": "m", "policy": "p", "seed": 4, "rounds": 3, "accuracy": 0.7, "energy_j": 12.0,
        "energy_compute_j": 9.0, "energy_transmit_j": 3.0, "budget_j": 15.0, "max_overspend_ratio": 0.8,
        "delivery_rate": 0.5, "tokens": 30.0, "wall_s": 1.0, "bound": 0.9, "bound_tight": 0.8,
        "module_histogram": [3, 0, 6],
    }  # fmt: skip
    idle = [round_row(0, scheduled=0, delivered=0)]
    nothing = summarise(idle, task="t", model="m", policy="p", seed=0, budget_j=1.0, wall_s=0.0)
    assert nothing["delivery_rate"] is None
    assert nothing["accuracy"] is None
    with pytest.raises(AirtuneError, match="nothing to summarise"):
        summarise([], task="t", model="m", policy="p", seed=0, budget_j=1.0, wall_s=0.0)


@given(st.lists(st.integers(-(10**6), 10**6).map(lambda x: x / 1000), min_size=2, max_size=12, unique=True))
def test_estimate_is_scipys_t_interval(values: list[float]):
    got = estimate(values)
    assert got is not None
    assert got.half_width is not None
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    np.testing.assert_allclose(
        (got.mean - got.half_width, got.mean + got.half_width), (low, high), rtol=1e-7, atol=1e-9
    )


def test_estimate_of_none_and_one():
    assert estimate([]) is None
    one = estimate([0.3])
    assert one is not None
    assert (one.mean, one.half_width, one.n) == (0.3, None, 1)


@given(st.lists(st.floats(0.01, 0.1), min_size=2, max_size=8), st.floats(0.0, 1.0))
def test_energy_to_accuracy_on_rising_curves_is_the_inverse_interpolation(steps: list[float], share: float):
    accuracy = np.cumsum(steps)
    rows = [round_row(t, accuracy=float(a)) for t, a in enumerate(accuracy)]
    target = float(accuracy[0] + share * (accuracy[-1] - accuracy[0]))
    expected = np.interp(target, accuracy, 4.0 * np.arange(1, len(accuracy) + 1))
    got = reach(rows, min(target, float(accuracy[-1])))
    assert got is not None
    assert got.energy_j == pytest.approx(expected, rel=1e-6)
    assert got.rounds == pytest.approx(expected / 4.0, rel=1e-6)


def test_energy_to_accuracy_counts_unevaluated_rounds_and_the_first_crossing():
    rows = [round_row(t, accuracy=a) for t, a in enumerate([0.5, None, 0.7, 0.6, 0.9])]
    assert reach(rows, 0.6) == Reached(pytest.approx(8.0), pytest.approx(2.0))  # halfway between 4 J and 12 J
    assert reach(rows, 0.4) == Reached(4.0, 1)
    assert reach(rows, 0.95) is None


def test_bootstrap_is_that_of_all_resamples():
    """Three seeds have 27 resamples: the ends lie among the exact percentiles of their means."""
    differences = [-0.01, 0.02, 0.06]
    means = [sum(drawn) / 3 for drawn in itertools.product(differences, repeat=3)]
    found = paired(differences)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    for end, share in ((found.low, 0.025), (found.high, 0.975)):
        near = np.quantile(means, [max(share - 0.02, 0), min(share + 0.02, 1)], method="nearest")
        assert near[0] - 1e-12 <= end <= near[1] + 1e-12
    assert (found.mean, found.n, found.above) == (pytest.approx(0.07 / 3), 3, 2)
    assert found.half_width == estimate(differences).half_width  # pyright: ignore
    assert paired(differences) == found  # its own generator
    assert paired([]) is None
    assert paired([0.1]) == Paired(0.1, None, 1, None, None, 1)


def test_jain_index_bounds():
    assert jain_index([0, 0]) is None
    assert jain_index([3, 1]) == pytest.approx(16 / 20)


def three_policies(tmp_path: Path) -> list[Run]:
    paths = [
        write_run(tmp_path / "t0", "traditional", 0, [0.5, 0.6], scale=2.0),
        write_run(tmp_path / "t1", "traditional", 1, [0.5, 0.7], scale=2.0),
        write_run(tmp_path / "a1", "alternating", 1, [0.5, 0.9]),
        write_run(tmp_path / "a0", "alternating", 0, [0.5, 0.7], max_overspend_ratio=1.3),
        write_run(tmp_path / "a2", "alternating", 2, [0.5, 0.95]),
        write_run(tmp_path / "w0", "weak", 0, [0.5, 0.55]),
        write_run(tmp_path / "w1", "weak", 1, [0.5, 0.70]),
    ]
    return [load_run(path) for path in paths]


def test_comparison_pairs_by_seed(tmp_path: Path):
    result = compare(three_policies(tmp_path), "traditional")
    first, ours, weak = result.policies
    assert [policy.policy for policy in result.policies] == ["traditional", "alternating", "weak"]
    assert first.difference is None
    assert ours.seeds == (0, 1, 2)
    assert ours.accuracy is not None
    assert ours.accuracy.mean == pytest.approx((0.7 + 0.9 + 0.95) / 3)
    # seeds 0 and 1 are shared: differences 0.1 and 0.2; t(0.975, 1) = 12.7062, s/√2 = 0.05
    assert ours.difference is not None
    assert ours.difference.mean == pytest.approx(0.15)
    assert ours.difference.half_width == pytest.approx(12.7062 * 0.05, rel=1e-5)
    assert (ours.paired, ours.reached) == (2, 2)
    # targets 0.6 and 0.7 on lines from (4 J, 0.5) to (8 J, 0.7) and (8 J, 0.9): 6 J both
    assert ours.energy_to_target_j is not None
    assert ours.energy_to_target_j.mean == pytest.approx(6.0)
    assert ours.time_to_target_s is not None
    assert ours.time_to_target_s.mean == pytest.approx(15.0)  # one and a half rounds of 10 s
    assert (ours.difference.low, ours.difference.high) == (pytest.approx(0.1), pytest.approx(0.2))
    assert ours.difference.above == 2
    # the reference itself is there after both its rounds, 16 J
    assert ours.saving is not None
    assert (ours.saving.mean, ours.saving.half_width) == (pytest.approx(0.625), pytest.approx(0.0, abs=1e-12))
    assert first.saving is None
    assert weak.saving is None
    assert [(seed.seed, seed.reached, seed.saving) for seed in weak.per_seed] == [(0, False, None), (1, True, 0.5)]
    assert (ours.per_seed[2].seed, ours.per_seed[2].reached, ours.per_seed[2].difference) == (2, None, None)
    assert ours.energy_j.mean == 8.0
    assert first.energy_j.mean == 16.0
    assert ours.accuracy_per_kj is not None
    assert ours.accuracy_per_kj.mean == pytest.approx(ours.accuracy.mean / 0.008)
    assert ours.max_overspend_ratio == 1.3
    # only one of two seeds reaches the target: no mean over the lucky one
    assert (weak.paired, weak.reached, weak.energy_to_target_j) == (2, 1, None)
    assert compare(three_policies(tmp_path / "again")).reference == "traditional"


def test_a_target_of_ones_own(tmp_path: Path):
    """The same for all seeds, and for those that the reference lacks."""
    result = compare(three_policies(tmp_path), "traditional", target=0.65)
    ours = result.policies[1]
    # lines from (4 J, 0.5) to (8 J, 0.7 | 0.9 | 0.95)
    assert [seed.energy_to_target_j for seed in ours.per_seed] == pytest.approx([7.0, 5.5, 4 + 4 / 3])
    assert (ours.paired, ours.reached, ours.saving) == (3, 3, None)
    text = text_of(render_comparison(result, 80))
    assert "the target is 65.0 %" in " ".join(text.split())
    for wrong in (0.0, 80.0):
        with pytest.raises(AirtuneError, match=r"--target: an accuracy above 0 and at most 1, as 0\.8, would be right"):
            compare(three_policies(tmp_path / str(wrong)), "traditional", target=wrong)


def test_the_energy_target_is_measured_on_the_same_samples_as_the_curve(tmp_path: Path):
    path = write_run(tmp_path / "r", "p", 0, [0.5, 0.7])
    with RunFolder.open(path, write=True) as folder:
        folder.write_summary((folder.read_summary() or {}) | {"accuracy": 0.9})  # of the whole dev set
    (only,) = compare([load_run(path)]).policies
    assert only.accuracy is not None
    assert only.accuracy.mean == 0.9
    assert only.energy_to_target_j is not None
    assert only.energy_to_target_j.mean == 8.0


def test_savings_are_paired_ratios_up_to_the_first_crossing(tmp_path: Path):
    runs = [
        write_run(tmp_path / "r0", "ref", 0, [0.5, 0.7, 0.6], scale=2.0),  # ends at 0.6, first there between 8 and 16 J
        write_run(tmp_path / "r1", "ref", 1, [0.5, 0.6]),  # 8 J
        write_run(tmp_path / "p0", "p", 0, [0.6]),  # 4 J
        write_run(tmp_path / "p1", "p", 1, [0.5, 0.7], scale=1.5),  # halfway from 6 to 12 J
    ]
    reference, ours = compare([load_run(path) for path in runs]).policies
    assert [seed.energy_to_target_j for seed in reference.per_seed] == pytest.approx([12.0, 8.0])
    assert [seed.energy_to_target_j for seed in ours.per_seed] == pytest.approx([4.0, 9.0])
    assert [seed.saving for seed in ours.per_seed] == pytest.approx([1 - 4 / 12, 1 - 9 / 8])
    assert ours.saving is not None
    # mean of 2/3 and −1/8 = 13/48, half their distance 19/48, t(0.975, 1) = 12.7062
    assert ours.saving.mean == pytest.approx(13 / 48)
    assert ours.saving.half_width == pytest.approx(12.7062 * 19 / 48, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ({"rounds": 3}, {}, r"rounds is 2 and 3; only policy and seed may differ$"),
        ({"world": {"bandwidth_hz": 1e6, "deadline_s": 9.0}}, {}, r"world\.bandwidth_hz is 2000000\.0 and 1000000\.0;"),
        ({"world": {}}, {}, r"world\.bandwidth_hz is 2000000\.0 and not set;"),
        ({"model": {"name": "mini", "revision": "x"}}, {}, r"model\.revision is not set and x;"),
        ({}, {"data": {"sha256": {"train.tsv": "2"}}}, "the files of the data differ$"),
        ({}, {"model": {"sha256": {"a": "2"}}}, "the files of the model differ$"),
        ({"policy": {"name": "q", "v": 3.0}, "seed": 1, "out": "q", "threads": 9, "name": "n"}, {}, None),
        ({"data_dir": "elsewhere"}, {"commit": "x", "threads": 9}, None),
    ],
)
def test_runs_that_differ_in_more_than_policy_and_seed_are_refused(
    tmp_path: Path, config: dict[str, Any], environment: dict[str, Any], message: str | None
):
    here = {"data": {"sha256": {"train.tsv": "1"}, "source": "a"}, "model": {"sha256": {"a": "1"}}}
    one = load_run(write_run(tmp_path / "one", "p", 0, [0.5]))
    one = dataclasses.replace(
        one,
        config=dict(one.config) | {"rounds": 2, "world": {"bandwidth_hz": 2e6, "deadline_s": 9.0}},
        environment=here,
    )
    two = load_run(write_run(tmp_path / "two", "q", 0, [0.5]))
    two = dataclasses.replace(two, config=dict(one.config) | config, environment=here | environment)
    if message is None:
        assert len(compare([one, two]).policies) == 2
        return
    for runs in ([one, two], [one, one, two]):
        with pytest.raises(AirtuneError, match=message) as told:
            compare(runs)
        assert "\n" not in str(told.value)
        assert str(told.value).startswith(f"{one.path} and {two.path} cannot be compared: ")


def test_comparison_refuses_what_cannot_be_compared(tmp_path: Path):
    a = load_run(write_run(tmp_path / "a", "p", 0, [0.5]))
    b = load_run(write_run(tmp_path / "b", "p", 0, [0.5]))
    c = load_run(write_run(tmp_path / "c", "p", 1, [0.5], task="qnli"))
    for runs, reference, message in (
        ([a, b], None, "are both policy p with seed 0"),
        ([a, c], None, "a and .*c cannot be compared: task.name is sst2 and qnli; only policy and seed may differ"),
        ([a], "q", "no run of the reference policy q"),
        ([], None, "no run to compare"),
    ):
        with pytest.raises(AirtuneError, match=message):
            compare(runs, reference)
    other = dataclasses.replace(c, summary=dict(c.summary) | {"task": "sst2"}, config=dict(a.config))
    dials = [dict(a.config) | {"policy": {"name": "joint", "v": v}} for v in (1000.0, 50.0)]
    pair = [dataclasses.replace(run, config=config) for run, config in zip((a, other), dials, strict=True)]
    with pytest.raises(AirtuneError, match=r"policy\.v is 1000\.0 and 50\.0; runs of one policy may differ in their"):
        compare(pair)
    with pytest.raises(AirtuneError, match="has not ended"):
        load_run(write_run(tmp_path / "d", "p", 0, [0.5], ended=False))


def test_a_reference_whose_runs_failed_leaves_the_others(tmp_path: Path):
    """Nothing is set against it, what needs no reference is told, and the table says why."""
    (alone,) = compare([load_run(write_run(tmp_path / "a", "p", 0, [0.5, 0.7]))], "q", partial=True).policies
    assert alone.accuracy is not None and alone.energy_j.mean > 0
    assert (alone.difference, alone.saving, alone.energy_to_target_j, alone.paired) == (None, None, None, 0)
    whole = compare([load_run(tmp_path / "a")], "q", 0.6, partial=True)
    assert whole.policies[0].reached == 1 and whole.policies[0].saving is None
    text = " ".join(text_of(render_comparison(whole, 80)).split())
    assert "Where no run of q has ended, nothing is set against it." in text
    assert "To the target [J]" in text and "the target is 60.0 %" in text


def test_a_finished_run_that_lacks_rounds_is_damaged(tmp_path: Path):
    file = write_run(tmp_path / "a", "p", 0, [0.5, 0.7, 0.8]) / "rounds.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    for read in (load_run, report_run):
        with pytest.raises(AirtuneError, match=r"a is damaged: rounds\.jsonl has 2 of its 3 rounds; copy it again"):
            read(tmp_path / "a")


def test_one_policy_by_itself_has_no_target_but_one_that_is_asked_for(tmp_path: Path):
    runs = [load_run(write_run(tmp_path / "a", "p", 0, [0.5, 0.7]))]
    text = text_of(render_comparison(compare(runs), 80))
    assert "Accuracy [%]" in text and "target" not in text and "paired" not in text
    assert "To the target [J]" in text_of(render_comparison(compare(runs, target=0.6), 80))
    runs.append(load_run(write_run(tmp_path / "b", "r", 0, [0.5, 0.7])))
    assert "To the target [J]" in text_of(render_comparison(compare(runs), 80))
    assert "To the target [J]" not in text_of(render_comparison(compare(runs, "q", partial=True), 80))


def test_written_comparison(tmp_path: Path):
    csv_path, json_path = write_comparison(compare(three_policies(tmp_path), "traditional"), tmp_path / "out")
    with csv_path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["traditional", "alternating", "weak"]
    assert rows[0]["difference"] == ""
    assert float(rows[1]["difference"]) == pytest.approx(0.15)
    assert rows[1]["seeds"] == "0 1 2"
    assert rows[2]["energy_to_target_j"] == ""
    written = json.loads(json_path.read_text())
    assert written["reference"] == "traditional"
    assert written["policies"][2]["energy_to_target_j"] is None
    assert float(rows[1]["saving"]) == pytest.approx(0.625)
    assert "per_seed" not in rows[1]
    assert written["policies"][2]["per_seed"][0] == {
        "seed": 0, "accuracy": 0.55, "difference": pytest.approx(-0.05), "energy_j": 8.0, "reached": False,
        "energy_to_target_j": None, "time_to_target_s": None, "saving": None,
    }  # fmt: skip


def test_tables_show_units_intervals_and_what_was_not_reached(tmp_path: Path):
    text = text_of(render_comparison(compare(three_policies(tmp_path), "traditional"), 80))
    assert "difference [points]" in text
    assert "+15.0 ± 63.5" in text
    assert "by 1 of 2" in text
    assert "+62.5 ± 0.0" in text
    assert "the target is the reference's last accuracy" in " ".join(text.split())
    assert "+10.0 … +20.0" in text
    assert "2 of 2" in text
    assert max(map(len, text.splitlines())) <= 80
    single = [load_run(tmp_path / "t0"), load_run(tmp_path / "w0")]
    text = text_of(render_comparison(compare(single), 80))
    assert "±" not in text
    assert "not reached" in text


def test_run_report(tmp_path: Path):
    report = report_run(write_run(tmp_path / "run", "alternating", 3, [0.5, 0.8, 0.7]))
    assert report.finished
    assert report.best_accuracy == 0.8
    assert report.jain == pytest.approx(1 / 3)  # only device 2 delivers
    assert report.gap_median == pytest.approx(0.01)
    assert report.decide_median_s == 0.25
    sensor, vehicle = report.kinds
    assert (sensor.devices, sensor.scheduled, sensor.module_mean) == (1, 0, None)
    assert (vehicle.devices, vehicle.scheduled, vehicle.delivered, vehicle.module_mean) == (2, 6, 3, 1.5)
    assert vehicle.energy_j == pytest.approx(4.5)
    text = text_of(render_run(report))
    assert "12.00 J" in text
    assert "60.0 % of the budget" in text
    with RunFolder.create(tmp_path / "m4", {}, {"policy": {"label": "traditional-m4"}}) as folder:
        folder.append_round(round_row(0), [device_row(0, 0)], TIMES | {"t": 0})
    assert report_run(tmp_path / "m4").summary["policy"] == "traditional-m4"
    unfinished = report_run(write_run(tmp_path / "half", "alternating", 3, [0.5], ended=False))
    assert math.isnan(unfinished.summary["budget_j"])
    assert unfinished.summary["wall_s"] == 5.0
    assert elapsed_s([{"wall_s": 2.0}, {"wall_s": 3.0}]) == 5.0  # rows of an older airtune
    assert elapsed_s([]) == 0.0
    assert "1 rounds so far" in text_of(render_run(unfinished))


def test_numbers_and_bars():
    assert [number(x, "J") for x in (0.0, -12.34, 1e6, math.inf, math.nan)] == [
        "0.00 J", "-12.3 J", "1,000,000 J", "∞ J", "–",
    ]  # fmt: skip
    assert bars([0, 1, 8]) == " ▁█"
    assert bars([0, 0]) == "  "


def test_arrays_for_figures():
    rows = [round_row(t, accuracy=a) for t, a in enumerate([None, 0.6, None, 0.8])]
    t, spent_j, accuracy = evaluated(rows)
    assert (t.tolist(), spent_j.tolist(), accuracy.tolist()) == ([2, 4], [8.0, 16.0], [0.6, 0.8])
    values = table([device_row(t, k, gain=10 * t + k) for t in (0, 1) for k in (2, 0, 5)], "gain")
    assert values.tolist() == [[0.0, 2.0, 5.0], [10.0, 12.0, 15.0]]


def test_figures_are_drawn_and_reproducible(tmp_path: Path):
    path = write_run(tmp_path / "run", "alternating", 0, [0.5, None, 0.7])
    files = plot_run(path)
    assert sorted(file.name for file in files) == sorted(
        f"{name}.{kind}"
        for name in ("accuracy", "accuracy_energy", "queues", "modules", "gains")
        for kind in ("png", "svg")
    )
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files if file.suffix == ".png")
    before = {file: file.read_bytes() for file in files}
    plot_run(path)
    assert {file: file.read_bytes() for file in files} == before
    with pytest.raises(AirtuneError, match="no finished round"):
        plot_run(write_run(tmp_path / "empty", "alternating", 0, [], ended=False))


def test_comparison_picture(tmp_path: Path):
    three_policies(tmp_path)
    png, svg = plot_compare([tmp_path / name for name in ("a0", "a1", "t0", "t1")], tmp_path / "out", "traditional")
    assert png.stat().st_size > 10_000
    assert "<svg" in svg.read_text()
