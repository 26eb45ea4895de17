"""Prometheus: the last round's numbers at http://HOST:PORT/metrics, for a server that collects them."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from airtune.logs.log import Start

PORT = 9464
"""Port of OpenTelemetry's Prometheus exporter, used where none is given."""


class PrometheusLog:
    """Serves gauges `airtune_NAME{run, entry}` while the run is under way; target: PORT or HOST:PORT.

    Only this machine can read them unless HOST says otherwise (0.0.0.0 for everybody).
    """

    def __init__(self, target: str | None) -> None:
        host, _, port = (target or "").rpartition(":")
        self._host, self._port = host or "127.0.0.1", int(port) if port else PORT
        self._gauges: dict[str, Gauge] = {}

    def begin(self, start: Start) -> str | None:
        """Open the port. Raises OSError if it is taken."""
        self._run, self._registry = start.name, CollectorRegistry()
        self._server, self._thread = start_http_server(self._port, self._host, self._registry)
        return None

    def values(self, step: int, values: Mapping[str, float]) -> None:
        """A gauge each, and `airtune_round`; entry i of a list is the gauge's label `entry`."""
        for name, value in {"round": float(step), **values}.items():
            self._set(name, value)

    def end(self, *, finished: bool) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _set(self, name: str, value: float) -> None:
        first, _, entry = name.removeprefix("summary/").partition("/")
        metric = f"airtune_{'summary_' if name.startswith('summary/') else ''}{first}"
        if metric not in self._gauges:
            self._gauges[metric] = Gauge(metric, "docs/report.md", ("run", "entry"), registry=self._registry)
        self._gauges[metric].labels(self._run, entry).set(value)
