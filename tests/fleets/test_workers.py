"""Worker processes: the run is that of one process, bit for bit, and a worker's death is one line."""

import multiprocessing

import pytest
import torch
from safetensors.torch import load_file

from airtune import experiment
from airtune.experiment import resume, run
from airtune.fleets.workers import Job, Workers
from airtune.learning.pupil import Pupil
from airtune.types import AirtuneError


def rows_of(out):
    return [(out / name).read_bytes() for name in ("rounds.jsonl", "devices.jsonl")]


def assert_same(left, right):
    assert rows_of(left) == rows_of(right)
    for name in ("state.safetensors", "adapter/adapter_model.safetensors"):
        mine, theirs = load_file(left / name), load_file(right / name)
        assert mine.keys() == theirs.keys() and len(mine) > 5
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items()), name


def test_two_workers_give_the_run_of_one_process(tiny_config, tmp_path):
    """Rows, checkpoint and adapter; with a measured gradient, which comes back beside the update."""
    same = {"constants": {"source": "estimated"}}
    run(tiny_config(tmp_path / "one", **same))
    run(tiny_config(tmp_path / "two", workers=2, **same))
    assert_same(tmp_path / "one", tmp_path / "two")


def test_a_dead_worker_is_told_in_one_line_and_the_run_resumes(tiny_config, tmp_path):
    run(tiny_config(tmp_path / "whole", policy={"name": "unlimited"}))
    config = tiny_config(tmp_path / "cut", workers=2, policy={"name": "unlimited"})
    real, rounds_begun = experiment.build, []

    def doomed(config, policy=None):
        made = real(config, policy)
        train = made.system.fleet.workers.train

        def killed_in_the_third_round(jobs):
            rounds_begun.append(1)
            if len(rounds_begun) == 3:
                for process in multiprocessing.active_children():
                    process.kill()
            return train(jobs)

        made.system.fleet.workers.train = killed_in_the_third_round
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build", doomed)
        with pytest.raises(AirtuneError, match="a worker process died") as caught:
            run(config)
    assert "\n" not in str(caught.value)
    assert len((tmp_path / "cut" / "rounds.jsonl").read_text().splitlines()) == 2
    resume(tmp_path / "cut")
    assert_same(tmp_path / "whole", tmp_path / "cut")


class Tagging:
    """Stands where the engine stands: says which device it was given, and fails at the fourth."""

    def __init__(self, tokens):
        self.tokens = tokens

    def train(self, start, tokens, *_, **__):
        if start == 3:
            raise AirtuneError("training diverged")
        return tokens[start]


def test_results_come_in_order_and_few_are_ahead():
    """A failure in a worker is raised as it is, after the results before it."""
    workers, begun, got = Workers(2, Tagging, [10, 11, 12, 13, 14, 15]), [], []

    def jobs():
        for device in range(6):
            begun.append(device)
            yield Job(device, 1, Pupil(device, [], None))

    with pytest.raises(AirtuneError, match="training diverged"):
        for job, result in workers.train(jobs()):
            got.append((job.device, result))
            assert len(begun) - len(got) <= 4
    assert got == [(0, 10), (1, 11), (2, 12)]
    workers.close()
