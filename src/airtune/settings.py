"""Where a configuration comes from: a preset, a TOML file, the command line; and every mistake in it as one line."""

import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import NoneType
from typing import Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from airtune.config import PolicyConfig, RunConfig
from airtune.types import AirtuneError

UNITS = {
    "bit_per_s_hz": "bit/s/Hz", "dbm_per_hz": "dBm/Hz",
    "hz": "Hz", "s": "seconds", "m": "metres", "j": "joules", "bit": "bits", "db": "dB", "dbm": "dBm",
}  # fmt: skip
"""Units that keys end in, the longer before those that they end in."""


FIXED = ("traditional", "random", "round-robin", "best-channel", "no-switching", "unlimited")
"""Policies that keep to one module, `policy.module`."""


def dump(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values."""
    return TypeAdapter(RunConfig).dump_python(config, mode="json")


def load(values: dict[str, Any], where: str = "") -> RunConfig:
    """A configuration from plain values.

    Args:
        values: nested tables.
        where: their source, named first in an error.

    Raises:
        AirtuneError: unknown keys or bad values; all of them, in one line.
    """
    start = f"{where}: " if where else ""
    _refuse_truth(values, _hints(), start)
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise AirtuneError(start + "; ".join(dict.fromkeys(_told(item) for item in details))) from None


def label_of(policy: PolicyConfig) -> str:
    """What a policy is called in folders and tables: its name, that of its file, or NAME-mN if it keeps to module N.

    >>> label_of(PolicyConfig()), label_of(PolicyConfig(name="traditional", module=4))
    ('joint', 'traditional-m4')
    """
    if policy.file is not None:
        return policy.file.stem
    return f"{policy.name}-m{policy.module}" if policy.name in FIXED and policy.module is not None else policy.name


def usual_reference(labels: Sequence[str]) -> str:
    """The policy that others are compared with unless one is named: the first traditional one, else the last.

    >>> usual_reference(["joint", "traditional-m4", "digest"]), usual_reference(["joint", "digest"])
    ('traditional-m4', 'digest')
    """
    return next((label for label in labels if re.fullmatch(r"traditional(-m\d+)?", label)), labels[-1])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key → value of nested tables.

    >>> flat({"seed": 1, "task": {"name": "sst2"}})
    {'seed': 1, 'task.name': 'sst2'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        table = cast("dict[str, Any]", value) if isinstance(value, dict) else None
        found |= {f"{prefix}{key}": value} if table is None else flat(table, f"{prefix}{key}.")
    return found


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
    if name in presets():
        text = (resources.files("airtune") / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        values = tomllib.loads(text)
    else:
        if not Path(name).is_file():
            raise AirtuneError(f"{name}: no such preset or file; presets are {', '.join(presets())}")
        values = read_tables(name)
    return load({"name": Path(name).stem, **values}, name)


def read_tables(name: str) -> dict[str, Any]:
    """The nested tables of a TOML file; raises AirtuneError, in one line, if it cannot be read or is none."""
    try:
        return tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise AirtuneError(f"{name}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise AirtuneError(f"{name}: cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise AirtuneError(f"{name}: not valid TOML: {error}") from None


def override(config: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """The configuration with `--table.key value` options in place of some of its values.

    A tuple takes all values that follow; a switch is `--table.key` or `--table.no-key`; `None` clears what may be
    absent. Dashes and underscores are the same, and so are `--key value` and `--key=value`.

    Raises:
        AirtuneError: unknown keys, no value or bad values; in one line.
    """
    values, hints, rest = dump(config), _hints(), list(arguments)
    while rest:
        option, equals, given = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise AirtuneError(f"{option}: not an option; options look like --policy.v 80")
        key = option.removeprefix("--").replace("-", "_")
        positive = ".".join(part.removeprefix("no_") for part in key.split("."))
        if key not in hints and hints.get(positive) is bool and not equals:
            _put(values, positive, False)
            continue
        if key not in hints:
            raise AirtuneError(f"{key}: unknown key{_near(key)}")
        hint, found = hints[key], [given] if equals else []
        while rest and not rest[0].startswith("--") and (_many(hint) or not found):
            found.append(rest.pop(0))
        if not found and hint is not bool:
            raise AirtuneError(f"{key}: needs a value; {option} {_example(config, key)} would be right")
        value: object = found if _many(hint) else found[0] if found else True
        absent = NoneType in typing.get_args(hint) and value in ("None", "none")
        _put(values, key, None if absent else value)
    return load(values)


def comparison(base: RunConfig, policies: str, seeds: int, out: Path) -> tuple[list[RunConfig], list[str]]:
    """The runs of a comparison, seed by seed, and the labels of its policies.

    Args:
        base: the configuration that the runs share.
        policies: separated by commas: values of policy.name, one of `FIXED` also as NAME:MODULE, or Python files
            that define policy(problem).
        seeds: how many, from the base's seed on.
        out: folder of the run folders.

    Raises:
        AirtuneError: no such policy or file, one named twice, or no seed.
    """
    if seeds < 1:
        raise AirtuneError(f"--seeds: at least 1 would be right, got {seeds}")
    names = [policy.strip() for policy in policies.split(",") if policy.strip()]
    if not names:
        raise AirtuneError("--policies: names no policy; joint,traditional would be right")
    chosen = [_under(base, policy) for policy in names]
    labels = [label_of(config.policy) for config in chosen]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise AirtuneError(f"--policies: {twice[0]} is named twice")
    return [
        dataclasses.replace(config, seed=seed, out=out / f"{label}-s{seed}")
        for seed in range(base.seed, base.seed + seeds)
        for config, label in zip(chosen, labels, strict=True)
    ], labels


def _under(base: RunConfig, policy: str) -> RunConfig:
    """The configuration under a policy named as in `comparison`."""
    values = dump(base)
    if policy.endswith(".py"):
        if not Path(policy).is_file():
            raise AirtuneError(f"--policies: there is no file {policy}; give one that defines policy(problem)")
        values["policy"] |= {"name": "file", "file": policy}
        return load(values, "--policies")
    name, colon, module = policy.partition(":")
    if colon and name not in FIXED:
        raise AirtuneError(f"--policies: {policy}: only {', '.join(FIXED)} take a module, as in traditional:4")
    values["policy"] |= {"name": name, "file": base.policy.file if name == "file" else None}
    if colon:
        values["policy"]["module"] = module
    config = load(values, "--policies")
    if config.policy.module is not None and config.policy.module > len(config.modules.ranks):
        raise AirtuneError(f"--policies: {policy}: the family has modules 1 to {len(config.modules.ranks)}")
    return config


def _hints() -> dict[str, Any]:
    """Dotted key → type of every setting."""
    hints: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(RunConfig).items():
        if dataclasses.is_dataclass(hint):
            table = typing.get_type_hints(hint)
            hints |= {f"{name}.{field.name}": table[field.name] for field in dataclasses.fields(hint)}
        else:
            hints[name] = hint
    return hints


def _many(hint: object) -> bool:
    return typing.get_origin(hint) is tuple


def _put(values: dict[str, Any], key: str, value: object) -> None:
    *tables, last = key.split(".")
    for table in tables:
        values = values[table]
    values[last] = value


def _example(config: RunConfig, key: str) -> str:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return " ".join(map(str, cast("tuple[object, ...]", value))) if isinstance(value, tuple) else str(value)


def _refuse_truth(values: dict[str, Any], hints: dict[str, Any], start: str, table: str = "") -> None:
    """Refuse true and false where a number is meant, which Pydantic would read as 1 and 0."""
    for name, value in values.items():
        key = f"{table}{name}"
        if isinstance(value, dict) and not table:
            _refuse_truth(cast("dict[str, Any]", value), hints, start, f"{key}.")
        elif isinstance(value, bool) and key in hints and hints[key] is not bool:
            raise AirtuneError(f"{start}{key}: input should be no truth value, got {str(value).lower()}")


def _near(key: str) -> str:
    """The key that was meant, if one is close."""
    known = list(_hints())
    known += {name.split(".")[0] for name in known if "." in name and "." not in key} - {key}
    close = difflib.get_close_matches(key, known, 1)
    if not close:
        same = [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
        close = same if len(same) == 1 else []
    return f"; did you mean {close[0]}?" if close else "; `airtune run demo --help` lists all keys"


def _told(item: ErrorDetails) -> str:
    """One mistake: key, what it should be, what it is."""
    key = ".".join(str(part) for part in item["loc"] if isinstance(part, int) or part.isidentifier())
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: unknown key{_near(key)}"
    message = re.split(", (?:unable to|got a number)", item["msg"].removeprefix("Value error, "))[0]
    message = message.replace("path for <class 'pathlib.Path'>", "path")
    message = message.replace("a dictionary or an instance of", "a table of the keys of")
    message = re.sub(r"\b\d{10,}\b", lambda number: f"{float(number[0]):g}", message)
    got = "" if isinstance(item["input"], dict) or not key else f", got {item['input']!r}"
    name, unit = key.rsplit(".", 1)[-1], ""
    if item["type"] in ("float_parsing", "int_parsing"):
        word = next((word for end, word in UNITS.items() if name.endswith(f"_{end}")), None)
        unit = f"; give a plain number of {word}" if word else ""
    return f"{key + ': ' if key else ''}{message[:1].lower()}{message[1:]}{got}{unit}"
