"""The command line: run, resume, compare, show, export, presets."""

import contextlib
import dataclasses
import io
import os
import re
import sys
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import tyro

from airtune.config import RunConfig
from airtune.types import AirtuneError

USAGE = """usage: airtune COMMAND …

  run NAME_OR_FILE [--rounds 30 --seed 3 --policy.v 80 --data-dir DIR --out RUN …]
                         fine-tune under a preset or a TOML file
  resume RUN             finish an interrupted run, bit-identically
  compare NAME_OR_FILE --policies a,b,c --seeds N [--out DIR …]
                         the same channels, splits and initial weights under several policies
  show RUN [RUN …]       tables and plots of a run, or of several side by side
  export RUN --out DIR   the adapter as a standard PEFT folder
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
    except BrokenPipeError:
        return 141
    except OSError as error:
        where = f" {error.filename}:" if error.filename else ""
        print(f"airtune:{where} {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("airtune: interrupted; `airtune resume RUN` goes on from the last finished round", file=sys.stderr)
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
        case "presets":
            _presets()
        case "--help" | "-h" | "help":
            print(USAGE)
        case "--version":
            from importlib.metadata import version

            print(f"airtune {version('airtune')}")
        case _:
            raise AirtuneError(f"no command {command!r}; there are run, resume, compare, show, export and presets")


# Reading what to run


def presets() -> dict[str, str]:
    """Name of each shipped preset and its first comment line."""
    folder = resources.files("airtune") / "presets"
    names = sorted(item.name for item in folder.iterdir() if item.name.endswith(".toml"))
    return {
        name.removesuffix(".toml"): (folder / name).read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        for name in names
    }


def read_config(name: str) -> RunConfig:
    """A preset by name, or a TOML file by path.

    Raises:
        AirtuneError: neither exists, not TOML, unknown keys or bad values; in one line.
    """
    from airtune.experiment import load

    if name in presets():
        text, where = (resources.files("airtune") / "presets" / f"{name}.toml").read_text(encoding="utf-8"), name
    else:
        path = Path(name)
        if not path.is_file():
            raise AirtuneError(f"{name}: no such preset or file; presets are {', '.join(presets())}")
        try:
            text, where = path.read_text(encoding="utf-8"), name
        except UnicodeDecodeError as error:
            raise AirtuneError(f"{name}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise AirtuneError(f"{where}: not valid TOML: {error}") from None
    return load({"name": Path(name).stem, **values}, where)


def _overridden(config: RunConfig, arguments: list[str], prog: str) -> RunConfig:
    """The configuration with `--key value` overrides of the same types and checks."""
    return _parse(RunConfig, arguments, prog, default=config)


def _parse(kind: Any, arguments: list[str], prog: str, default: Any = None) -> Any:
    """Parse with tyro; a mistake becomes one line."""
    told = io.StringIO()
    options = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.OmitSubcommandPrefixes,), **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    raise AirtuneError(_one_line(told.getvalue()) + f" (see `{prog} --help`)")


def _one_line(box: str) -> str:
    """The message inside tyro's drawn box, in one line."""
    rows = [re.sub(r"^[│┃]\s?|\s*[│┃]$", "", row).strip() for row in box.splitlines()]
    rows = [row for row in rows if row and not re.match(r"^[╭╰┌└─━]", row)]
    text = " ".join(rows)
    text = re.split(r"For further information|For full helptext|Perhaps you meant|Argument helptext", text)[0]
    text = re.sub(r"Error parsing (\S+): \d+ validation errors? for \w+", r"\1:", text)
    text = re.sub(r"\[type=\w+, input_value=(.+?), input_type=\w+\]", r"(got \1)", text)
    return " ".join(text.split()).rstrip(" .")


# Commands


def _name_first(arguments: list[str], command: str) -> str:
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["--help"], ["-h"]):
            return "demo"
        raise AirtuneError(f"airtune {command}: name a preset or a TOML file first ({', '.join(presets())})")
    return arguments.pop(0)


def _run(arguments: list[str]) -> None:
    name = _name_first(arguments, "run")
    config = _overridden(read_config(name), arguments, f"airtune run {name}")
    _quiet_libraries()
    from airtune.experiment import out_of, run

    run(config)
    _show([str(out_of(config))])


@dataclasses.dataclass
class _RunPath:
    run: tyro.conf.Positional[Path]
    """Run folder."""


def _resume(arguments: list[str]) -> None:
    path = _parse(_RunPath, arguments, "airtune resume").run
    _quiet_libraries()
    from airtune.experiment import resume

    resume(path)
    _show([str(path)])


@dataclasses.dataclass
class _Compare:
    policies: str = "alternating,traditional"
    """Policies, separated by commas; the first is compared with the second and so on."""
    seeds: int = 1
    """Number of seeds: the configuration's seed and those after it."""
    reference: str | None = None
    """Policy that the others are compared with; the traditional one if it takes part, else the last."""


def _compare(arguments: list[str]) -> None:
    name = _name_first(arguments, "compare")
    own, rest = _split(arguments, {field.name for field in dataclasses.fields(_Compare)})
    asked = _parse(_Compare, own, f"airtune compare {name}")
    base = _overridden(read_config(name), rest, f"airtune compare {name}")
    policies = [policy.strip() for policy in asked.policies.split(",") if policy.strip()]
    if asked.seeds < 1 or not policies:
        raise AirtuneError("airtune compare: --seeds must be at least 1 and --policies name at least one policy")
    reference = asked.reference or ("traditional" if "traditional" in policies else policies[-1])
    if reference not in policies:
        raise AirtuneError(f"airtune compare: --reference {reference} is not among --policies {asked.policies}")
    out = base.out or Path("runs") / f"compare-{base.name}"
    configs = [
        _overridden(
            dataclasses.replace(base, seed=seed, out=out / f"{policy}-s{seed}"),
            ["--policy.name", policy],
            f"airtune compare {name}",
        )
        for seed in range(base.seed, base.seed + asked.seeds)
        for policy in policies
    ]
    _quiet_libraries()
    from airtune.experiment import run_or_resume

    for config in configs:
        run_or_resume(config)
    _tell([config.out for config in configs if config.out is not None], out, reference)


def _split(arguments: list[str], names: set[str]) -> tuple[list[str], list[str]]:
    """Options of these names with their values, and the rest."""
    own: list[str] = []
    rest: list[str] = []
    index = 0
    while index < len(arguments):
        key = arguments[index].split("=")[0].removeprefix("--").replace("-", "_")
        taken = own if arguments[index].startswith("--") and key in names else rest
        taken.append(arguments[index])
        index += 1
        if taken is own and "=" not in arguments[index - 1] and index < len(arguments):
            own.append(arguments[index])
            index += 1
    return own, rest


@dataclasses.dataclass
class _Runs:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; one for a report on it, several for a comparison."""
    out: Path | None = None
    """Folder for a comparison's tables and plots; the first run's parent if not given."""
    reference: str | None = None
    """Policy that the others are compared with."""


def _show(arguments: list[str]) -> None:
    asked = _parse(_Runs, arguments, "airtune show")
    if not asked.runs:
        raise AirtuneError("airtune show: name at least one run folder")
    if len(asked.runs) > 1:
        _tell(list(asked.runs), asked.out or asked.runs[0].parent, asked.reference)
        return
    from rich.console import Console

    from airtune.plots import plot_run
    from airtune.report import report_run
    from airtune.tables import render_run

    path = asked.runs[0]
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
    return ", ".join(os.path.relpath(path) for path in paths)


@dataclasses.dataclass
class _Export:
    run: tyro.conf.Positional[Path]
    """Run folder."""
    out: Path
    """Folder to write."""


def _export(arguments: list[str]) -> None:
    asked = _parse(_Export, arguments, "airtune export")
    _quiet_libraries()
    from airtune.experiment import export

    print(export(asked.run, asked.out))


def _presets() -> None:
    for name, text in presets().items():
        print(f"{name:10} {text}")


def _quiet_libraries() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
