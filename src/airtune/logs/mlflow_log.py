"""MLflow: an experiment per configuration name, a run per run folder."""

# pyright: reportMissingImports=false
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from airtune.logs.log import Start
from airtune.settings import flat

BATCH = 100
"""Parameters that MLflow takes at once."""


class MlflowLog:
    """Writes to the tracking server or folder that the target, or MLflow's own environment, names."""

    def __init__(self, target: str | None) -> None:
        self._client = MlflowClient(tracking_uri=target)

    def begin(self, start: Start) -> str | None:
        """Make the run, or find it again."""
        client = self._client
        if start.known_as is not None:
            self._run = client.get_run(start.known_as).info.run_id
            client.set_terminated(self._run, "RUNNING")
            return self._run
        experiment = client.get_experiment_by_name(start.group)
        number = client.create_experiment(start.group) if experiment is None else experiment.experiment_id
        self._run = client.create_run(number, run_name=start.name).info.run_id
        params = [Param(key, str(value)) for key, value in flat(start.config).items()]
        for i in range(0, len(params), BATCH):
            client.log_batch(self._run, params=params[i : i + BATCH])
        return self._run

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """A metric each."""
        now_ms = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(name, value, now_ms, step) for name, value in values.items()])

    def end(self, *, finished: bool) -> None:
        """Mark the run as finished, or killed: it may be resumed."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")
