"""The command line: run, resume, compare, show, export, presets."""

import contextlib
import dataclasses
import importlib.metadata
import io
import os
import re
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from airtune.config import RunConfig
from airtune.settings import comparison, override, presets, read_config
from airtune.types import AirtuneError

USAGE = """usage: airtune COMMAND …

  run NAME_OR_FILE [--rounds 30 --seed 3 --policy.v 80 --data-dir DIR --out RUN …]
                         fine-tune under a preset or a TOML file
  resume RUN             finish an interrupted run, bit-identically
  compare NAME_OR_FILE --policies a,b,c --seeds N [--out DIR …]
                         the same channels, splits and initial weights under several policies,
                         named as policy.name or as your own Python files
  show RUN [RUN …]       tables and plots of a run, or of several side by side
  export RUN --out DIR   the adapter as a standard PEFT folder
  verify [--instances 10000 --seed 0 --out DIR]
                         the bounds against exact gaps on thousands of problems with known constants
  presets                what NAME can be

airtune COMMAND --help tells more; airtune run demo --help lists every setting with its unit."""


def main() -> None:
    """Entry point; the exit code is 0, 2 for a mistake in the input, 130 for Ctrl-C."""
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: Sequence[str]) -> int:
    """Carry out one command line and return its exit code."""
    try:
        _dispatch(list(arguments))
    except AirtuneError as error:
        print(f"airtune: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    except BrokenPipeError:
        return 141
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        print(f"airtune:{where} {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"airtune: interrupted{f'; {stop}' if str(stop) else ''}", file=sys.stderr)
        return 130
    return 0


def _dispatch(arguments: list[str]) -> None:
    command = arguments.pop(0) if arguments else "--help"
    match command:
        case "run":
            _run(arguments)
        case "resume":
            _resume(arguments)
        case "compare":
            _compare(arguments)
        case "show":
            _show(arguments)
        case "export":
            _export(arguments)
        case "verify":
            from airtune.commands_verify import verify_command

            verify_command(arguments)
        case "presets":
            print("\n".join(f"{name:10} {text}" for name, text in presets().items()))
        case "--help" | "-h" | "help":
            print(USAGE)
        case "--version":
            print(f"airtune {importlib.metadata.version('airtune')}")
        case _:
            raise AirtuneError(
                f"no command {command!r}; there are run, resume, compare, show, export, verify and presets"
            )


# Reading arguments


def _settings(name: str, arguments: list[str], prog: str) -> RunConfig:
    """A preset or TOML file with `--key value` overrides; `--help` lists every setting and exits."""
    if {"-h", "--help"} & set(arguments):
        tyro.cli(RunConfig, args=["--help"], prog=prog, default=read_config(name))
    return override(read_config(name), arguments)


def _parse(kind: Any, arguments: list[str], prog: str) -> Any:
    """Parse a command's own few options with tyro; a mistake becomes one line."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=arguments, prog=prog)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise AirtuneError(f"{prog.removeprefix('airtune ')}: {_one_line(told.getvalue())} (see `{prog} --help`)")


def _one_line(box: str) -> str:
    """The message inside tyro's drawn box, in one line."""
    rows = [re.sub(r"^[│┃]\s?|\s*[│┃]$", "", row).strip() for row in box.splitlines()]
    titled = "╭" not in box
    rows = [row for row in rows if row and not re.match(r"[╭╰┌└]|[─━-]{3}", row)][titled:]
    text = re.split(r" For full helptext| Perhaps you meant| Argument helptext", " ".join(" ".join(rows).split()))[0]
    text = re.sub(r"Missing from [^:]+: (.*) \(required\).*", r"missing: \1", text).rstrip(" .")
    return text[:1].lower() + text[1:]


# Commands


def _name_first(arguments: list[str], command: str) -> str:
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["--help"], ["-h"]):
            return "demo"
        raise AirtuneError(f"{command}: name a preset or a TOML file first ({', '.join(presets())})")
    return arguments.pop(0)


def _run(arguments: list[str]) -> None:
    name = _name_first(arguments, "run")
    config = _settings(name, arguments, f"airtune run {name}")
    _quiet_libraries()
    from airtune.experiment import out_of, run

    path = out_of(config)
    with _resumable(path):
        run(config)
    _report(path)


@dataclasses.dataclass
class _RunPath:
    """Finish an interrupted run, bit-identically to one that was never interrupted."""

    run: tyro.conf.Positional[Path]
    """Run folder."""


def _resume(arguments: list[str]) -> None:
    path = _parse(_RunPath, arguments, "airtune resume").run
    _quiet_libraries()
    from airtune.experiment import resume

    with _resumable(path):
        resume(path)
    _report(path)


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
class _Compare:
    """The same channels, splits and initial weights under several policies; every setting of `airtune run` applies.

    Run again, it keeps finished runs and finishes interrupted ones.
    """

    policies: str = "alternating,traditional"
    """Separated by commas: names of policy.name, traditional:N for module N, or Python files with policy(problem)."""
    seeds: int = 1
    """Number of seeds: the configuration's seed and those after it."""
    reference: str | None = None
    """Policy that the others are compared with; the first traditional one if any takes part, else the last."""


def _compare(arguments: list[str]) -> None:
    name = _name_first(arguments, "compare")
    prog = f"airtune compare {name}"
    own, rest = _split(arguments, {field.name for field in dataclasses.fields(_Compare)})
    if {"-h", "--help"} & set(arguments):
        own, rest = ["--help"], []
    asked = _parse(_Compare, own, prog)
    base = _settings(name, rest, prog)
    out = base.out or Path("runs") / f"compare-{base.name}"
    configs, labels = comparison(base, asked.policies, asked.seeds, out)
    traditional = (label for label in labels if re.fullmatch(r"traditional(-m\d+)?", label))
    reference = (asked.reference or next(traditional, labels[-1])).replace(":", "-m")
    if reference not in labels:
        raise AirtuneError(f"--reference: no policy {reference} among --policies; there are {', '.join(labels)}")
    _quiet_libraries()
    from airtune.experiment import run_or_resume

    for number, config in enumerate(configs, 1):
        try:
            run_or_resume(config, f"[{number}/{len(configs)}] ")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same `airtune compare` again goes on from the last finished round") from None
    _tell([config.out for config in configs if config.out is not None], out, reference)


def _split(arguments: list[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Options of these names with their values, and the rest."""
    own: list[str] = []
    rest, left = [], list(arguments)
    while left:
        option, equals, _ = left[0].partition("=")
        mine = option.startswith("--") and option.removeprefix("--").replace("-", "_") in names
        (own if mine else rest).append(left.pop(0))
        if mine and not equals and left:
            own.append(left.pop(0))
    return own, rest


@dataclasses.dataclass
class _Runs:
    """Tables and plots of one run, or of several side by side."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; one for a report on it, several for a comparison."""
    out: Path | None = None
    """Folder for a comparison's tables and plots; the first run's parent if not given."""
    reference: str | None = None
    """Policy that the others are compared with."""


def _show(arguments: list[str]) -> None:
    asked = _parse(_Runs, arguments, "airtune show")
    if not asked.runs:
        raise AirtuneError("show: name at least one run folder")
    if len(asked.runs) > 1:
        _tell(list(asked.runs), asked.out or asked.runs[0].parent, asked.reference)
    else:
        _report(asked.runs[0])


def _report(path: Path) -> None:
    """Table and plots of one run."""
    from rich.console import Console

    from airtune.plots import plot_run
    from airtune.report import report_run
    from airtune.tables import render_run

    Console().print(render_run(report_run(path)))
    print(f"plots: {_listed(plot_run(path))}")


def _tell(paths: list[Path], out: Path, reference: str | None) -> None:
    """Table and plots of a comparison."""
    from rich.console import Console

    from airtune.compare import compare
    from airtune.plots import plot_compare
    from airtune.report import load_run
    from airtune.tables import render_comparison, write_comparison

    comparison = compare([load_run(path) for path in paths], reference)
    console = Console()
    console.print(render_comparison(comparison, console.width))
    print(f"tables: {_listed(write_comparison(comparison, out))}")
    print(f"plots: {_listed(plot_compare(paths, out, reference))}")


def _listed(paths: Sequence[Path]) -> str:
    """Files of one folder, without their endings, each name once."""
    return f"{', '.join(dict.fromkeys(path.stem for path in paths))} in {os.path.relpath(paths[0].parent)}"


@dataclasses.dataclass
class _Export:
    """Write a run's adapter as a standard PEFT folder, which `PeftModel.from_pretrained` loads."""

    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """Folder to write."""


def _export(arguments: list[str]) -> None:
    asked = _parse(_Export, arguments, "airtune export")
    _quiet_libraries()
    from airtune.experiment import export

    print(export(asked.run, asked.out))


def _quiet_libraries() -> None:
    """Before the libraries load: no noise from them, and a sign of life on a terminal."""
    if sys.stdout.isatty():
        print("loading …", end="\r", flush=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
