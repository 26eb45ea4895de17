"""A real federation on this machine against the simulated one, and under faults; needs Flower (docs/deploy.md).

    python -m benchmarks.study_deploy equal REAL_RUN SIMULATED_RUN
    python -m benchmarks.study_deploy faults --out runs/faults [--kills 20 --rounds 10]
    python -m benchmarks.study_deploy links [DEPLOYMENT]

equal compares rows and weights. faults runs some honest devices, one whose updates are garbage, huge, NaN,
wrongly shaped or oversized in turn, and one with a key that is not listed; meanwhile random processes, of devices and
of the server, are killed with SIGKILL. It then checks that the run ended, that every round has its rows, that nothing
of the bad device was delivered, and that the weights are finite. links takes the uploads of a deployment with emulated
links into experiments/results/links; without one it shows the table of those that are there.
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from airtune.deploy.emulation import ROWS, read_uploads, told_by
from airtune.record import RunFolder
from airtune.tables import number
from airtune.types import AirtuneError

UPLOADS = Path("experiments/results/links")
LARGEST_DIFFERENCE = 1e-4
"""Between the weights of the two runs, relative to their norm, and between their rows."""


def equal(real: Path, simulated: Path) -> None:
    """Stop unless both runs did the same."""
    ours, theirs = RunFolder.open(real), RunFolder.open(simulated)
    worst = 0.0
    for kind in ("read_rounds", "read_devices"):
        mine, yours = getattr(ours, kind)(), getattr(theirs, kind)()
        if len(mine) != len(yours):
            raise SystemExit(f"{kind}: {len(mine)} rows against {len(yours)}")
        for row, expected in zip(mine, yours, strict=True):
            for name, value in expected.items():
                worst = max(worst, apart(row[name], value, f"round {row['t']}, {name}"))
    a, b = load_file(real / "state.safetensors"), load_file(simulated / "state.safetensors")
    if a.keys() != b.keys():
        raise SystemExit(f"tensors: {sorted(a.keys() ^ b.keys())[0]} is in one of the runs only")
    norm = sum(float(tensor.double().square().sum()) for tensor in b.values()) ** 0.5
    diff = sum(float((a[name].double() - tensor.double()).square().sum()) for name, tensor in b.items())
    print(f"rows differ by {worst:.1e} at most, weights by {diff**0.5 / norm:.1e} of their norm")
    if not (worst <= LARGEST_DIFFERENCE and diff**0.5 / norm <= LARGEST_DIFFERENCE):
        raise SystemExit("the runs are not the same")


def apart(one: Any, other: Any, where: str) -> float:
    """Relative difference of two values of a row."""
    match other:
        case float():
            far = abs(one - other) / max(abs(other), 1e-12)
            return far if math.isfinite(far) else math.inf
        case list():
            return max((apart(a, b, where) for a, b in zip(one, other, strict=True)), default=0.0)
        case dict():
            return max((apart(one[key], other[key], where) for key in other), default=0.0)
        case _ if one == other:
            return 0.0
    raise SystemExit(f"{where}: {one!r} against {other!r}")


def spoiled(answer: bytes, turns: Iterator[int]) -> bytes:
    """A bad answer in place of an update, a turn for each; reports are left alone, so that there is something to do."""
    from airtune.deploy.messages import answer_of, part_of
    from airtune.deploy.wire import pack

    told, tensors = answer_of(answer)
    if told.kind != "update":
        return answer
    delta = part_of(tensors, "delta/")
    match next(turns) % 5:
        case 0:
            return os.urandom(5_000)
        case 1:
            change = {name: torch.full_like(tensor, 1e20) for name, tensor in delta.items()}
        case 2:
            change = {name: torch.full_like(tensor, torch.nan) for name, tensor in delta.items()}
        case 3:
            change = {name: tensor.flatten() for name, tensor in delta.items()}
        case _:
            return answer + b"\0" * 10_000_000
    import dataclasses

    return pack(dataclasses.asdict(told), {f"delta/{name}": tensor for name, tensor in change.items()})


def rogue(file: Path) -> None:
    """The bad device's process."""
    from airtune.deploy import device

    turns = itertools.count()

    def spoil(real: Any) -> Any:
        def answer(self: Any, blob: bytes) -> bytes:
            return spoiled(real(self, blob), turns)

        return answer

    from airtune.deploy.trainer import Trainer

    Trainer.answer = spoil(Trainer.answer)
    device.join(file)


def processes(folder: Path) -> dict[str, list[int]]:
    """Processes of the deployment in that folder, by what they are."""
    found: dict[str, list[int]] = {"device": [], "supernode": [], "rounds": [], "superlink": []}
    needles = {"device": "deploydevice", "supernode": "flower-supernode", "superlink": "deploy.flower.superlink"}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().replace(b"\0", b"").decode(errors="replace")
            home = (place / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(folder) in home + command:
            for kind, needle in needles.items():
                if needle in command:
                    found[kind].append(int(place.name))
    try:
        found["rounds"] = [int((folder / "state" / "server.pid").read_text())]
    except (OSError, ValueError):
        pass
    return found


def killer(folder: Path, kills: int, seed: int, over: threading.Event, done: Counter[str]) -> None:
    """Kill random processes, one after another has had time to come back."""
    draw = random.Random(seed)
    while sum(done.values()) < kills and not over.wait(draw.uniform(5.0, 60.0)):
        found = {kind: pids for kind, pids in processes(folder).items() if pids}
        if found and (folder / "run" / "rounds.jsonl").exists():
            kind = draw.choice(sorted(found))
            try:
                os.kill(draw.choice(found[kind]), signal.SIGKILL)
            except ProcessLookupError:
                continue
            done[kind] += 1
            print(f"{time.strftime('%X')} killed: {kind}", flush=True)


def faults(given: argparse.Namespace) -> None:
    """The study; stops with what is wrong, if anything is."""
    from airtune.deploy.children import ends_on_sigterm
    from airtune.deploy.config import ServerConfig, checked
    from airtune.deploy.flower.keys import write_device_key
    from airtune.deploy.folder import slots_of, write_folder
    from airtune.deploy.local import device_command, run_local
    from airtune.settings import override, read_config

    folder = given.out.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    settings = ["--fleet.devices", str(given.honest + 2), "--rounds", str(given.rounds), "--policy.name", "traditional"]
    settings += ["--policy.module", "1", "--fleet.budget-scale", "100", "--world.deadline-s", "60"]
    config = override(read_config("demo"), settings)
    values = {
        "address": f"localhost:{given.port}",
        "secure": False,
        "min_devices": given.honest,
        "device": slots_of(config),
    }
    server = checked({**values, "overhead_s": given.overhead_s, "report_s": 240.0}, ServerConfig, "study")
    write_folder(folder, config, server, secure=True, shares=True, threads=1)
    write_device_key(folder / "devices" / f"device-{given.honest + 1}" / "device.key", folder / "unlisted.pub")

    def command(file: Path) -> list[str]:
        if file.parent.name == f"device-{given.honest}":
            return [sys.executable, "-m", "benchmarks.study_deploy", "rogue", str(file)]
        return device_command(file)

    ends_on_sigterm()
    over, done = threading.Event(), Counter[str]()
    thread = threading.Thread(target=killer, args=(folder, given.kills, given.seed, over, done))
    thread.start()
    try:
        run_local(folder, command)
    finally:
        over.set()
        thread.join()
    judge(folder, config.rounds, given.honest, done, given.kills)


def judge(folder: Path, rounds: int, bad: int, done: Counter[str], kills: int) -> None:
    """Tell what happened, and stop if anything wrong got in or is not in the record."""
    run = RunFolder.open(folder / "run")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    devices, state = run.read_devices(), load_file(folder / "run" / "state.safetensors")
    lost = Counter(row["lost"].split(":")[0] for row in devices if row["lost"])
    print(f"{rounds} rounds, killed {dict(done)}, lost {dict(lost)}")
    print("events", dict(Counter(event["event"] for event in events)))
    died = sum(event["event"] == "died" for event in events)
    checks = {
        f"{kills} processes were killed": sum(done.values()) == kills,
        "as many deaths are in the record, but for SuperNodes": died >= kills - done["supernode"],
        "all kinds of bad updates came": {"malformed", "too large", "not finite", "wrongly shaped", "oversized"}
        <= set(lost),
        "every round has its rows": [row["t"] for row in run.read_rounds()] == list(range(rounds)),
        "nothing of the bad device was delivered": not any(row["delivered"] for row in devices if row["device"] == bad),
        "the unlisted key never joined": not any(row["module"] for row in devices if row["device"] > bad),
        "it was turned away": any("not listed" in event.get("reason", "") for event in events),
        "weights are finite": all(bool(np.isfinite(tensor.float().numpy()).all()) for tensor in state.values()),
        "what was lost has a reason": all(row["delivered"] or row["lost"] for row in devices if row["module"]),
    }
    for what, right in checks.items():
        print(f"{'yes' if right else 'NO '}  {what}")
    if not all(checks.values()):
        raise SystemExit(1)


def links(deployments: Sequence[Path]) -> None:
    """Keep the uploads of a deployment, and show the table."""
    if deployments:
        UPLOADS.mkdir(parents=True, exist_ok=True)
        shutil.copy(deployments[0] / ROWS, UPLOADS / ROWS)
    print(links_table())


def links_table() -> str:
    """Predicted and measured uploads by size, as docs/deploy.md has them."""
    heads = (
        "payload [kbit]",
        "arrived",
        "lost",
        "predicted [s]",
        "measured [s]",
        "measured / predicted",
        "wire / payload",
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for payload_bit, told in told_by("payload_bit", read_uploads(UPLOADS)).items():
        figures = (told.predicted_s, told.measured_s, told.slower, told.framing)
        shown = " | ".join(number(figure) for figure in figures)
        lines.append(f"| {int(payload_bit) / 1e3:,.0f} | {told.arrived} | {told.lost} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """One of the studies."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("equal", "rogue"):
        own = commands.add_parser(name)
        own.add_argument("paths", type=Path, nargs="+")
    own = commands.add_parser("links")
    own.add_argument("paths", type=Path, nargs="*")
    own = commands.add_parser("faults")
    own.add_argument("--out", type=Path, required=True)
    own.add_argument("--kills", type=int, default=20)
    own.add_argument("--rounds", type=int, default=10)
    own.add_argument("--honest", type=int, default=4)
    own.add_argument("--seed", type=int, default=0)
    own.add_argument("--port", type=int, default=9444)
    own.add_argument("--overhead-s", type=float, default=30.0)
    given = parser.parse_args()
    try:
        match given.command:
            case "equal":
                equal(*given.paths)
            case "rogue":
                rogue(*given.paths)
            case "links":
                links(given.paths)
            case _:
                faults(given)
    except AirtuneError as error:
        raise SystemExit(f"study_deploy: {error}") from None


if __name__ == "__main__":
    main()
