"""Studies of many runs: which runs are left to do, and the page that their rows make."""

import dataclasses
import json
from pathlib import Path

import pytest
from benchmarks import cells, changed, policy_rows, results, study_deploy, study_methods
from benchmarks.cells import Cell, Place
from benchmarks.study_policies import TRIALS, UNTUNED, best_settings, cell_of, told, trials

from airtune.config import RunConfig
from airtune.paired import reach
from airtune.types import AirtuneError


def fake_runs(monkeypatch):
    """Runs that train nothing; returns the seeds that were run."""
    ran = []

    def run_or_resume(config):
        ran.append(config.seed)
        config.out.mkdir(parents=True)
        (config.out / "rounds.jsonl").write_text(json.dumps({"t": 0}) + "\n")
        return {"accuracy": config.seed / 10}

    monkeypatch.setattr(cells.experiment, "run_or_resume", run_or_resume)
    return ran


def accuracy_alone(summary, rounds):
    return {"accuracy": summary["accuracy"], "rounds": len(rounds)}


def test_shards_do_every_run_once_and_a_second_start_does_none(tmp_path, monkeypatch):
    ran = fake_runs(monkeypatch)
    plan = [Cell({"policy": "a, b", "seed": seed}, RunConfig(seed=seed)) for seed in range(5)]
    path = tmp_path / "rows.csv"
    (tmp_path / "rows-old.csv").write_text("policy,seed,accuracy,rounds\nother,9,0.9,1\n")
    for part in (0, 1):
        cells.carry_out(plan, path, Place(None, None, tmp_path / "scratch", (part, 2)), accuracy_alone)
    assert ran == [0, 2, 4, 1, 3]
    rows = cells.read(path)
    assert [(row["seed"], row["accuracy"]) for row in rows] == [(str(s), str(s / 10)) for s in (0, 2, 4, 1, 3)]
    assert not any((tmp_path / "scratch").iterdir())
    cells.carry_out(plan, path, Place(None, None, tmp_path / "scratch", (0, 1)), accuracy_alone)
    assert len(ran) == 5


def test_a_run_that_fails_loses_itself_alone_and_is_tried_again(tmp_path, monkeypatch, capsys):
    ran = fake_runs(monkeypatch)
    good = cells.experiment.run_or_resume

    def one_fails(config):
        if config.seed == 1:
            raise AirtuneError("no draw leaves every device enough")
        return good(config)

    monkeypatch.setattr(cells.experiment, "run_or_resume", one_fails)
    plan = [Cell({"seed": seed}, RunConfig(seed=seed)) for seed in range(3)]
    path, place = tmp_path / "rows.csv", Place(None, None, tmp_path / "scratch", (0, 1), stack=4)
    with pytest.raises(SystemExit, match="1 runs failed"):
        cells.carry_out(plan, path, place, accuracy_alone)
    assert ran == [0, 2] and "failed: 1: no draw leaves" in capsys.readouterr().err
    monkeypatch.setattr(cells.experiment, "run_or_resume", good)
    cells.carry_out(plan, path, place, accuracy_alone)
    assert ran == [0, 2, 1] and [row["seed"] for row in cells.read(path)] == ["0", "2", "1"]


def test_how_many_devices_train_in_one_pass_is_no_other_configuration():
    """It changes rows by rounding alone, so rows of a GPU and of a CPU are of one study."""
    config = RunConfig()
    stacked = dataclasses.replace(config, learning=dataclasses.replace(config.learning, stack=20))
    other = dataclasses.replace(config, learning=dataclasses.replace(config.learning, server_rate=8e-3))
    digests = [Cell({}, each).digest for each in (config, stacked, other)]
    assert digests[0] == digests[1] != digests[2]


def test_every_policy_has_as_many_trials_and_the_best_is_taken():
    """But for the traditional one, which has all four modules."""
    assert {len(settings) for policy, settings in TRIALS.items() if policy != "traditional"} == {4}
    assert len(TRIALS["traditional"]) == 8
    rows = [{key: str(value) for key, value in cell.key.items()} for cell in trials()]
    for row in rows:
        row["accuracy"] = str(0.5 + 0.1 * (TRIALS[row["policy"]].index(row["setting"]) == 2))
    best = best_settings(rows)
    assert all(best[policy] == settings[2] for policy, settings in TRIALS.items())
    assert best["oracle"] == "learning.server_rate=4e-3"  # joint's dial is left out
    assert set(best) == {*TRIALS, *UNTUNED}
    assert "joint" not in best_settings(rows[1:])


def row_of(policy, seed, accuracies, energies, task="sst2", point=""):
    """A row as the study writes it: evaluations every 8 rounds."""
    cell = cell_of(task, policy, "", seed, point)
    steps = [after - before for before, after in zip((0.0, *energies), energies, strict=False)]
    rounds = [
        {"t": t, "accuracy": accuracies[t // 8] if t % 8 == 7 else None, "scheduled": 2, "delivered": 1,
         "energy_compute_j": steps[t // 8] / 32, "energy_transmit_j": 3 * steps[t // 8] / 32, "certificate": None}
        for t in range(8 * len(accuracies))
    ]  # fmt: skip
    summary = {"accuracy": accuracies[-1], "budget_j": 100.0, "max_overspend_ratio": 0.5, "bound": 0.1, "wall_s": 1.0}
    row = cell.key | told(summary | {"module_histogram": [1, 2]}, rounds)
    return {key: "" if value is None else str(value) for key, value in row.items()}


def test_a_row_tells_what_its_run_would():
    (run,) = policy_rows.runs_of([row_of("joint", 0, [0.6, 0.7], [40.0, 80.0], point="world.deadline_s=4")])
    assert [row["accuracy"] for row in run.rounds] == [*[None] * 7, 0.6, *[None] * 7, 0.7]
    assert run.summary["energy_j"] == pytest.approx(80.0)
    assert run.summary["energy_transmit_j"] == pytest.approx(60.0)
    assert run.summary["delivery_rate"] == 0.5
    assert run.config["world"]["deadline_s"] == 4.0
    reached = reach(run.rounds, 0.65)
    assert (reached.energy_j, reached.rounds) == (pytest.approx(60.0), pytest.approx(12.0))


def test_leads_are_paired_and_told_apart_by_their_interval():
    rows = [row_of("traditional", seed, [0.6, 0.70 + 0.02 * seed], [50.0, 100.0]) for seed in range(3)]
    rows += [row_of("joint", seed, [0.8, 0.75 + 0.02 * seed], [50.0, 100.0]) for seed in range(4)]
    rows += [row_of("digest", seed, [0.6, 0.75 + 0.05 * (seed - 1)], [50.0, 100.0]) for seed in range(3)]
    runs = policy_rows.runs_of(rows)
    ours = policy_rows.lead(runs, "joint", "traditional")
    assert ours.difference.n == 3
    assert ours.difference.mean == pytest.approx(0.05)
    assert ours.difference.half_width == pytest.approx(0.0, abs=1e-9)
    assert policy_rows.verdict(ours.difference) == "ahead"
    assert policy_rows.verdict(policy_rows.lead(runs, "traditional", "joint").difference) == "behind"
    assert policy_rows.verdict(policy_rows.lead(runs, "joint", "digest").difference) == "not told apart"
    assert policy_rows.lead(runs, "joint", "random") is None
    # joint passes 0.7, 0.72 and 0.74 with its first 50 J; traditional ends there with 100 J
    assert ours.saving.mean == pytest.approx(0.5)
    table = results.policies_table(runs, rows)
    (line,) = (line for line in table.splitlines() if line.startswith("| `joint`"))
    # joint's four seeds: 75, 77, 79, 81
    assert "| 78.0 ± 4.1 | +5.0 ± 0.0 | 0.100 | +50 ± 0 |" in line
    assert "ahead of `traditional` (+5.0 ± 0.0)" in results.said(runs)
    assert "not be told apart from `digest` (+2.0 ± 7.5)" in results.said(runs)
    assert "+5.0 ± 0.0, ahead, 3 of 3" in results.ablation_table(
        policy_rows.runs_of(
            [*rows, *(row_of("myopic", seed, [0.6, 0.70 + 0.02 * seed], [50.0, 100.0]) for seed in range(3))]
        )
    )
    assert "| – | 0.100 | – | 720.0" in table  # the reference saves nothing against itself
    assert results.bounds(rows) == "- The risk bound is 0.100 under `joint`, higher under all others."
    lower = [row | {"bound": "0.05"} if row["policy"] == "digest" else row for row in rows]
    assert "lower under `digest` (0.0500), higher under the others" in results.bounds(lower)
    told = results.aims(runs)
    assert "8 points over `traditional` at the same energy. Missed: +5.0 ± 0.0." in told
    assert "intervals exclude 0 for `joint` (+50 ± 0 %); by their means none save more" in results.energies(runs)
    assert "is 780.0 % under `joint`, higher under none. Less than nine tenths of its energy went into none" in (
        results.energies(runs)
    )
    assert "30 % less energy to its final accuracy. Met: +50 ± 0 %." in told and "unlimited" not in told
    rows += [row_of("unlimited", seed, [0.8, 0.8 + 0.02 * seed], [50.0, 100.0]) for seed in range(3)]
    assert "`unlimited` is +10.0 ± 0.0 from it" in results.aims(policy_rows.runs_of(rows))


def test_a_seed_that_not_every_policy_has_run_is_left_out():
    rows = [row_of("joint", seed, [0.8], [40.0]) for seed in (0, 1)] + [row_of("digest", 1, [0.7], [40.0])]
    assert [(row["policy"], row["seed"]) for row in policy_rows.whole_seeds(rows)] == [("joint", "1"), ("digest", "1")]
    assert policy_rows.whole_seeds([]) == []


def test_the_words_on_settings_say_where_it_wins_and_the_mean_over_all_that_both_have():
    """Gains of 2 ± 0, −1 ± 0 and seed-dependent points; a setting without the other policy does not count."""
    gains = {"": (0.02,) * 3, "fleet.budget_scale=3": (-0.01,) * 3, "world.deadline_s=4": (0.01, -0.02, 0.04)}
    rows = [
        row_of(policy, seed, [0.5, 0.7 + lead * (policy == "joint")], [50.0, 100.0], point=point)
        for point, leads in gains.items()
        for seed, lead in enumerate(leads)
        for policy in ("joint", "traditional")
    ]
    rows += [row_of("joint", seed, [0.5, 0.9], [50.0, 100.0], point="policy.v=100") for seed in range(3)]
    traditional, switching = changed.words(rows).splitlines()
    assert traditional == (
        "- `joint` to `traditional`: ahead as tuned (+2.0 ± 0.0); behind at `fleet.budget_scale=3` (-1.0 ± 0.0); "
        "not told apart elsewhere. Mean over the 3 settings that both have, paired by seed: +0.7 ± 2.5 points, "
        "positive on 2 of 3 seeds."
    )
    assert switching == "- `joint` to `no-switching`: not run."
    assert changed.overall(list(changed.leads_at(rows, "traditional").values())).mean == pytest.approx(0.02 / 3)
    rows += [row_of("joint", seed, [0.5, 0.69], [20.0, 30.0], point="fleet.budget_scale=0.3") for seed in range(2)]
    assert changed.frugal(rows) == (
        "- `fleet.budget_scale=0.3`, to `traditional` with the whole budget: `joint` -1.0 ± 0.0 points (2 seeds) with "
        "30 % of its energy."
    )
    table = changed.sensitivity_table(rows)
    assert "| `policy.v=100` | 90.0 ± 0.0 | – | – | – | – | – | 50 ± 0 | – | 33 / 67 | 0.100 | 0.500 | 3 |" in table
    assert "| as tuned | 72.0 ± 0.0 | – | 70.0 ± 0.0 | +2.0 ± 0.0 | – |" in table


def test_the_page_is_what_its_rows_say():
    if not (results.RESULTS / "compare.csv").exists():
        pytest.skip("no comparison is kept yet")
    assert results.PAGE.read_text(encoding="utf-8") == results.page(Path(results.RESULTS))


def test_a_run_of_another_configuration_is_done_again(tmp_path, monkeypatch):
    ran = fake_runs(monkeypatch)
    path, place = tmp_path / "rows.csv", Place(None, 1, tmp_path / "scratch", (0, 1))
    for rounds in (2, 2, 3):
        cells.carry_out([Cell({"seed": 4}, RunConfig(seed=4, rounds=rounds))], path, place, accuracy_alone)
    assert ran == [4, 4]


METHODS_PAGE = Path("docs/methods.md")


@pytest.mark.parametrize(("task", "best"), [("sst2", False), ("sst2", True), ("qnli", True)])
def test_the_page_of_methods_has_the_tables_of_the_rows(task, best):
    folder = Path("experiments/results/methods")
    tried, rows = cells.read(folder / "tune-rows.csv"), cells.read(folder / "rows.csv")
    rates = study_methods.best_rates(tried, task) if best else dict.fromkeys(study_methods.ALL, study_methods.COMMON)
    assert set(rates) == set(study_methods.WAYS[task])
    page = {line.strip() for line in METHODS_PAGE.read_text(encoding="utf-8").splitlines()}
    made = study_methods.table(rows, task, rates).splitlines() + study_methods.tried_table(tried, task).splitlines()
    assert {line for line in made if line.startswith("| ")} <= page
    assert "Not run" not in "".join(made)


def test_the_best_rate_of_a_method_is_that_of_its_own_rows_and_the_lower_of_equals():
    grid = study_methods.GRIDS["qnli"]
    rows = [
        {"task": "qnli", "method": "nested", "rate": str(rate), "accuracy": str(accuracy)}
        for rate, accuracy in zip(grid, (0.6, 0.7, 0.7), strict=True)
    ]
    rows += [{"task": "sst2", "method": "nested", "rate": "0.02", "accuracy": "0.9"}]
    rows += [{"task": "qnli", "method": "fedit", "rate": str(grid[0]), "accuracy": "0.9"}]
    assert study_methods.best_rates(rows, "qnli") == {"nested": 0.01}


def test_the_guide_to_deployment_has_the_table_of_the_uploads():
    assert study_deploy.links_table() in Path("docs/deploy.md").read_text(encoding="utf-8")
