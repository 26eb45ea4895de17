"""What the runs were made of: configuration, commands that make them again, versions and sources."""

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import tomli_w

from airtune.page.data import Member
from airtune.settings import dump, flat, load
from airtune.types import AirtuneError

ELSEWHERE = ("out", "threads", "name")
"""Keys that say where and how a run is carried out, not what it is."""


def settings_text(config: Mapping[str, Any]) -> str:
    """The configuration of a run as TOML, but for its place."""
    return tomli_w.dumps({key: value for key, value in config.items() if key != "out"})


def commands(members: Sequence[Member], file: str = "config.toml") -> list[str]:
    """A command for each run that makes it again from the first one's configuration.

    Raises:
        AirtuneError: a configuration of another version, which this one does not read.

    """
    resolved = [flat(dump(load(dict(member.run.config), member.name))) for member in members]
    found: list[str] = []
    for member, mine in zip(members, resolved, strict=True):
        words = ["airtune", "run", file]
        for key, value in mine.items():
            if key not in ELSEWHERE and value != resolved[0][key]:
                words += [f"--{key.replace('_', '-')}", *_words(value)]
        summary = member.run.summary
        found.append(shlex.join([*words, "--out", f"again/{summary['policy']}-s{summary['seed']}"]))
    return found


def _words(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def surroundings(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a run ran on, as name and text."""
    versions = ", ".join(f"{name} {number}" for name, number in environment.get("versions", {}).items())
    described = [
        (part, environment.get(part, {}).get("description")) for part in ("model", "adapter", "data", "policy")
    ]
    found = [
        ("versions", versions),
        ("commit", environment.get("commit")),
        ("Python", environment.get("python")),
        ("platform", environment.get("platform")),
        *described,
    ]
    return [(name, str(text)) for name, text in found if text]


def setup(members: Sequence[Member]) -> str:
    """The section as HTML."""
    facts = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
                    for name, text in surroundings(members[0].run.environment))  # fmt: skip
    told = f'<div class="box"><table class="facts stack"><tbody>{facts}</tbody></table></div>' if facts else ""
    first = members[0].run
    try:
        lines = escape("\n".join(commands(members)))
        how = f'<p>Save the configuration as <code>config.toml</code>, then:</p><pre class="commands">{lines}</pre>'
    except AirtuneError as error:
        how = f'<p class="note left-out">Left out: commands; {escape(str(error))}.</p>'
    return (
        f"{how}<details><summary>config.toml ({escape(str(first.summary['policy']))}, seed {first.summary['seed']})"
        f'</summary><pre class="config">{escape(settings_text(first.config))}</pre></details>{told}'
    )
