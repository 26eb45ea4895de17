"""The federation of `bench_flower`, as airtune runs it and as a Flower app with a plain PEFT client.

Flower's actors import this module by name, so that each loads model and samples once.
"""

import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from airtune.config import LearningConfig, ModelConfig, ModulesConfig
from airtune.fleets.workers import Job, Workers
from airtune.learning.aggregate import renormalised_mean
from airtune.learning.assets import load_classifier, resolve_model
from airtune.learning.data import TokenSet
from airtune.learning.engine import Engine
from airtune.learning.lora import family_of, install
from airtune.learning.pupil import Pupil
from airtune.learning.server import first_server, server_step
from airtune.types import Update
from benchmarks.bench_tokens import LAYERS, MODULES, RATES, PaddedPeft
from benchmarks.processes import cpu_s, tree
from benchmarks.workbench import BATCH, LEARNING

AVERAGING = LearningConfig(server_optimizer="mean", server_rate=1.0, server_momentum=0.0, average=0.0)
MODULE = len(MODULES.depths)
"""The module that all devices train: the largest, of full depth."""
Marks = list[tuple[float, float]]
"""When the first round began and each round ended, by the clock [s] and in processor time of the process tree [s]."""
Federated = tuple[Mapping[str, Tensor], Marks]
"""The last global adapter, and the times."""


def mark() -> tuple[float, float]:
    """Now; the clock is that of all processes of this machine."""
    return time.monotonic(), sum(map(cpu_s, tree(os.getpid())))


@cache
def tokens_at(place: Path) -> TokenSet:
    """The samples that the benchmark tokenised."""
    kept = np.load(place / "tokens.npz")
    return TokenSet(kept["ids"], kept["type_ids"], kept["offsets"], kept["label"], None)


def steps_of(tokens: TokenSet, devices: int, steps: int, t: int, device: int) -> list[NDArray[np.int64]]:
    """Batches of device 0…K−1 in round t = 0…, from its own share of the samples."""
    share = np.array_split(np.random.default_rng(0).permutation(len(tokens)), devices)[device]
    draw = np.random.default_rng([1, t, device])
    return [draw.choice(share, BATCH, replace=False) for _ in range(steps)]


def engine_of(tokens: TokenSet, modules: ModulesConfig = MODULES) -> Engine:
    """The engine over MiniLM."""
    model, _ = load_classifier(resolve_model(ModelConfig()), 2)
    family = family_of(model, model.base_model_prefix, modules)
    return Engine(model, family, install(model, family), LEARNING, tokens)


def airtune_rounds(place: Path, devices: int, steps: int, rounds: int, processes: int) -> Federated:
    """Every device in turn, or several processes side by side, and their mean."""
    tokens, adapters = tokens_at(place), load_file(place / "start.safetensors")
    server = first_server(adapters)
    workers = Workers(processes, engine_of, tokens) if processes > 1 else None
    engine = engine_of(tokens) if workers is None else None
    marks = [mark()]
    for t in range(rounds):
        given = [(k, steps_of(tokens, devices, steps, t, k)) for k in range(devices)]
        if engine is not None:
            results = ((k, engine.train(adapters, tokens, batches, RATES)) for k, batches in given)
        else:
            assert workers is not None
            jobs = (Job(k, MODULE, Pupil(adapters, batches, RATES)) for k, batches in given)
            results = ((job.device, trained) for job, trained in workers.train(jobs))
        updates = (Update(k, MODULE, 1.0 / devices, trained.delta, trained.loss) for k, trained in results)
        adapters, server = server_step(adapters, server, renormalised_mean(adapters, updates)[0], AVERAGING, 1.0)
        marks.append(mark())
    if workers is not None:
        workers.close()
    return adapters, marks


@cache
def peft_client(place: Path, threads: int) -> PaddedPeft:
    """The PEFT model of this actor."""
    torch.set_num_threads(threads)
    model, _ = load_classifier(resolve_model(ModelConfig()), 2)
    return PaddedPeft(model, load_file(place / "start.safetensors"), LAYERS)


def flower_rounds(place: Path, devices: int, steps: int, rounds: int, actors: int, threads: int) -> Federated:
    """Flower's simulation engine and its FedAvg, without evaluation."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    marks: Marks = []
    failures: list[str] = []
    found: dict[str, Tensor] = {}

    @client.train()
    def train(message: Message, context: Context) -> Message:
        from benchmarks.flower_sides import peft_client, steps_of, tokens_at

        peft, tokens = peft_client(place, threads), tokens_at(place)
        t = int(message.content["config"]["server-round"]) - 1
        peft.start = message.content["arrays"].to_torch_state_dict()
        peft.reset()
        loss = peft.train(tokens, steps_of(tokens, devices, steps, t, int(context.node_config["partition-id"])))
        arrays = ArrayRecord({name: tensor.detach() for name, tensor in peft.trained.items()})
        metrics = MetricRecord({"num-examples": steps * BATCH, "loss": loss})
        return Message(content=RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    class Timed(FedAvg):
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            replies = list(replies)
            failures.extend(f"round {server_round}: {r.error.reason}" for r in replies if r.has_error())
            if len(replies) != devices:
                failures.append(f"round {server_round}: {len(replies)} of {devices} devices replied")
            if failures:
                raise SystemExit  # ends the server's thread
            mean = super().aggregate_train(server_round, replies)
            marks.append(mark())
            return mean

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        # Flower takes a fraction of the devices that have registered by then, unless at least so many must train
        strategy = Timed(fraction_evaluate=0.0, min_train_nodes=devices, min_available_nodes=devices)
        start = ArrayRecord(load_file(place / "start.safetensors"))
        marks.append(mark())
        result = strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({}))
        found.update(result.arrays.to_torch_state_dict())

    resources = {"num_cpus": threads, "num_gpus": 0.0}
    backend: Any = {"init_args": {"num_cpus": actors * threads}, "client_resources": resources}
    os.environ["RAY_worker_niceness"] = "0"  # not 15, which loses to whatever else the machine does
    run_simulation(server, client, num_supernodes=devices, backend_config=backend)
    if failures or len(marks) <= rounds:
        raise SystemExit(failures[0] if failures else f"Flower ended after {len(marks) - 1} of {rounds} rounds")
    return found, marks
