"""What counts as an update: what honest training can have made. Any bytes at all are examined without a crash."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from airtune.config import LearningConfig
from airtune.deploy.messages import Limits, Standing, Task, answer_blob
from airtune.deploy.validation import Accepted, Expected, Refused, examine, largest_change
from airtune.deploy.wire import Malformed, pack, unpack
from airtune.learning.engine import Rates
from airtune.learning.meter import Reading
from airtune.types import Lesson

SHAPES = {"a.lora_A": (2, 3), "a.lora_B": (4, 2), "head": (3,)}
STANDING = {"name": "d", "t": 4, "kind": "sensor", "samples": 7, "tokens": 30.0, "model": "feed"}
VALUES = {"kind": "update", "t": 3, "device": 1, "module": 2, "loss": 0.5, "standing": STANDING}


def expected(**changes):
    given = {"t": 3, "device": 1, "module": 2, "shapes": SHAPES, "norm_max": 10.0, "modules": 2, "model": "feed"}
    return Expected(**{**given, **changes})


def delta(**changes):
    return {name: torch.full(shape, 0.1) for name, shape in SHAPES.items()} | changes


def refusal(blob, **changes):
    result = examine(blob, expected(**changes))
    assert isinstance(result, Refused)
    return result.reason


def test_a_right_update_is_accepted_as_it_is():
    result = examine(answer_blob(VALUES, delta()), expected())
    assert isinstance(result, Accepted)
    assert result.answer.loss == 0.5 and result.answer.standing.samples == 7
    assert all(result.delta[name].equal(tensor) for name, tensor in delta().items())


def test_a_reading_comes_along_where_it_is_asked_for():
    blob = answer_blob(VALUES, delta(), Reading(np.array([1.0, 2.0]), np.array([0.1, 0.0])))
    reading = examine(blob, expected(measured=True)).reading
    assert reading.energy.tolist() == [1.0, 2.0] and reading.noise.tolist() == [0.1, 0.0]
    assert refusal(blob).startswith("wrongly shaped: it has reading/")
    assert refusal(answer_blob(VALUES, delta()), measured=True) == "wrongly shaped: it lacks reading/energy"
    for bad in ([math.nan, 0.0], [-1.0, 0.0]):
        assert refusal(answer_blob(VALUES, delta(), Reading(np.array(bad), None)), measured=True).startswith("not fin")
    assert refusal(answer_blob(VALUES, delta(), Reading(np.ones(3), None)), measured=True).startswith("wrongly shaped")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_entry_that_is_not_finite_is_enough(value):
    bad = torch.full((3,), 0.1)
    bad[1] = value
    assert refusal(answer_blob(VALUES, delta(head=bad))) == "not finite: head"


@pytest.mark.parametrize(
    "tensors, told",
    [
        (delta(head=torch.zeros(4)), "wrongly shaped: head is (4,), not (3,)"),
        (delta(head=torch.zeros(3, dtype=torch.float64)), "wrongly shaped: head is torch.float64, not torch.float32"),
        (delta(other=torch.zeros(1)), "wrongly shaped: it has delta/other, which was not asked for"),
        ({"head": torch.zeros(3)}, "wrongly shaped: it lacks delta/a.lora_A"),
        (delta(head=torch.full((3,), 1e30)), "too large: norm 1.73e+30, no honest update exceeds 10"),
        (delta(head=torch.full((3,), 3e38)), "too large: norm 5.2e+38, no honest update exceeds 10"),
    ],
)
def test_tensors_that_are_not_the_slice(tensors, told):
    assert refusal(answer_blob(VALUES, tensors)) == told


@pytest.mark.parametrize("change", [{"t": 2}, {"device": 0}, {"module": 1}, {"kind": "report", "module": 2}])
def test_answers_to_something_else(change):
    assert refusal(answer_blob(VALUES | change, delta())).startswith("foreign:")


def test_another_model_is_foreign():
    told = refusal(answer_blob(VALUES | {"standing": STANDING | {"model": "beef"}}, delta()))
    assert told == "foreign: the device's model is beef, the server's feed"


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "low"},
        {"surplus": 1},
        {"standing": None},
        {"standing": STANDING | {"samples": 0}},
        {"standing": STANDING | {"tokens": 1e300}},
        {"standing": STANDING | {"name": "x" * 1000}},
        {"compute_j": -1.0},
        {"energy_source": "guess"},
        {"protocol": 2},
    ],
)
def test_values_that_are_not_an_answers(change):
    assert refusal(answer_blob(VALUES | change, delta())).startswith("malformed:")


def test_a_size_beyond_the_module_is_not_even_read():
    limit = expected().byte_max
    assert refusal(b"\0" * (limit + 1)) == f"oversized: {limit + 1} bytes, at most {limit} are right"
    assert refusal(b"\0" * limit).startswith("malformed:")


def test_a_device_may_say_why_it_failed():
    blob = answer_blob({"kind": "failure", "t": 3, "device": 1, "module": 2, "reason": "no memory"}, {})
    assert refusal(blob) == "device: no memory"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_examined_without_a_crash(blob):
    assert isinstance(examine(blob, expected()), Refused)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_update_is_refused_or_harmless(data):
    blob = bytearray(answer_blob(VALUES, delta()))
    for place in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=8)):
        blob[place] = data.draw(st.integers(0, 255))
    result = examine(bytes(blob[: data.draw(st.integers(0, len(blob)))]), expected())
    if isinstance(result, Accepted):
        assert {name: tuple(tensor.shape) for name, tensor in result.delta.items()} == SHAPES
        assert all(bool(tensor.isfinite().all()) for tensor in result.delta.values())
        assert sum(float(tensor.double().square().sum()) for tensor in result.delta.values()) <= 100.0


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*VALUES, "protocol", "other"]), json_values))
def test_any_values_are_examined_without_a_crash(values):
    tensors = {f"delta/{name}": tensor for name, tensor in delta().items()}
    blob = save(tensors, {"airtune": json.dumps(values)})
    assert isinstance(examine(blob, expected()), Refused | Accepted)


def test_deep_nesting_and_foreign_headers_are_malformed():
    for text in ("[" * 100_000, "{}{", "[1]", '{"a": NaN}'):
        with pytest.raises(Malformed):
            unpack(save({}, {"airtune": text}))
    with pytest.raises(Malformed):
        unpack(save({"x": torch.zeros(1)}))


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_training_exceeds_the_largest_change(optimizer, decay):
    config = LearningConfig(optimizer=optimizer, local_steps=5, clip_norm=0.7, weight_decay=decay)
    rates = Rates(0.2, 0.1, 1.0)
    draw = torch.Generator().manual_seed(1)
    start = {"a": torch.randn(40, generator=draw), "head": torch.randn(7, generator=draw)}
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    for scale in (1e-6, 1.0, 1e6):
        part = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
        groups = [{"params": [part["a"]], "lr": 0.2}, {"params": [part["head"]], "lr": 0.1}]
        own = make(groups, lr=0.2, weight_decay=decay)
        for step in range(5):
            for leaf in part.values():
                gradient = torch.randn(leaf.shape, generator=draw) if step else torch.ones(leaf.shape)
                leaf.grad = scale * gradient - (0 if optimizer == "sgd" else 1e-12)
            torch.nn.utils.clip_grad_norm_(part.values(), 0.7)
            own.step()
        change = math.sqrt(sum(float((part[n].detach() - start[n]).double().square().sum()) for n in part))
        assert 0.0 < change <= largest_change(config, rates, start)


def test_the_largest_change_of_sgd_is_reached():
    config = LearningConfig(optimizer="sgd", local_steps=3, clip_norm=2.0)
    assert largest_change(config, Rates(0.5, 0.1, 1.0), {"a": torch.zeros(2)}) == pytest.approx(1.01 * 3 * 0.5 * 2.0)


def test_a_task_survives_its_way():
    lesson = Lesson({"a": torch.ones(2)[:1]}, {"b": torch.zeros(0)}, {"c": torch.eye(3)[:, :2]}, 1)
    limits = Limits(power_w=0.1, bandwidth_hz=1e5, uplink_s=2.0, rate_bit_per_s=5e4)
    task = Task.of(Task(3, 1, {"seed": 4}, 2, limits, lesson).blob())
    assert (task.t, task.device, task.module, task.setup, task.limits) == (3, 1, 2, {"seed": 4}, limits)
    assert task.lesson.pruning == 1 and task.lesson.start["a"].equal(torch.ones(1))
    assert task.lesson.fixed["b"].shape == (0,) and task.lesson.rest["c"].equal(torch.eye(3)[:, :2])
    for blob in (b"", pack({}, {}), pack({"protocol": 1}, {}), pack({"protocol": 9}, {})):
        with pytest.raises(Malformed):
            Task.of(blob)


def test_standing_holds_plain_numbers():
    assert Standing(**STANDING).battery is None
