"""Reading the arguments of a command; every mistake in them as one line."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Collection
from typing import Any, TypeVar, cast

import tyro

from airtune.config import RunConfig
from airtune.settings import override, presets, read_config
from airtune.types import AirtuneError

Options = TypeVar("Options")


def settings_of(name: str, arguments: list[str], prog: str) -> RunConfig:
    """A preset or TOML file with `--key value` overrides; `--help` lists every setting and exits."""
    if {"-h", "--help"} & set(arguments):
        tyro.cli(RunConfig, args=["--help"], prog=prog, default=read_config(name))
    return override(read_config(name), arguments)


def parse(kind: Any, arguments: list[str], prog: str) -> Any:
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


def name_first(arguments: list[str], command: str) -> str:
    """The preset or TOML file that a command starts with, taken off its arguments."""
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["--help"], ["-h"]):
            return "demo"
        raise AirtuneError(f"{command}: name a preset or a TOML file first ({', '.join(presets())})")
    return arguments.pop(0)


def split(arguments: list[str], names: set[str], switches: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Options of these names with their values, of which switches have none, and the rest."""
    own: list[str] = []
    rest, left = [], list(arguments)
    while left:
        option, equals, _ = left[0].partition("=")
        name = option.removeprefix("--").replace("-", "_") if option.startswith("--") else ""
        mine = name in names
        (own if mine else rest).append(left.pop(0))
        if mine and name not in switches and not equals and left:
            own.append(left.pop(0))
    return own, rest


def options(
    kind: type[Options], arguments: list[str], prog: str, switches: Collection[str] = ()
) -> tuple[Options, list[str]]:
    """A command's own options, parsed, and the settings that are left; `--help` tells of the command's own and exits.

    Args:
        kind: dataclass of the options.
        arguments: after the preset or file.
        prog: what the command is called.
        switches: options that take no value.
    """
    own, rest = split(arguments, {field.name for field in dataclasses.fields(cast("Any", kind))}, switches)
    if {"-h", "--help"} & set(arguments):
        own, rest = ["--help"], []
    return parse(kind, own, prog), rest


def quiet_libraries() -> None:
    """Before the libraries load: no noise from them, and a sign of life on a terminal."""
    if sys.stdout.isatty():
        print("loading …", end="\r", flush=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
