"""`airtune verify` finds nothing in the theorems, and finds what is wrong in broken ones."""

import csv

import numpy as np
import pytest

import airtune.testbed.verify as verifying
from airtune.cli import run_cli
from airtune.testbed.instances import FAMILIES
from airtune.testbed.verify import BOUNDS, summary, verify
from airtune.theory.bound import divergence_phi, divergence_tight
from airtune.types import AirtuneError


def without_noise(weight, gamma_sq, delta, noise, module, success_probability):
    return divergence_phi(weight, gamma_sq, delta, 0.0 * noise, module, success_probability)


def deliveries_squared(weight, gamma_sq, delta, noise, module, success_probability):
    """(12) without its variance of deliveries, ω²π(1−π)(1−δ)Γ²."""
    idle = np.concatenate([np.ones((*delta.shape[:-1], 1)), delta], axis=-1)
    loss = np.take_along_axis(idle, module, axis=-1) if idle.ndim > 1 else idle[module]
    lost = weight**2 * success_probability * (1 - success_probability) * (1 - loss) * gamma_sq
    known = (weight, gamma_sq, delta, noise, module, success_probability)
    return divergence_tight(*known) - lost.sum(axis=-1)


def test_the_theorems_hold():
    """(9) with (10) and with (12) on every family; Theorem 2's bound is never above Theorem 1's."""
    found = verify(210, seed=5)
    assert not [check for check in found if check.violated]
    assert {check.family for check in found} == {family.name for family in FAMILIES}
    value = {(check.instance, check.bound): check.value for check in found}
    assert all(value[n, "Theorem 2"] <= v * (1 + 1e-12) for (n, _), v in value.items() if (n, "Theorem 2") in value)
    assert len(found) == 210 * 2 - 210 // 7
    lines = summary(found)
    assert len(lines) == 6 * 2 + 1 + 2 and all(
        line.median >= 1.0 - 1e-9 and line.upper >= line.median for line in lines
    )


@pytest.mark.parametrize(
    "broken",
    [without_noise, deliveries_squared, lambda *known: 0.8 * divergence_phi(*known)],
)
def test_a_broken_bound_is_caught(broken):
    found = verify(120, seed=0, bounds={"broken": broken})
    assert sum(check.violated for check in found) > 0


def test_theorem_2_needs_its_assumptions():
    """Where gradients are biased or deliveries correlated, (12) is not a bound; (10) is."""
    rng = [np.random.default_rng((0, n)) for n in range(6, 700, 7)]
    family = FAMILIES[6]
    assert not family.theorem_2
    paths = [family.path(each, BOUNDS) for each in rng]
    assert any(np.any(path.gap > path.bounds["Theorem 2"] * (1 + 1e-6)) for path in paths)
    assert not any(np.any(path.gap > path.bounds["Theorem 1"] * (1 + 1e-9) + 1e-12 * path.scale) for path in paths)


def test_an_instance_depends_on_seed_and_number_alone():
    few, many = verify(12, seed=3), verify(24, seed=3)
    assert few == many[: len(few)] and verify(12, seed=4) != few


def test_the_command(tmp_path, capsys, monkeypatch):
    assert run_cli(["verify", "--instances", "14", "--seed", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "violations" in out and "logistic regression" in out
    with (tmp_path / "verify.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 26 and {row["violated"] for row in rows} == {"False"}
    monkeypatch.setattr(verifying.verify, "__defaults__", ({"Theorem 1": without_noise}, lambda done: None))
    assert run_cli(["verify", "--instances", "30"]) == 1
    assert "violated: Theorem 1, instance" in capsys.readouterr().out


def test_bad_arguments(capsys):
    assert run_cli(["verify", "--instances", "0"]) == 2
    assert "verify: needs instances ≥ 1 and seed ≥ 0, got 0 and 0" in capsys.readouterr().err
    assert run_cli(["verify", "--instances", "many"]) == 2
    with pytest.raises(AirtuneError):
        verify(1, -1)
