"""Which function computes which numbered equation, and which test checks it.

    python tools/equations.py           check equations.toml against src and tests, and that docs/paper.md is current
    python tools/equations.py --write   write docs/paper.md

A function or class (no Protocol) is an equation's home if its first docstring line ends with "(n).". A test checks it
if "(n)" stands in its docstring or in a comment inside it. Exit code 1 and one line per problem if something is wrong.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = re.compile(r"\((\d{1,2})\)\.$")
MENTION = re.compile(r"(?<!\w)\((\d{1,2})\)")
STATUSES = ("implemented", "open")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True)
class Equation:
    """One entry of equations.toml."""

    number: int
    name: str
    status: str


@dataclass(frozen=True, slots=True)
class Place:
    """A function, method, class or test: its file relative to the root, and its qualified name."""

    path: str
    name: str


def equations(root: Path) -> list[Equation]:
    """The entries of equations.toml, numbered 1…n without holes."""
    with (root / "equations.toml").open("rb") as file:
        found = [Equation(**entry) for entry in tomllib.load(file)["equation"]]
    if [one.number for one in found] != list(range(1, len(found) + 1)):
        raise SystemExit("equations.toml: numbers must be 1, 2, 3, … in order")
    for one in found:
        if one.status not in STATUSES:
            raise SystemExit(f"equations.toml: ({one.number}) has status {one.status!r}, must be one of {STATUSES}")
    return found


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Every function and class below a node with its qualified name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield prefix + child.name, child
            yield from definitions(child, f"{prefix}{child.name}.")
        else:
            yield from definitions(child, prefix)


def is_protocol(node: Definition) -> bool:
    """Whether a class is a Protocol: it says what an implementation must compute, and computes nothing."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in bases)


def homes(root: Path) -> dict[int, list[Place]]:
    """Equation number → functions and classes in src that claim to compute it."""
    found: dict[int, list[Place]] = {}
    for path in sorted((root / "src").rglob("*.py")):
        for name, node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
            if is_protocol(node):
                continue
            first = (ast.get_docstring(node) or "").split("\n", 1)[0].rstrip()
            if match := HOME.search(first):
                found.setdefault(int(match[1]), []).append(Place(path.relative_to(root).as_posix(), name))
    return found


def comments(source: str) -> list[tuple[int, str]]:
    """Line number and text of every comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


def tests(root: Path) -> dict[int, list[Place]]:
    """Equation number → tests whose docstring or comments mention it."""
    found: dict[int, list[Place]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        remarks = comments(source)
        for name, node in definitions(ast.parse(source)):
            if isinstance(node, ast.ClassDef) or not node.name.startswith("test_"):
                continue
            last = node.end_lineno or node.lineno
            inside = [text for line, text in remarks if node.lineno <= line <= last]
            words = "\n".join([ast.get_docstring(node) or "", *inside])
            for number in sorted({int(match) for match in MENTION.findall(words)}):
                found.setdefault(number, []).append(Place(path.relative_to(root).as_posix(), name))
    return found


def problems(root: Path) -> list[str]:
    """What is wrong, one line each: a missing or second home, a missing test, an open equation with a home."""
    found, known, claimed, checked = [], equations(root), homes(root), tests(root)
    for one in known:
        places = claimed.get(one.number, [])
        where = ", ".join(f"{place.path}:{place.name}" for place in places) or "none"
        if one.status == "implemented" and len(places) != 1:
            found.append(f"({one.number}) {one.name}: needs exactly one home in src, has {len(places)}: {where}")
        if one.status == "implemented" and not checked.get(one.number):
            found.append(f"({one.number}) {one.name}: no test mentions it")
        if one.status == "open" and places:
            found.append(f"({one.number}) {one.name}: is open in equations.toml but has a home: {where}")
    for number in sorted(set(claimed) - {one.number for one in known}):
        found.append(f"({number}): not in equations.toml, but claimed by {claimed[number][0].name}")
    return found


def page(root: Path) -> str:
    """The text of docs/paper.md."""
    claimed, checked = homes(root), tests(root)
    lines = [
        "# Equation, function, test",
        "",
        "Written by `python tools/equations.py --write`; the equations are derived in [theory.md](theory.md).",
        "",
        "| Equation | | Computed by | Tested by |",
        "|---|---|---|---|",
    ]
    for one in equations(root):
        home = "<br>".join(link(place) for place in claimed.get(one.number, [])) or f"*{one.status}*"
        test = "<br>".join(link(place) for place in checked.get(one.number, [])) or "–"
        lines.append(f"| ({one.number}) | {one.name} | {home} | {test} |")
    return "\n".join(lines) + "\n"


def link(place: Place) -> str:
    """Markdown link to a place, without line numbers, which would go stale with every edit."""
    return f"[`{place.name}`](../{place.path})"


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Check, or write with `--write`; returns the exit code."""
    if arguments not in ([], ["--write"]):
        print(__doc__)
        return 2
    target = root / "docs" / "paper.md"
    wrong = problems(root)
    if arguments:
        target.write_text(page(root), encoding="utf-8")
    elif not target.exists() or target.read_text(encoding="utf-8") != page(root):
        wrong.append("docs/paper.md is not current: run python tools/equations.py --write")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
