"""The command line: usage, exit codes, and which command is meant; the commands themselves are in `commands`."""

import importlib.metadata
import sys
from collections.abc import Sequence

from airtune.commands.deploy import deploy_command
from airtune.commands.page import report_command, rows_command
from airtune.commands.plan import plan_command
from airtune.commands.runs import compare_command, export_command, resume_command, run_command
from airtune.commands.shown import show_command
from airtune.commands.solve import solve_command
from airtune.commands.status import status_command
from airtune.commands.sweep import sweep_command
from airtune.commands.verify import verify_command
from airtune.settings import presets
from airtune.types import AirtuneError

USAGE = """usage: airtune COMMAND …

  run NAME_OR_FILE [--rounds 30 --seed 3 --policy.v 80 --data-dir DIR --out RUN …]
                         fine-tune under a preset or a TOML file
  resume RUN             finish an interrupted run, bit-identically
  compare NAME_OR_FILE --policies a,b,c --seeds N [--out DIR …]
                         the same channels, splits and initial weights under several policies,
                         named as policy.name or as your own Python files
  sweep NAME[,NAME] --grid KEY=VALUE,VALUE --policies a,b --seeds N [--jobs N …]
                         comparisons over a grid of scenarios and settings, side by side
  show RUN [RUN …]       tables and plots of a run, or of several side by side
  status RUN [--watch S] how a run or a running federation is doing: rounds, devices, events
  report RUN [RUN …] [--out FILE.html]
                         one self-contained page: tables, curves, devices, configuration
  rows RUN [RUN …] --out FILE.csv|FILE.parquet [--of rounds|devices|timings]
                         the rows as one table
  export RUN --out DIR   the adapter as a standard PEFT folder; --merged: as a plain model
  plan NAME_OR_FILE [--target 0.6 --seeds 3 --axes bandwidth,budget --out DIR …]
                         without training: energy, delivery, time and bound as band, devices,
                         deadline and budget change; the least band or budget for a target
  solve FILE.json|- [--solver joint|alternating|exact] [--json]
                         one round's problem of your own: module, power and bandwidth per device
  verify [--instances 10000 --seed 0 --out DIR]
                         the bounds against exact gaps on thousands of problems with known constants
  deploy init|server|device|local
                         the same rounds on real devices, over Flower; `airtune deploy` tells more
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
            run_command(arguments)
        case "resume":
            resume_command(arguments)
        case "compare":
            compare_command(arguments)
        case "sweep":
            sweep_command(arguments)
        case "show":
            show_command(arguments)
        case "status":
            status_command(arguments)
        case "report":
            report_command(arguments)
        case "rows":
            rows_command(arguments)
        case "export":
            export_command(arguments)
        case "plan":
            plan_command(arguments)
        case "solve":
            solve_command(arguments)
        case "verify":
            verify_command(arguments)
        case "deploy":
            deploy_command(arguments)
        case "presets":
            print("\n".join(f"{name:10} {text}" for name, text in presets().items()))
        case "--help" | "-h" | "help":
            print(USAGE)
        case "--version":
            print(f"airtune {importlib.metadata.version('airtune')}")
        case _:
            raise AirtuneError(
                f"no command {command!r}; there are run, resume, compare, sweep, show, status, report, rows, export, "
                "plan, solve, verify, deploy and presets"
            )
