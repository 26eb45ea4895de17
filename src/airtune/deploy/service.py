"""The process that Flower starts for the server: its sign of life, and why it gave up."""

import os
from pathlib import Path

from airtune.deploy.federation import Exchange
from airtune.deploy.server import serve
from airtune.files import write_atomic
from airtune.types import AirtuneError

PROCESS = "state/server.pid"
"""Number of the process that runs the rounds, in the deployment's folder."""
FAILURE = "state/failure.txt"
"""Why the run cannot go on as things are, in the deployment's folder."""


def serve_app(folder: Path, exchange: Exchange, *, by_key: bool) -> None:
    """Run a deployment; what the user must mend is left in a file for whoever started Flower."""
    (folder / PROCESS).parent.mkdir(exist_ok=True)
    write_atomic(folder / PROCESS, str(os.getpid()).encode())
    try:
        serve(folder, exchange, by_key=by_key)
    except AirtuneError as error:
        write_atomic(folder / FAILURE, str(error).encode())
        raise
