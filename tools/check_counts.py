"""Run every checker and make sure that it saw every file: a checker that looks at nothing passes too."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def sources(pattern: str) -> int:
    """Number of Python files, tracked or about to be, that match a git path pattern."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return sum((ROOT / name).is_file() for name in set(listed) - {""})


CHECKS: tuple[tuple[list[str], str | None, str], ...] = (
    # command, how it tells the number of files (None: it does not), which files it should see
    (["ruff", "check"], None, ""),
    (["ruff", "check", "--show-files"], r"\.py$", "*.py"),
    (["ruff", "format", "--check"], r"(\d+) files? already formatted", "*.py"),
    (["pyright", "--stats"], r"Found (\d+) source files?", "src/*.py"),
    (["lint-imports"], r"Analyzed (\d+) files", "src/*.py"),
    (["python", "tools/equations.py"], None, ""),
)


def seen(pattern: str, output: str) -> int:
    """Number of files that a checker says it saw, or that it lists."""
    found = re.findall(pattern, output, re.MULTILINE)
    return sum(map(int, found)) if "(" in pattern else len(found)


def main() -> int:
    """Run all checks; returns 0 if each passed and saw every file."""
    failures: list[str] = []
    for command, pattern, files in CHECKS:
        name = " ".join(command)
        run = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
        output = run.stdout + run.stderr
        told = ""
        if run.returncode:
            print(output)
            failures.append(f"{name}: failed")
        elif pattern is not None:
            count, expected = seen(pattern, output), sources(files)
            told = f"{count} of {expected} files"
            if count != expected or expected == 0:
                failures.append(f"{name}: saw {count} files, should see {expected}")
        print(f"{'failed' if run.returncode else 'passed'}  {name:32} {told}", flush=True)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
