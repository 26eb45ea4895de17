"""Random rounds of (P1) over the outage link, from lightly to heavily loaded: what solvers are measured on.

    problem = draw(seed=3, devices=8, modules=4, load=0.5)

Distributions; everything is drawn from NumPy's default generator with the seed (seed, devices, modules):

- Cell of 500 m: device uniform over the disc beyond 35 m; path loss 128.1 + 37.6 log10(d/km) dB, shadowing N(0, 8 dB).
- N0 = −174 + 8 dBm/Hz, SNR gap 3 dB, deadline 10 s.
- Largest payload log-uniform in 0.5–20 Mbit; the smallest is 1/3 to 1/40 of it, at least 0.1 Mbit; geometric between.
- Computing with the largest module takes uniform 0.2–7 s and 0.2–5 J, the smallest 60 % of that; downlink 0.1–0.5 s.
- P_k uniform 0.1–0.3 W, ξ 0.3–0.5, P_circ 0.05–0.15 W. For one device in four the energy account lowers the power cap
  by a factor that is log-uniform in 0.02–1.
- ω ~ Dirichlet(3); U = ω (captured part − error): the captured part rises from uniform 0.2–0.8 at the smallest module
  to 1 at the largest, concave in the index; the error is up to 0.1.
- V log-uniform in 1–10⁴ J². Queues in units of the queue at which the largest module at full power and certain success
  is worth nothing, V U / E: in one round of six all queues are 0; else 0 with probability 0.2, small (log-uniform
  0.001–0.05) with 0.3, large (log-uniform 0.05–2) with 0.5.
- One device in twenty is away; memory denies the largest module to one in ten.
- B = load · Σ_k S_M/(2 bit/s/Hz · τ_up): at load 1 every device could send its largest module at 2 bit/s/Hz.
"""

import time

import numpy as np

from airtune.physics.link import OutageLink
from airtune.testbed.problems import Quadratics
from airtune.types import Decision, Policy, Problem
from airtune.units import db_to_linear, dbm_to_w

LOADS = (0.05, 0.15, 0.5, 1.5, 5.0)
"""Parts of the demand that the band can carry, from a heavily to a lightly loaded cell."""
_BIT_PER_S_HZ = 2.0
"""Spectral efficiency at which the demand is counted."""


def draw(seed: int, devices: int, modules: int, load: float) -> Problem:
    """A random round; the same arguments always give the same one, and only the band depends on `load`.

    Args:
        seed: any integer ≥ 0.
        devices: K ≥ 1.
        modules: M ≥ 1.
        load: part of the demand that the band can carry, > 0.
    """
    rng = np.random.default_rng((seed, devices, modules))
    each, table = (devices, 1), (devices, modules)
    radius_km = np.sqrt(rng.uniform(0.035**2, 0.5**2, devices))
    loss_db = 128.1 + 37.6 * np.log10(radius_km) + rng.normal(0.0, 8.0, devices)
    largest_bit = np.exp(rng.uniform(np.log(0.5e6), np.log(20e6)))
    smallest_bit = max(largest_bit / rng.uniform(3.0, 40.0), 0.1e6)
    payload_bit = np.geomspace(smallest_bit, largest_bit, modules) if modules > 1 else np.array([largest_bit])
    effort = np.linspace(0.6, 1.0, modules) if modules > 1 else np.ones(1)
    uplink_s = 10.0 - rng.uniform(0.1, 0.5, each) - rng.uniform(0.2, 7.0, each) * effort
    compute_j = rng.uniform(0.2, 5.0, each) * effort
    power_max_w = rng.uniform(0.1, 0.3, each) * np.ones(table)
    capped = rng.random(each) < 0.25
    power_max_w = power_max_w * np.where(capped, np.exp(rng.uniform(np.log(0.02), 0.0, each)), 1.0)
    efficiency, circuit_w = rng.uniform(0.3, 0.5, devices), rng.uniform(0.05, 0.15, devices)
    weight = rng.dirichlet(np.full(devices, 3.0))
    first = rng.uniform(0.2, 0.8)
    captured = first + (1.0 - first) * np.linspace(0.0, 1.0, modules) ** 0.7 if modules > 1 else np.ones(1)
    utility = weight[:, None] * (captured - rng.uniform(0.0, 0.1, each) * effort)
    tradeoff_v = float(np.exp(rng.uniform(0.0, np.log(1e4))))
    full_j = compute_j[:, -1] + (power_max_w[:, -1] / efficiency + circuit_w) * uplink_s[:, -1]
    queue_j = tradeoff_v * utility[:, -1] / full_j * _queue_level(rng, devices)
    feasible = np.ones(table, np.bool_) & (rng.random(each) < 0.95)
    feasible[:, -1] &= (rng.random(devices) < 0.9) | (modules == 1)
    demand_hz = float((payload_bit[-1] / (_BIT_PER_S_HZ * uplink_s[:, -1])).sum())
    return Problem(
        t=0,
        rounds=30,
        tradeoff_v=tradeoff_v,
        bandwidth_hz=load * demand_hz,
        link=OutageLink(dbm_to_w(-174.0 + 8.0), db_to_linear(3.0)),
        gain=10.0 ** (-loss_db / 10.0),
        pa_efficiency=efficiency,
        circuit_power_w=circuit_w,
        queue_j=queue_j,
        spent_j=np.zeros(devices),
        budget_j=np.ones(devices),
        weight=weight,
        utility=utility,
        payload_bit=payload_bit * np.ones(table),
        uplink_s=uplink_s,
        compute_j=compute_j,
        power_max_w=power_max_w,
        feasible=feasible,
    )


def _queue_level(rng: np.random.Generator, devices: int) -> np.ndarray:
    """Queues in units of what makes the largest module worthless, shape (K,)."""
    every = rng.random() >= 1.0 / 6.0
    kind = rng.random(devices)
    small = np.exp(rng.uniform(np.log(0.001), np.log(0.05), devices))
    large = np.exp(rng.uniform(np.log(0.05), np.log(2.0), devices))
    return every * np.where(kind < 0.2, 0.0, np.where(kind < 0.5, small, large))


def timed(policy: Policy, problem: Problem, repeats: int) -> tuple[Decision, float]:
    """A decision and the shortest processor time of some calls [s]."""
    times: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        decision = policy(problem)
        times.append(time.process_time() - began)
    return decision, min(times)


def bowls(rng: np.random.Generator, devices: int, kept: tuple[int, ...], spread: float, noise: float) -> Quadratics:
    """Quadratics of condition 10, of equal weight, with optima `spread` apart and gradient errors of size `noise`.

    Args:
        rng: drawn from in this order: curvatures, errors, optima.
        devices: K.
        kept: coordinates that each module keeps, falling in curvature; the last is d.
        spread: standard deviation of the optima.
        noise: of the eight errors of each device, of mean zero.
    """
    size = kept[-1]
    root = rng.normal(size=(devices, size, size)) / np.sqrt(size)
    hessian = 0.3 * root @ root.transpose(0, 2, 1) + np.diag(np.linspace(1.0, 0.2, size))
    errors = noise * rng.normal(size=(devices, 8, size))
    errors -= errors.mean(axis=1, keepdims=True)
    centre = spread * rng.normal(size=(devices, size))
    return Quadratics(np.full(devices, 1.0 / devices), kept, hessian, centre, errors)
