"""The Flower app: what SuperLink and SuperNodes start. Light to import: a device's model lives in another process."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false, reportUntypedFunctionDecorator=false
from collections.abc import Callable
from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from airtune.deploy.flower.grid import GridExchange, disclosed, enclosed
from airtune.deploy.relay import ask

server = ServerApp()
client = ClientApp()


@server.main()
def serve_run(grid: Grid, context: Context) -> None:
    """Run the deployment of the folder that the run's configuration names."""
    from airtune.deploy.service import serve_app

    serve_app(
        Path(str(context.run_config["deployment"])), GridExchange(grid), by_key=context.run_config["identity"] == "key"
    )


@client.train()
def answer(message: Message, context: Context) -> Message:
    """Hand a task to the device's own process, or, in Flower's simulation engine, to a device in this one."""
    task, place = disclosed(message.content), context.node_config.get("socket")
    if place is not None:
        blob = ask(Path(str(place)), task)
    else:
        blob = _simulated(int(context.node_config["partition-id"]), Path(str(context.run_config["deployment"])))(task)
    return Message(content=enclosed(blob), reply_to=message)


@cache
def _simulated(number: int, folder: Path) -> Callable[[bytes], bytes]:
    """A device of the simulation engine: it has its share of the samples of the run."""
    from airtune.deploy.config import DeviceConfig
    from airtune.deploy.server import run_config
    from airtune.deploy.trainer import Trainer

    config = DeviceConfig(
        name=f"device-{number}",
        server="localhost:0",
        secure=False,
        share=number,
        data_dir=run_config(folder).data_dir,
    )
    return Trainer(config).answer
