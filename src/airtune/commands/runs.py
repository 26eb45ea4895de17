"""`airtune run`, `resume`, `compare` and `export`."""

import contextlib
import dataclasses
from collections.abc import Generator
from pathlib import Path

import tyro

from airtune.commands.arguments import name_first, options, parse, quiet_libraries, settings_of, split
from airtune.commands.many import Compared, finish
from airtune.commands.shown import report, tell
from airtune.logs.log import RunLog, log_of
from airtune.settings import comparison


def run_command(arguments: list[str]) -> None:
    """airtune run NAME_OR_FILE [settings] [--log TOOL[:TARGET]]."""
    name = name_first(arguments, "run")
    if {"-h", "--help"} & set(arguments):
        print(LOG_HELP)
    own, rest = split(arguments, {"log"})
    spec = parse(_Log, own, f"airtune run {name}").log
    config, log = settings_of(name, rest, f"airtune run {name}"), _log(spec)
    quiet_libraries()
    from airtune.experiment import out_of, run

    path = out_of(config)
    with _resumable(path):
        run(config, log=log)
    report(path)


LOG_HELP = """--log TOOL[:TARGET] copies every round's values to tensorboard[:DIR], mlflow[:TRACKING_URI],
wandb[:PROJECT], trackio[:PROJECT] or prometheus[:[HOST:]PORT]; besides it there are the settings:
"""


@dataclasses.dataclass
class _Log:
    log: str | None = None


def _log(spec: str | None) -> RunLog | None:
    """The log that --log asks for."""
    return None if spec is None else log_of(spec)


@dataclasses.dataclass
class _RunPath:
    """Finish an interrupted run, bit-identically to one that was never interrupted."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    log: str | None = None
    """TOOL or TOOL:TARGET, as in `airtune run`: copies every round's values there."""


def resume_command(arguments: list[str]) -> None:
    """airtune resume RUN [--log TOOL[:TARGET]]."""
    asked = parse(_RunPath, arguments, "airtune resume")
    path, log = asked.run, _log(asked.log)
    quiet_libraries()
    from airtune.experiment import resume

    with _resumable(path):
        resume(path, log=log)
    report(path)


@contextlib.contextmanager
def _resumable(path: Path) -> Generator[None]:
    """Tell, if Ctrl-C is pressed, how the run goes on."""
    try:
        yield
    except KeyboardInterrupt:
        begun = (path / "run.json").exists()
        how = f"`airtune resume {path}` goes on from the last finished round" if begun else "nothing is written yet"
        raise KeyboardInterrupt(how) from None


@dataclasses.dataclass
class _Compare(Compared):
    """The same channels, splits and initial weights under several policies; every setting of `airtune run` applies.

    Run again, it keeps finished runs and finishes interrupted ones.
    """

    jobs: int = 1
    """Runs side by side, in processes of their own (Ray)."""


def compare_command(arguments: list[str]) -> None:
    """airtune compare NAME_OR_FILE [options and settings]."""
    name = name_first(arguments, "compare")
    prog = f"airtune compare {name}"
    asked, rest = options(_Compare, arguments, prog)
    base = settings_of(name, rest, prog)
    out = base.out or Path("runs") / f"compare-{base.name}"
    configs, labels = comparison(base, asked.policies, asked.seeds, out)
    reference = asked.checked_reference(labels)
    finished = finish(configs, asked.jobs, asked.ray_address, asked.log)
    if finished.configs:
        there = [config.out for config in finished.configs if config.out is not None]
        tell(there, out, reference, asked.target, partial=True)
    finished.tell_lost()


@dataclasses.dataclass
class _Export:
    """Write a run's adapter as a standard PEFT folder, which `PeftModel.from_pretrained` loads, or a merged model."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """Folder to write."""
    merged: bool = False
    """Write a plain Transformers model with the adapter merged into it, which needs no PEFT."""


def export_command(arguments: list[str]) -> None:
    """airtune export RUN --out DIR [--merged]."""
    asked = parse(_Export, arguments, "airtune export")
    quiet_libraries()
    from airtune.experiment import export

    print(export(asked.run, asked.out, merged=asked.merged))
