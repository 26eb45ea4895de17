"""Peak memory and time of a run for 20, 1,000 and 10,000 registered devices, of which 20, 200 and 200 are reachable.

Each run has a process of its own, of which the peak is read with those of its workers: proportional set size of the
tree, ten times a second. "added" is the peak over what the process held when model and data were loaded and one round
of the smallest fleet had been run, which is the same for all.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from airtune.build import learner_of
from airtune.config import (
    FleetConfig,
    LearningConfig,
    PartitionConfig,
    PolicyConfig,
    RunConfig,
    TaskConfig,
    WorldConfig,
)
from airtune.experiment import run
from benchmarks.processes import Watch, pss_byte, tree

CASES = ((20, 20), (1_000, 200), (10_000, 200))
"""Registered devices and how many of them can be reached in a round."""


def config_of(registered: int, active: int, given: argparse.Namespace) -> RunConfig:
    """A run; V grows with K, as ω_k falls with it, and the band with the devices that share it."""
    return RunConfig(
        name=f"{registered}",
        rounds=given.rounds,
        threads=given.threads,
        data_dir=given.data_dir,
        task=TaskConfig(
            name="rotten-tomatoes" if given.data_dir is None else "sst2", eval_samples=128, eval_every=given.rounds
        ),
        fleet=FleetConfig(devices=registered, active=None if active == registered else active),
        partition=PartitionConfig(kind="iid", min_samples=1),
        world=WorldConfig(bandwidth_hz=5e4 * active),
        policy=PolicyConfig(v=50.0 * registered),
        learning=LearningConfig(local_steps=2, batch_size=given.batch),
    )


def measure(given: argparse.Namespace) -> None:
    """One run, in this process; prints a line of JSON."""
    registered, active = given.case
    with tempfile.TemporaryDirectory() as place:
        small = dataclasses.replace(config_of(20, 20, given), rounds=1, out=Path(place) / "small")
        learner = learner_of(small)
        run(small)
        gc.collect()
        before = sum(map(pss_byte, tree(os.getpid())))
        out = Path(place) / "run"
        watch = Watch(os.getpid(), 0.1)
        run(dataclasses.replace(config_of(registered, active, given), out=out))
        watch.end()
        rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        timings = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
        disk = sum((out / name).stat().st_size for name in ("devices.jsonl", "state.safetensors"))
    row = {
        "registered": registered,
        "active": active,
        "samples": len(learner.train) / registered,
        "delivered": sum(row["delivered"] for row in rows) / len(rows),
        "peak_byte": watch.peak_byte,
        "added_byte": watch.peak_byte - before,
        "disk_byte": disk,
        "observe_s": median(row["observe_s"] for row in timings[1:] or timings),
        "decide_s": median(row["decide_s"] for row in timings[1:] or timings),
        "train_s": sum(row["execute_s"] for row in timings) / max(sum(row["delivered"] for row in rows), 1),
        "round_s": median(row["wall_s"] - row["evaluate_s"] for row in timings),
    }
    print(json.dumps(row))


def main() -> None:
    """Every case in turn, as a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with GLUE's SST-2; default: rotten-tomatoes from PyPI")
    parser.add_argument("--threads", type=int, help="torch threads; default: all cores")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="samples of a local step, of which a device does two")
    parser.add_argument("--case", type=int, nargs=2, help="registered and reachable devices of one run alone, as JSON")
    given = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("bench_memory reads memory from /proc, which only Linux has")
    if given.case:
        measure(given)
        return
    began = time.perf_counter()
    print(f"{'registered':>10}{'active':>8}{'n_k':>8}{'delivered':>11}{'peak MB':>9}{'added MB':>10}{'disk MB':>9}"
          f"{'observe ms':>12}{'decide ms':>11}{'s/device':>10}{'s/round':>9}")  # fmt: skip
    for registered, active in CASES:
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_memory",
            *sys.argv[1:],
            "--case",
            str(registered),
            str(active),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{registered} devices: {done.stderr.strip().splitlines()[-1]}")
        r = json.loads(done.stdout.splitlines()[-1])
        print(f"{registered:10,}{active:8}{r['samples']:8.0f}{r['delivered']:11.1f}{r['peak_byte'] / 1e6:9.0f}"
              f"{r['added_byte'] / 1e6:10.1f}{r['disk_byte'] / 1e6:9.1f}{1e3 * r['observe_s']:12.1f}"
              f"{1e3 * r['decide_s']:11.1f}{r['train_s']:10.3f}{r['round_s']:9.1f}", flush=True)  # fmt: skip
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
