"""The federation of `bench_flower`, as airtune runs it and as a Flower app with a plain PEFT client.

Flower's actors import this module by name, so that each loads model and samples once.
"""

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
from benchmarks.bench_tokens import MODULES, RATES, PaddedPeft
from benchmarks.workbench import BATCH, LEARNING

AVERAGING = LearningConfig(server_optimizer="mean", server_rate=1.0, server_momentum=0.0, average=0.0)
Federated = tuple[Mapping[str, Tensor], list[float]]
"""The last global adapter, and when the first round began and each round ended [s]."""


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
    clock = [time.perf_counter()]
    for t in range(rounds):
        given = [(k, steps_of(tokens, devices, steps, t, k)) for k in range(devices)]
        if engine is not None:
            results = ((k, engine.train(adapters, tokens, batches, RATES)) for k, batches in given)
        else:
            assert workers is not None
            jobs = (Job(k, 1, Pupil(adapters, batches, RATES)) for k, batches in given)
            results = ((job.device, trained) for job, trained in workers.train(jobs))
        updates = (Update(k, 1, 1.0 / devices, trained.delta, trained.loss) for k, trained in results)
        adapters, server = server_step(adapters, server, renormalised_mean(adapters, updates), AVERAGING, 1.0)
        clock.append(time.perf_counter())
    if workers is not None:
        workers.close()
    return adapters, clock


@cache
def peft_client(place: Path, threads: int) -> PaddedPeft:
    """The PEFT model of this actor."""
    torch.set_num_threads(threads)
    model, _ = load_classifier(resolve_model(ModelConfig()), 2)
    return PaddedPeft(model, load_file(place / "start.safetensors"))


def flower_rounds(place: Path, devices: int, steps: int, rounds: int, actors: int, threads: int) -> Federated:
    """Flower's simulation engine and its FedAvg, without evaluation."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client, server = ClientApp(), ServerApp()
    clock: list[float] = []
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
            if len(replies) != devices or any(reply.has_error() for reply in replies):
                raise SystemExit(f"round {server_round}: a Flower client failed")
            mean = super().aggregate_train(server_round, replies)
            clock.append(time.perf_counter())
            return mean

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Timed(fraction_evaluate=0.0, min_available_nodes=devices)
        start = ArrayRecord(load_file(place / "start.safetensors"))
        clock.append(time.perf_counter())
        result = strategy.start(grid, start, num_rounds=rounds, train_config=ConfigRecord({}))
        found.update(result.arrays.to_torch_state_dict())

    resources = {"num_cpus": threads, "num_gpus": 0.0}
    backend: Any = {"init_args": {"num_cpus": actors * threads}, "client_resources": resources}
    run_simulation(server, client, num_supernodes=devices, backend_config=backend)
    return found, clock
