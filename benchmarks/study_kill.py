"""Kill a run again and again at random moments, resume it, and compare it with one that was never killed.

    python -m benchmarks.study_kill --kills 20 --preset demo [--seed 0] [--keep DIR] [any setting of `airtune run`]

Every kill is SIGKILL to a whole process, at a moment drawn evenly over the life of an uninterrupted one, loading and
the final export included. A run that reaches its end is compared file by file (tensors bit by bit; only wall times and
figures are left out) and another is begun, until all kills are made. Exits with 1 if anything differs.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

AIRTUNE = [sys.executable, "-c", "import sys; from airtune.cli import run_cli; sys.exit(run_cli(sys.argv[1:]))"]
RUN = Path("run")
"""Every run's folder, each in a folder of its own, so that the configurations are equal to the byte."""


def command(folder: Path, preset: str, settings: list[str]) -> list[str]:
    """Begin the run, or go on with it."""
    if (folder / RUN / "run.json").exists():
        return [*AIRTUNE, "resume", str(RUN)]
    return [*AIRTUNE, "run", preset, *settings, "--out", str(RUN)]


def live(folder: Path, arguments: list[str], until_s: float | None) -> tuple[bool, float]:
    """Run a process in `folder` and kill it after `until_s` seconds; whether it ended by itself, and its life [s]."""
    began = time.perf_counter()
    with subprocess.Popen(arguments, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, told = process.communicate(timeout=until_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return False, time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"airtune failed by itself in {folder}:\n{told.decode()}")
    return True, time.perf_counter() - began


def found(run: Path) -> tuple[int, int, str]:
    """What a kill left: whole round rows, whole device rows, and what else there is to see."""
    whole = [(run / name).read_bytes() if (run / name).exists() else b"" for name in ("rounds.jsonl", "devices.jsonl")]
    signs = ["torn row" for rows in whole if rows and not rows.endswith(b"\n")]
    signs += [f"left-over {path.name}" for path in sorted(run.glob(".*.tmp"))]
    signs += ["finished" if (run / "summary.json").exists() else "", "" if run.exists() else "nothing written yet"]
    return whole[0].count(b"\n"), whole[1].count(b"\n"), ", ".join(filter(None, signs))


def content(path: Path) -> Any:
    """A file as it is compared: bytes, but for a summary's wall time and the order of an adapter's target modules."""
    match path.name:
        case "summary.json":
            return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "wall_s"}
        case "adapter_config.json":
            values = json.loads(path.read_bytes())
            return values | {key: sorted(values[key]) for key in ("target_modules", "modules_to_save")}
        case _:
            return path.read_bytes()


def compared(run: Path) -> dict[str, Any]:
    """Every file of a finished run but wall times, figures and the lock."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    names = {str(path.relative_to(run)): path for path in files}
    return {
        name: content(path)
        for name, path in names.items()
        if name not in ("timings.jsonl", ".lock") and not name.startswith("plots/")
    }


def differences(run: Path, reference: Path) -> list[str]:
    """Names of the files that differ or that only one of the runs has."""
    mine, theirs = compared(run), compared(reference)
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name, ...) != theirs.get(name, ...))


def study(work: Path, preset: str, settings: list[str], kills: int, draw: random.Random) -> int:
    """Make the kills, print a line for each, and return how many finished runs differ from the uninterrupted one."""
    reference = work / "reference"
    reference.mkdir()
    _, whole_s = live(reference, command(reference, preset, settings), None)
    rounds = len((reference / RUN / "rounds.jsonl").read_bytes().splitlines())
    print(f"uninterrupted: {rounds} rounds in {whole_s:.1f} s, {len(compared(reference / RUN))} files to compare\n")
    print(f"{'kill':>4}  {'run':>3}  {'killed after':>12}  {'rows: rounds':>12}  {'devices':>7}  found")
    made, number, worse = 0, 0, 0
    while made < kills:
        number += 1
        folder = work / f"killed-{number}"
        folder.mkdir()
        ended = False
        while not ended:
            until_s = draw.uniform(0.0, whole_s) if made < kills else None
            ended, life_s = live(folder, command(folder, preset, settings), until_s)
            if not ended:
                made += 1
                rows, device_rows, signs = found(folder / RUN)
                print(f"{made:>4}  {number:>3}  {life_s:>10.2f} s  {rows:>12}  {device_rows:>7}  {signs}", flush=True)
        wrong = differences(folder / RUN, reference / RUN)
        worse += bool(wrong)
        print(
            f"      {number:>3}  ended: " + (f"DIFFERS in {', '.join(wrong)}" if wrong else "bit-identical"), flush=True
        )
    print(f"\n{made} kills over {number} runs, {number - worse} of {number} bit-identical to the uninterrupted run")
    return worse


def main() -> int:
    """Read the options and run the study in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--preset", default="demo", help="a preset or a TOML file")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--keep", type=Path, help="folder for the runs, kept; a temporary one otherwise")
    asked, settings = parser.parse_known_args()
    preset = str(Path(asked.preset).absolute()) if Path(asked.preset).is_file() else asked.preset
    work = asked.keep or Path(tempfile.mkdtemp(prefix="airtune-kill-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        return 1 if study(work, preset, settings, asked.kills, random.Random(asked.seed)) else 0
    finally:
        if asked.keep is None:
            shutil.rmtree(work)


if __name__ == "__main__":
    sys.exit(main())
