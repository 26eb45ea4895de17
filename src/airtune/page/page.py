"""One self-contained HTML page of runs: style, script, pictures and their numbers are all in it."""

import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from matplotlib.colors import to_hex

from airtune.drawing import module_colours
from airtune.files import write_atomic
from airtune.page.data import Scenario, gather
from airtune.page.figures import Figure, LeftOut, Positions, curves, device_figures, module_count, shown_member
from airtune.page.headline import kind_table, policy_table, run_table, tiles
from airtune.page.setup import setup
from airtune.rows import plain
from airtune.tables import last_name, note_of
from airtune.types import AirtuneError


def write_page(
    paths: Sequence[Path],
    out: Path,
    positions: Positions,
    reference: str | None = None,
    target: float | None = None,
) -> Path:
    """Write the page of some runs; returns its path.

    Args:
        paths: run folders.
        out: HTML file; its folder is made.
        positions: where the devices of a run are, from its configuration.
        reference: policy that the others are compared with; None for the usual one.
        target: accuracy on the dev subset whose energy and time are told; None for the reference's last.

    Raises:
        AirtuneError: no run folder, damaged, a policy with a seed twice, or `out` cannot be written.

    """
    text = page(*gather(paths, reference, target), positions)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, text.encode())
    except OSError as error:
        raise AirtuneError(f"{out}: cannot be written ({error.strerror}); choose another with --out") from None
    return out


def page(scenarios: Sequence[Scenario], empty: Sequence[str], positions: Positions) -> str:
    """The page as HTML."""
    several = len(scenarios) > 1
    sections = "".join(_scenario(scenario, positions, several) for scenario in scenarios)
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in empty)
    title = f"airtune: {', '.join(scenario.title for scenario in scenarios) or 'no finished round'}"
    style, script = (_file(name) for name in ("page.css", "page.js"))
    modules = max((module_count(scenario) for scenario in scenarios), default=1)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title>\n<style>\n{style}{_module_style(modules)}</style></head>\n<body>"
        f"<header><h1>{escape(_heading(scenarios))}</h1>{_subtitle(scenarios)}{notes}</header>\n<main>{sections}</main>"
        '<footer>Written by airtune report from the rows of the runs.</footer><div id="tip"></div>'
        f"\n<script>\n{script}</script></body></html>\n"
    )


def _file(name: str) -> str:
    return (resources.files("airtune") / "page" / name).read_text(encoding="utf-8")


def _module_style(count: int) -> str:
    """Colours of the modules, light to dark on a light page and the other way round on a dark one."""
    light, dark = (
        [to_hex(colour) for colour in module_colours(count + 1, dark=ground)[1:]] for ground in (False, True)
    )

    def rules(colours: Sequence[str]) -> str:
        return "".join(f"svg .m{m}{{fill:{c}}} i.m{m}{{color:{c}}}\n" for m, c in enumerate(colours, 1))

    return f"{rules(light)}@media (prefers-color-scheme: dark) {{\n{rules(dark)}}}\n"


def _heading(scenarios: Sequence[Scenario]) -> str:
    if not scenarios:
        return "No finished round yet"
    if len(scenarios) > 1:
        return f"{len(scenarios)} scenarios"
    policies = list(scenarios[0].policies)
    names = ", ".join(policies[:4]) + (f" and {len(policies) - 4} more" if len(policies) > 4 else "")
    return f"{names} on {scenarios[0].title}"


def _subtitle(scenarios: Sequence[Scenario]) -> str:
    return "" if len(scenarios) != 1 else f'<p class="sub">{escape(_about(scenarios[0]))}</p>'


def _about(scenario: Scenario) -> str:
    """Model, size and seeds in a line."""
    members = scenario.members
    config, seeds = members[0].run.config, sorted({int(member.run.summary["seed"]) for member in members})
    rounds = max(len(member.run.rounds) for member in members)
    parts = [
        last_name(str(members[0].run.summary["model"])),
        f"{config['fleet']['devices']:,} devices" if "devices" in config.get("fleet", {}) else "",
        f"{rounds} round{'s' if rounds > 1 else ''}",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        f"reference {next(iter(scenario.policies))}" if len(scenario.policies) > 1 else "",
    ]
    return " · ".join(part for part in parts if part)


def _scenario(scenario: Scenario, positions: Positions, titled: bool) -> str:
    heading = f'<h2>{escape(scenario.title)}</h2><p class="sub">{escape(_about(scenario))}</p>' if titled else ""
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in scenario.notes)
    table = policy_table(scenario)
    about = "" if scenario.comparison is None else f'<p class="note">{escape(note_of([scenario.comparison]))}</p>'
    headline = f'{tiles(scenario)}<div class="box">{table}</div>{about}' if table else ""
    several = any(len(members) > 1 for members in scenario.policies.values())
    bands = "Curves are means over seeds, bands go from the lowest to the highest seed." if several else ""
    devices, keys = device_figures(scenario, positions), _module_keys(module_count(scenario))
    return (
        f"<section>{heading}{notes}{headline}<details{'' if table else ' open'}><summary>Runs</summary>"
        f'<div class="box">{run_table(scenario.members)}</div></details>'
        f"{_gallery('Learning and energy', curves(scenario), 'grid3', bands)}"
        f"{_gallery('What each device did', devices, 'pairs', 'Device by round, best mean gain on top.', keys)}"
        f"{_classes(scenario)}<h3>Making it again</h3>{setup(scenario.members)}</section>"
    )


def _gallery(
    title: str, figures: Sequence[Figure | LeftOut], grid: str, note: str, keys: Sequence[tuple[str, str]] = ()
) -> str:
    """A heading, pictures side by side, and a line for each that there are no data for."""
    drawn = [figure for figure in figures if isinstance(figure, Figure)]
    why: dict[str, list[str]] = {}
    for figure in figures:
        if isinstance(figure, LeftOut):
            why.setdefault(figure.why, []).append(figure.title)
    missing = "".join(
        f'<p class="note left-out">Left out: {escape(", ".join(titles))}; {escape(reason)}.</p>'
        for reason, titles in why.items()
    )
    body = f'<div class="{grid}">{"".join(map(_figure, drawn))}</div>' if drawn else ""
    about = f'<p class="note">{escape(note)}</p>' if note and drawn else ""
    return f"<h3>{escape(title)}</h3>{about}{_legend(keys) if drawn else ''}{body}{missing}"


def _figure(figure: Figure) -> str:
    body = figure.body
    if figure.kind == "heat":
        first, last = figure.data["round"][0], figure.data["round"][-1]
        height = min(max(15 * len(figure.data["device"]), 330), 460)
        body = body.replace("<svg ", f'<svg style="height:{height}px" ', 1)
        body = (
            f'<div class="heatbox"><span class="up">device</span>{body}'
            f'<div class="along"><span>{first}</span><span>round</span><span>{last}</span></div></div>'
        )
    data = json.dumps(plain(figure.data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    note = f"<figcaption>{escape(figure.note)}</figcaption>" if figure.note else ""
    return (
        f'<figure data-kind="{figure.kind}"><h4>{escape(figure.title)}</h4>{note}{_legend(figure.legend)}'
        f'{body}<script type="application/json">{data}</script></figure>'
    )


def _legend(keys: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span class="key"><i class="{style}"></i>{escape(text)}</span>' for style, text in keys)
    return f'<div class="legend">{items}</div>' if items else ""


def _module_keys(count: int) -> list[tuple[str, str]]:
    modules = [(f"m{m}", f"module {m}") for m in range(1, count + 1)]
    return [("m0", "sat out"), *modules, ("lost", "sent and lost")]


def _classes(scenario: Scenario) -> str:
    """Device classes under each policy."""
    parts: list[str] = []
    for name in scenario.policies:
        member = shown_member(scenario, name)
        if member is not None:
            parts.append(
                f"<figure><h4>{escape(name)}, seed {member.run.summary['seed']}</h4>"
                f"{kind_table(member.report.kinds)}</figure>"
            )
    return f'<h3>Device classes</h3><div class="grid2">{"".join(parts)}</div>' if parts else ""
