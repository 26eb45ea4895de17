"""Federated LoRA methods against dense matrices: what devices hold, what is combined, what is sent."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference.small_family import FAMILY, IN, OUT, M

from airtune.config import LearningConfig, ModulesConfig, RunConfig
from airtune.learning.factors import Stack, balanced_factors, product_svd
from airtune.learning.lora import tail_norm
from airtune.learning.method import Method, Nest
from airtune.learning.methods.chosen import method_of
from airtune.learning.methods.frozen import FactorMethod
from airtune.learning.methods.means import HetLora, MeanMethod, PlainMethod
from airtune.learning.methods.personal import FedSa
from airtune.learning.methods.products import FedEx, Flora
from airtune.learning.server import first_server, server_step
from airtune.types import Update

R = FAMILY.ranks[-1]
SIZES = ModulesConfig(ranks=FAMILY.ranks, depths=FAMILY.depths, bits_per_parameter=8, overhead_bit=100.0)
NAMES = [matrix.name for matrix in FAMILY.matrices]
SERVER = {"server_optimizer": "mean", "server_rate": 1.0, "server_momentum": 0.0, "average": 0.0}
PLAIN = LearningConfig(**SERVER)
DEVICES = 6
deliveries = st.lists(
    st.tuples(st.integers(1, M), st.floats(0.05, 1.0), st.integers(0, 2**31 - 1)), min_size=1, max_size=DEVICES
)


@pytest.fixture(scope="module")
def dense():
    path = Path(__file__).parents[1] / "reference" / "methods_reference.py"
    spec = importlib.util.spec_from_file_location("methods_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def theta_of(seed=0):
    draw = torch.Generator().manual_seed(seed)
    start = FAMILY.initial(seed)
    return {name: torch.randn(tensor.shape, generator=draw, dtype=torch.float64) for name, tensor in start.items()}


def without_b(theta):
    return {name: torch.zeros_like(x) if name.endswith("lora_B") else x for name, x in theta.items()}


def nest(whole=False):
    return Nest(FAMILY, SIZES, whole)


def every_method(whole=False):
    return [
        *(MeanMethod(nest(whole), mean) for mean in ("nested", "sum", "fedit", "flexlora")),
        HetLora(nest(whole), DEVICES, prunes=True),
        Flora(nest(whole), seed=0),
        FedEx(nest(whole)),
        *(FactorMethod(nest(whole), turns) for turns in ("ffa", "rolora")),
        FedSa(nest(whole)),
    ]


def begun(method, theta):
    adapters, kept = method.start(theta)
    return adapters, first_server(adapters, kept)


def updates_of(method, adapters, server, drawn, t=0):
    """Each delivery trains its lesson at random; also the trained values, for the reference."""
    updates, devices = [], []
    for device, (module, weight, seed) in enumerate(drawn):
        draw = torch.Generator().manual_seed(seed)
        lesson = method.lesson(t, adapters, server, device, module)
        delta = {n: torch.randn(x.shape, generator=draw, dtype=x.dtype) for n, x in lesson.start.items()}
        updates.append(Update(device, module, weight, delta, 0.0))
        held = {n: x.numpy() for n, x in lesson.fixed.items()}
        devices.append((weight, held | {n: (lesson.start[n] + delta[n]).numpy() for n in delta}))
    return updates, devices


def after(method, adapters, server, updates, t=0):
    combined = method.combine(t, adapters, server, iter(updates))
    moved, server = server_step(adapters, server, combined.change, PLAIN, 1.0)
    return moved, replace(server, kept={**server.kept, **combined.kept})


def numpy_of(adapters):
    return {name: tensor.numpy() for name, tensor in adapters.items()}


@pytest.mark.parametrize("whole", [False, True])
@given(drawn=deliveries)
@settings(max_examples=10, deadline=None)
def test_the_head_is_the_mean_of_the_heads(dense, whole, drawn):
    """Under every method, in its own weights: `sum` adds the changes, HetLoRA weighs by the norm of the product."""
    for method in every_method(whole):
        adapters, server = begun(method, without_b(theta_of()))
        updates, devices = updates_of(method, adapters, server, drawn)
        moved, _ = after(method, adapters, server, updates)
        if isinstance(method, HetLora):
            devices = dense.by_norm(devices, NAMES)
        for name in ("score.weight", "score.bias"):
            want = dense.mean_head(devices, name)
            if method == MeanMethod(nest(whole), "sum"):
                start, weight = adapters[name].numpy(), sum(w for w, _ in devices)
                want = start + weight * (want - start)
            np.testing.assert_allclose(moved[name], want, atol=1e-11)


@pytest.mark.parametrize("whole", [False, True])
@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_fedit_is_the_mean_of_padded_models(dense, whole, drawn):
    method, theta = MeanMethod(nest(whole), "fedit"), theta_of()
    adapters, server = begun(method, theta)
    updates, devices = updates_of(method, adapters, server, drawn)
    moved, _ = after(method, adapters, server, updates)
    for name in NAMES:
        a, b = dense.mean_factors(numpy_of(theta), devices, name, whole)
        np.testing.assert_allclose(moved[f"{name}.lora_A"], a, atol=1e-12)
        np.testing.assert_allclose(moved[f"{name}.lora_B"], b, atol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_hetlora_weighs_by_the_norm_of_the_product(dense, whole, drawn):
    method, theta = HetLora(nest(whole), DEVICES, prunes=True), theta_of()
    adapters, server = begun(method, theta)
    updates, devices = updates_of(method, adapters, server, drawn)
    moved, server = after(method, adapters, server, updates)
    weighed = dense.by_norm(devices, NAMES)
    for name in NAMES:
        a, b = dense.mean_factors(numpy_of(theta), weighed, name, whole)
        np.testing.assert_allclose(moved[f"{name}.lora_A"], a, atol=1e-11)
        np.testing.assert_allclose(moved[f"{name}.lora_B"], b, atol=1e-11)
    for update in updates:  # a device prunes iff what its next smaller module lacks has shrunk, by hand

        def tail(part, module):
            total = 0.0
            for layer, name in enumerate(NAMES):
                if f"{name}.lora_A" in part:
                    first = FAMILY.ranks[module - 1] if layer >= 3 - FAMILY.depths[module - 1] else 0
                    a, b = part[f"{name}.lora_A"][first:], part[f"{name}.lora_B"][:, first:]
                    total += float(np.linalg.norm(a) * np.linalg.norm(b))
            return total

        start = numpy_of(FAMILY.slice(theta, update.module))
        shrunk = update.module > 1 and tail(devices[update.device][1], update.module - 1) < tail(
            start, update.module - 1
        )
        assert int(server.kept["largest"][update.device]) == (update.module - 1 if shrunk else M)
    offer = method.offer(1, server)
    assert offer.largest.tolist() == server.kept["largest"].tolist()


@pytest.mark.parametrize("whole", [False, True])
@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_flexlora_is_the_best_of_rank_r_of_the_mean_product(dense, whole, drawn):
    method, theta = MeanMethod(nest(whole), "flexlora"), theta_of()
    adapters, server = begun(method, theta)
    updates, devices = updates_of(method, adapters, server, drawn)
    moved, _ = after(method, adapters, server, updates)
    for name in NAMES:
        mean = dense.mean_product(numpy_of(theta), devices, name, whole)
        a, b = moved[f"{name}.lora_A"].numpy(), moved[f"{name}.lora_B"].numpy()
        if not mean.any():  # no device holds the layer: it stays
            np.testing.assert_array_equal(a, theta[f"{name}.lora_A"])
            continue
        for rank in (1, 2, R):  # every slice is the best of its rank
            np.testing.assert_allclose(dense.product(b[:, :rank], a[:rank]), dense.best_of_rank(mean, rank), atol=1e-10)
        size = np.linalg.norm(theta[f"{name}.lora_A"]) / R**0.5
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), size, rtol=1e-10)


@pytest.mark.parametrize("whole", [False, True])
@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_fedex_is_the_mean_product_exactly(dense, whole, drawn):
    """The function after a round, W + s(BA) + merged, is that of the mean product; so again after another round."""
    method, theta = FedEx(nest(whole)), theta_of()
    adapters, server = begun(method, theta)
    before = dict.fromkeys(NAMES, 0.0)
    for t in range(2):
        updates, devices = updates_of(method, adapters, server, drawn, t)
        want = {name: dense.mean_product(numpy_of(adapters), devices, name, whole) for name in NAMES}
        means = {name: dense.mean_factors(numpy_of(adapters), devices, name, whole) for name in NAMES}
        adapters, server = after(method, adapters, server, updates, t)
        for name in NAMES:
            a, b = adapters[f"{name}.lora_A"].numpy(), adapters[f"{name}.lora_B"].numpy()
            np.testing.assert_allclose(a, means[name][0], atol=1e-12)  # the residual would make up for any others
            np.testing.assert_allclose(b, means[name][1], atol=1e-12)
            got = adapters[f"{name}.merged"].numpy() + FAMILY.scale * dense.product(b, a)
            np.testing.assert_allclose(got, before[name] + FAMILY.scale * want[name], atol=1e-9)
            before[name] = adapters[f"{name}.merged"].numpy().copy()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("modules", [(1, 3, 2, 3), (3, 2, 3), (3, 3), (2, 1), (3,)])
def test_fedex_residual_comes_down_by_factors_of_its_rank(whole, modules):
    """Mixed ranks and depths, on matrices so large that factors are smaller than the dense change."""
    tall, wide = 30, 40
    family = replace(FAMILY, matrices=tuple(replace(m, in_features=wide, out_features=tall) for m in FAMILY.matrices))
    method, draw = FedEx(Nest(family, SIZES, whole)), torch.Generator().manual_seed(1)
    theta = {n: torch.randn(x.shape, generator=draw, dtype=torch.float64) for n, x in family.initial(0).items()}
    adapters, server = begun(method, theta)
    updates, _ = updates_of(method, adapters, server, [(m, 0.1 + k, k) for k, m in enumerate(modules)])
    first, (adapters, server) = method.offer(0, server), after(method, adapters, server, updates)
    rank = {1: (0, 0, 1), 2: (0, 2, 2), 3: (4, 4, 4)}  # of the matrices of layers 0, 1 and 2
    rows = [sum(held) - min(held) for held in zip(*(rank[m] for m in modules), strict=True)]
    assert rows == [np.linalg.matrix_rank(adapters[f"{name}.merged"].numpy(), tol=1e-9) for name in NAMES]
    more = method.offer(1, server).downlink_bit - first.downlink_bit
    assert more.tolist() == [8 * (tall + wide) * sum(rows)] * M


@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_flora_merges_the_stacked_products(dense, drawn):
    """W moves by s Σ p_k B_k A_k, each product once with the scale it was trained with; factors start afresh."""
    method = Flora(nest(), seed=3)
    adapters, server = begun(method, FAMILY.initial(3))
    merged = {name: np.zeros((OUT, IN)) for name in NAMES}
    for t in range(2):
        lesson = method.lesson(t, adapters, server, 0, M)
        assert all((x == 0).all() for n, x in lesson.start.items() if n.endswith("lora_B"))
        updates, devices = updates_of(method, adapters, server, drawn, t)
        weight = sum(w for w, _ in devices)
        for name in NAMES:
            for w, trained in devices:
                if f"{name}.lora_A" in trained:
                    pair = dense.product(trained[f"{name}.lora_B"], trained[f"{name}.lora_A"])
                    merged[name] += w / weight * FAMILY.alpha / R * pair
        first = adapters
        adapters, server = after(method, adapters, server, updates, t)
        for name in NAMES:
            np.testing.assert_allclose(adapters[f"{name}.merged"], merged[name], atol=2e-5)
            assert (adapters[f"{name}.lora_B"] == 0).all()
            assert not torch.equal(adapters[f"{name}.lora_A"], first[f"{name}.lora_A"])
            torch.testing.assert_close(adapters[f"{name}.lora_A"], FAMILY.initial(3, t + 1)[f"{name}.lora_A"])
    rows = {name: sum(len(d[f"{name}.lora_A"]) for _, d in devices if f"{name}.lora_A" in d) for name in NAMES}
    down = sum(min(OUT * IN, rows[name] * (OUT + IN)) for name in NAMES) + 2 * OUT + 2
    assert method.offer(2, server).downlink_bit.tolist() == [8 * down + 100.0] * M


@pytest.mark.parametrize("turns", ["ffa", "rolora"])
@given(drawn=deliveries)
@settings(max_examples=15, deadline=None)
def test_one_factor_at_a_time_makes_means_exact(dense, turns, drawn):
    """The other factor being the same everywhere, the mean product of those who hold a component is the product."""
    method, theta = FactorMethod(nest(), turns), theta_of()
    adapters, server = begun(method, theta)
    for t in range(2):
        trained_factor = "lora_A" if turns == "rolora" and t else "lora_B"
        held = "lora_B" if trained_factor == "lora_A" else "lora_A"
        updates, devices = updates_of(method, adapters, server, drawn, t)
        assert all(not n.endswith(held) for one in updates for n in one.delta)
        old = adapters
        adapters, server = after(method, adapters, server, updates, t)
        for name in NAMES:
            assert torch.equal(adapters[f"{name}.{held}"], old[f"{name}.{held}"])
            for i in range(R):  # component by component
                mine = [(w, d) for w, d in devices if f"{name}.lora_A" in d and len(d[f"{name}.lora_A"]) > i]
                if not mine:
                    assert torch.equal(adapters[f"{name}.lora_A"][i], old[f"{name}.lora_A"][i])
                    continue
                pairs = [(w, np.outer(d[f"{name}.lora_B"][:, i], d[f"{name}.lora_A"][i])) for w, d in mine]
                want = sum(w * x for w, x in pairs) / sum(w for w, _ in pairs)
                got = np.outer(adapters[f"{name}.lora_B"][:, i], adapters[f"{name}.lora_A"][i])
                np.testing.assert_allclose(got, want, atol=1e-10)


def test_fedsa_shares_a_and_keeps_b(dense):
    method = FedSa(nest())
    adapters, server = begun(method, without_b(theta_of()))
    drawn = [(3, 0.5, 1), (1, 0.25, 2)]
    updates, devices = updates_of(method, adapters, server, drawn)
    adapters, server = after(method, adapters, server, updates)
    # device 1 goes on with a larger module
    lesson = method.lesson(1, adapters, server, 0, 3)
    top = NAMES[-1]
    np.testing.assert_allclose(lesson.start[f"{top}.lora_B"], devices[0][1][f"{top}.lora_B"])
    late = method.lesson(1, adapters, server, 1, 2).start[f"{top}.lora_B"]
    np.testing.assert_allclose(late[:, :1], devices[1][1][f"{top}.lora_B"])
    assert (late[:, 1] == 0).all() and (method.lesson(1, adapters, server, 5, 3).start[f"{top}.lora_B"] == 0).all()
    shared = (0.5 * devices[0][1][f"{top}.lora_A"][:1] + 0.25 * devices[1][1][f"{top}.lora_A"]) / 0.75
    np.testing.assert_allclose(adapters[f"{top}.lora_A"][:1], shared, atol=1e-12)
    models = method.models(adapters, server)
    assert len(models) == 2
    for device, model in enumerate(models):
        assert torch.equal(model[f"{top}.lora_B"], server.kept[f"own/{device}/{top}.lora_B"])
        assert torch.equal(model["score.bias"], adapters["score.bias"])
    mean = (models[0][f"{top}.lora_B"] + models[1][f"{top}.lora_B"]) / 2
    torch.testing.assert_close(adapters[f"{top}.lora_B"], mean)
    # in the second round device 0 is lost: its B stays, A is that of device 1 where it has any
    updates, again = updates_of(method, adapters, server, [(3, 0.5, 3), (2, 0.25, 4)], t=1)
    old, (adapters, server) = adapters, after(method, adapters, server, updates[1:], t=1)
    kept = {f"{name}.lora_B": devices[0][1][f"{name}.lora_B"] for name in NAMES}
    start = method.lesson(2, adapters, server, 0, 3).start
    for name, b in kept.items():
        np.testing.assert_allclose(start[name], b)
        assert not np.allclose(again[0][1][name], b), "the lost round would have changed it"
    own = method.lesson(2, adapters, server, 1, 3).start[f"{top}.lora_B"]
    np.testing.assert_allclose(own[:, :2], again[1][1][f"{top}.lora_B"])
    assert (own[:, 2:] == 0).all()
    np.testing.assert_allclose(adapters[f"{top}.lora_A"][:2], again[1][1][f"{top}.lora_A"], atol=1e-12)
    assert torch.equal(adapters[f"{top}.lora_A"][2:], old[f"{top}.lora_A"][2:])
    np.testing.assert_allclose(adapters[f"{top}.lora_B"], (kept[f"{top}.lora_B"] + own.numpy()) / 2, atol=1e-12)


@pytest.mark.parametrize("whole", [False, True])
def test_what_is_sent_is_what_is_counted(whole):
    """Up: the bits of the tensors whose change a device uploads. Down: those of what it needs and cannot know."""
    drawn = [(1, 0.3, 5), (2, 0.4, 6)]
    dense_or_factors = {Flora: (0, 24, 35), FedEx: (0, 24, 24)}  # 12 a row, at most 35: of 0, 2 and 3 rows, or 2

    def comes_down(method, t, module):
        lesson = method.lesson(t, adapters, server, 0, M if whole else module)
        held = {**lesson.start, **lesson.fixed}
        if isinstance(method, Flora):
            held = {n: x for n, x in held.items() if n.startswith("score")}
        if isinstance(method, FedSa):
            held = {n: x for n, x in held.items() if not n.endswith("lora_B")}
        if isinstance(method, FactorMethod):  # what moved in the round before; RoLoRA trains B first
            still = "lora_B" if method.turns == "rolora" and t == 0 else "lora_A"
            held = {n: x for n, x in held.items() if not n.endswith(still)}
        return sum(x.numel() for x in held.values()) + t * sum(dense_or_factors.get(type(method), ()))

    for method in every_method(whole):
        adapters, server = begun(method, FAMILY.initial(0))
        for t in (0, 1):
            offer = method.offer(t, server)
            for module in range(1, M + 1):
                lesson = method.lesson(t, adapters, server, 0, module)
                own = [n for n in lesson.start if not (isinstance(method, FedSa) and n.endswith("lora_B"))]
                assert offer.payload_bit[module - 1] == 8 * sum(lesson.start[n].numel() for n in own) + 100
                assert offer.downlink_bit[module - 1] == 8 * comes_down(method, t, module) + 100
            updates, _ = updates_of(method, adapters, server, drawn, t)
            adapters, server = after(method, adapters, server, updates, t)


def test_small_modules_get_slices_and_the_rest_under_whole():
    for whole in (False, True):
        for method in every_method(whole):
            assert isinstance(method, Method)
            adapters, server = begun(method, FAMILY.initial(0))
            lesson = method.lesson(0, adapters, server, 2, 1)
            held = {**lesson.start, **lesson.fixed}
            assert {n for n in held if "lora" in n} == {f"{NAMES[-1]}.lora_A", f"{NAMES[-1]}.lora_B"}
            assert held[f"{NAMES[-1]}.lora_A"].shape == (1, IN) and "score.bias" in lesson.start
            beyond = {n for n in lesson.rest if not n.endswith(".merged")}
            assert len(beyond) == (6 if whole else 0)
            merged = {n for n in lesson.rest if n.endswith(".merged")}
            assert len(merged) == (3 if isinstance(method, (Flora, FedEx)) else 0)


def test_order_of_updates_does_not_matter_and_no_input_is_changed():
    drawn = [(1, 0.3, 5), (3, 0.2, 6), (2, 0.4, 7), (3, 0.6, 8)]
    for method in every_method():
        adapters, server = begun(method, FAMILY.initial(0))
        copies = {n: x.clone() for n, x in adapters.items()}
        updates, _ = updates_of(method, adapters, server, drawn)
        first, _ = after(method, adapters, server, updates)
        second, _ = after(method, adapters, server, updates[::-1])
        assert all(torch.equal(adapters[name], copies[name]) for name in adapters)
        for name in (
            NAMES if method == MeanMethod(nest(), "flexlora") else ()
        ):  # singular vectors are known up to their sign
            for adapter in (first, second):
                adapter[name] = adapter.pop(f"{name}.lora_B") @ adapter.pop(f"{name}.lora_A")
        for name in first:
            torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_method_of_every_name():
    kinds = dict(
        nested=MeanMethod, sum=MeanMethod, fedit=MeanMethod, hetlora=HetLora, flexlora=MeanMethod, flora=Flora,
        fedex=FedEx, ffa=FactorMethod, rolora=FactorMethod, fedsa=FedSa,
    )  # fmt: skip
    for name, kind in kinds.items():
        config = RunConfig(learning=replace(PLAIN, method=name))
        assert isinstance(method_of(config, FAMILY), kind)
    assert isinstance(PlainMethod(), Method)


def test_products_without_the_dense_matrix(dense):
    draw = torch.Generator().manual_seed(0)
    b, a = torch.randn(OUT, 9, generator=draw), torch.randn(9, IN, generator=draw)
    u, s, vh = product_svd(b, a)
    np.testing.assert_allclose(u * s @ vh, dense.product(b.double().numpy(), a.double().numpy()), atol=1e-12)
    assert (s.diff() <= 0).all() and torch.allclose(u.t() @ u, torch.eye(len(s)).double())
    stack, total = Stack.empty(OUT, IN), np.zeros((OUT, IN))
    for k in range(12):
        b, a = torch.randn(OUT, 3, generator=draw), torch.randn(3, IN, generator=draw)
        stack.add(b, a, 0.1 * (k + 1))
        total += 0.1 * (k + 1) * dense.product(b.double().numpy(), a.double().numpy())
    assert len(stack.a) <= 2 * OUT
    np.testing.assert_allclose(stack.b @ stack.a, total, atol=1e-12)
    new_b, new_a = balanced_factors(stack.b, stack.a, 2, 0.5)
    np.testing.assert_allclose(new_b @ new_a, dense.best_of_rank(total, 2), atol=1e-12)
    np.testing.assert_allclose(new_a.norm(dim=1), 0.5)


def test_tail_norm_bounds_what_pruning_loses(dense):
    theta = theta_of(4)
    for module in (2, 3):
        part, small = FAMILY.slice(theta, module), FAMILY.slice(theta, module - 1)
        lost = 0.0
        for name in NAMES:
            if f"{name}.lora_A" in part:
                whole = dense.product(part[f"{name}.lora_B"].numpy(), part[f"{name}.lora_A"].numpy())
                if f"{name}.lora_A" in small:
                    whole -= dense.product(small[f"{name}.lora_B"].numpy(), small[f"{name}.lora_A"].numpy())
                lost += np.linalg.norm(whole)
        assert lost <= float(tail_norm(FAMILY, part, module - 1)) < 3 * lost
    assert float(tail_norm(FAMILY, FAMILY.slice(FAMILY.initial(0), 3), 1)) == 0.0


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": "flora"}, "server_optimizer mean"),
        ({"method": "fedsa", "server_optimizer": "mean"}, "average 0"),
        *(
            ({"method": method, "lost": "carry", **SERVER}, f"lost carry: .*{method}")
            for method in ("flexlora", "flora", "rolora", "fedsa", "hetlora")
        ),
        ({"basis": "energy", "lost": "carry"}, "lost carry: .*basis fixed"),
        ({"method": "ffa", "basis": "energy"}, "basis energy"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, word):
    with pytest.raises(ValueError, match=word):
        LearningConfig(**changes)


def test_stacks_within_workers_are_refused():
    with pytest.raises(ValueError, match=r"set learning\.stack 1, or workers 1"):
        RunConfig(workers=2, learning=LearningConfig(stack=2))
    assert RunConfig(workers=2).learning.stack == RunConfig(learning=LearningConfig(stack=2)).workers == 1
