"""Random rounds, and the slow solver to compare with."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airtune.physics.link import OutageLink, WaterfallLink
from airtune.types import Problem

NOISE_W_PER_HZ = 10.0 ** ((-174.0 + 8.0 - 30.0) / 10.0)


def draw_problem(devices, modules, seed, link="outage", v=50.0, band_hz=2e6, **changes):
    """A plausible round: cell of 500 m, payloads 0.3–4 Mbit, 10 s deadline, unequal data and queues."""
    rng = np.random.default_rng(seed)
    distance_km = (35.0 + 465.0 * np.sqrt(rng.random(devices))) / 1e3
    loss_db = 128.1 + 37.6 * np.log10(distance_km) + rng.normal(0.0, 8.0, devices)
    size = np.geomspace(0.1, 1.0, modules)
    compute_s = rng.uniform(0.2, 6.0, (devices, 1)) * np.linspace(0.6, 1.0, modules)
    weight = rng.dirichlet(np.full(devices, 3.0))
    problem = Problem(
        t=0,
        rounds=30,
        tradeoff_v=v,
        bandwidth_hz=band_hz,
        link=OutageLink(NOISE_W_PER_HZ, 2.0) if link == "outage" else WaterfallLink(NOISE_W_PER_HZ, 1.0, 2.0),
        gain=10.0 ** (-loss_db / 10.0),
        pa_efficiency=np.full(devices, 0.35),
        circuit_power_w=np.full(devices, 0.1),
        queue_j=rng.exponential(1.0, devices) * (rng.random(devices) < 0.8),
        spent_j=np.zeros(devices),
        budget_j=np.ones(devices),
        weight=weight,
        utility=weight[:, None] * (np.linspace(0.35, 1.0, modules) - 0.05 * size),
        payload_bit=np.tile(np.geomspace(3e5, 4e6, modules), (devices, 1)),
        uplink_s=9.9 - compute_s,
        compute_j=rng.uniform(0.2, 3.0, (devices, 1)) * np.linspace(0.6, 1.0, modules),
        power_max_w=np.full((devices, modules), 0.2),
        feasible=np.tile(rng.random((devices, 1)) < 0.95, (1, modules)),
    )
    return replace(problem, **changes)


@pytest.fixture(scope="session")
def make_problem():
    return draw_problem


def load_reference(name):
    path = Path(__file__).parents[1] / "reference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference():
    return load_reference("control_reference")


@pytest.fixture(scope="session")
def exact_reference():
    return load_reference("exact_reference")


@pytest.fixture(scope="session")
def convex_reference():
    return load_reference("convex_reference")
