"""The server's side: a run whose devices are real, with the loop, the rows and the checkpoint of any other run."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from airtune.build import Experiment, build
from airtune.config import RunConfig
from airtune.control.policies import policy_of
from airtune.control.problem import first_memory
from airtune.deploy.config import ServerConfig, read_toml
from airtune.deploy.emulation import ROWS, EmulatedUplinks
from airtune.deploy.federation import Exchange, Federation, Journal
from airtune.deploy.fleet import DeployedFleet
from airtune.deploy.links import Links
from airtune.deploy.messages import Standing
from airtune.deploy.world import PairedWorld, ReportedWorld, devices_of
from airtune.experiment import run_or_resume
from airtune.files import write_json
from airtune.fleets.simulated import SimulatedFleet
from airtune.logs.log import log_of
from airtune.settings import dump, read_config
from airtune.theory.constants import prior_constants
from airtune.types import Air, AirtuneError, Policy, Problem


def serve(folder: Path, exchange: Exchange, *, by_key: bool) -> dict[str, Any]:
    """Run the deployment of a folder, or finish it where it was interrupted; returns the summary.

    Args:
        folder: what `airtune deploy init` wrote.
        exchange: reaches the devices.
        by_key: whether devices are known by their keys; else by the names that they give.

    Raises:
        AirtuneError: in one line, for anything the user can mend.
    """
    server = read_toml(folder / "server.toml", ServerConfig)
    config = run_config(folder)
    journal = Journal(folder / "events.jsonl")
    journal.note("resumed" if (folder / "run" / "run.json").exists() else "started")
    made = partial(deployed, server=server, folder=folder, exchange=exchange, journal=journal, by_key=by_key)
    summary = run_or_resume(config, log=None if server.log is None else log_of(server.log), make=made)
    journal.note("finished")
    return summary


def run_config(folder: Path) -> RunConfig:
    """The run that a deployment's folder describes; its rows go to FOLDER/run."""
    return dataclasses.replace(read_config(str(folder / "run.toml")), out=folder / "run")


def deployed(
    config: RunConfig,
    policy: Policy | None,
    *,
    server: ServerConfig,
    folder: Path,
    exchange: Exchange,
    journal: Journal,
    by_key: bool,
) -> Experiment:
    """The experiment of a configuration with real devices in place of the simulated world and fleet."""
    if config.fleet.devices != len(server.device):
        raise AirtuneError(
            f"{folder}: run.toml has fleet.devices {config.fleet.devices}, server.toml lists {len(server.device)}"
        )
    if config.privacy.mechanism != "none" and config.privacy.noise == "seeded" and server.radio == "measured":
        raise AirtuneError(
            'privacy.noise: server and devices know the seed; it must be "system", or radio "simulated" for a trial'
        )
    experiment = build(config, policy)
    learner, system = experiment.learner, experiment.system
    federation = Federation(
        server.device,
        [key_line(folder / slot.key) for slot in server.device if slot.key is not None] if by_key else None,
        exchange,
        journal,
        setup_of(config),
        learner.source.sha256,
        server.report_s,
        folder / "devices.json",
    )
    least, cell, start = server.min_devices, system.cell, experiment.start
    air: Air | None = None
    if server.radio == "simulated":
        assert isinstance(system.fleet, SimulatedFleet)
        air = system.fleet.air
        world = PairedWorld(federation, system.world, least)
    else:
        if config.fleet.active is not None or config.world.delivery is not None or config.policy.name == "oracle":
            raise AirtuneError('fleet.active, world.delivery and policy oracle need radio = "simulated" in server.toml')
        world = ReportedWorld(federation, config.world, config.fleet, cell.radio, least)
        devices = devices_of([slot.kind for slot in server.device], _at_start(folder, federation, least), config.fleet)
        constants = prior_constants(config.constants, cell.modules, devices.samples)
        cell = dataclasses.replace(cell, devices=devices, constants=constants)
        start = dataclasses.replace(start, memory=first_memory(cell, config.policy.queue_start))
        policy = policy or policy_of(config.policy, devices, len(cell.modules), config.seed, _no_problems)
    wait_s = cell.radio.deadline_s + server.overhead_s
    uplinks = uplinks_of(server, folder) if server.emulated else None
    fleet = DeployedFleet(federation, config, len(cell.modules), cell.devices.weight, wait_s, air, uplinks)
    system = dataclasses.replace(system, cell=cell, world=world, fleet=fleet, policy=policy or system.policy)
    return dataclasses.replace(experiment, system=system, start=start)


def uplinks_of(server: ServerConfig, folder: Path) -> EmulatedUplinks:
    """The emulated uplinks of a deployment; raises AirtuneError if nobody has laid its cables."""
    links = Links(len(server.device))
    if not all(map(links.there, range(links.count))):
        raise AirtuneError(f"{folder}: its links are emulated; start it with `airtune deploy local --out {folder}`")
    return EmulatedUplinks(links, folder / ROWS, [slot.name for slot in server.device])


def _at_start(folder: Path, federation: Federation, least: int) -> dict[int, Standing]:
    """What devices said of themselves when the run began, which a resumed run keeps to: weights, samples, classes."""
    path, kind = folder / "devices-at-start.json", TypeAdapter(dict[int, Standing])
    if not path.exists():
        federation.gather(0, least)
        write_json(path, kind.dump_python(federation.standings))
    return kind.validate_json(path.read_bytes(), strict=False)


def setup_of(config: RunConfig) -> dict[str, Any]:
    """What devices must know of the run: its configuration, without what is the server's own."""
    plain = dataclasses.replace(config, out=None, data_dir=None, threads=None, workers=1)
    return dump(dataclasses.replace(plain, policy=type(config.policy)(name="traditional")))


def key_line(path: Path) -> str:
    """Kind and bytes of an OpenSSH public key, without its comment; raises AirtuneError."""
    try:
        kind, key = path.read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        raise AirtuneError(f"{path}: no OpenSSH public key there") from None
    return f"{kind} {key}"


def _no_problems() -> list[Problem]:
    raise AirtuneError("policy.name: a real federation does not know its rounds beforehand")
