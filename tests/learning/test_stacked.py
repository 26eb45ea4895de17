"""Many devices in one pass against device by device, and grouped products against one product per device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.config import LearningConfig
from airtune.learning.engine import Rates, device_of, log_prior
from airtune.learning.grouped import groups_of
from airtune.learning.pupil import Pupil
from airtune.learning.stacked import clip_each, fits, train_stack
from airtune.types import AirtuneError

RATES = Rates(adapter=5e-3, head=2e-3, server=1.0)
SIZES = (4, 6, 3)
KINDS = ["bert", "roberta", "distilbert", "llama", "mistral-window", "modernbert-window"]


def settings(optimizer="adamw", **changes):
    return LearningConfig(optimizer=optimizer, weight_decay=0.05, clip_norm=0.4, packing="packed", **changes)


def jobs_of(kit, case, module, whole=True, double=False, sizes=SIZES, own_starts=True):
    """Devices with batches of different sizes, priors and starting points, around one global adapter."""
    rng = np.random.default_rng(7)
    theta = kit.random_adapters(case.family)
    if double:
        theta = {name: tensor.double() for name, tensor in theta.items()}
    jobs = []
    for d, size in enumerate(sizes):
        batches = [rng.choice(len(case.tokens), size, replace=False) for _ in range(3)]
        start = case.family.slice(theta, module)
        if own_starts:
            start = {name: tensor * (1.0 + 0.1 * d) for name, tensor in start.items()}
        prior = log_prior(case.tokens.label[np.concatenate(batches)], kit.CLASSES)
        jobs.append(Pupil(start, batches, RATES, prior, case.family.rest(theta, module) if whole else None))
    return jobs


def one_by_one(case, jobs):
    return [job.train(case.engine, case.tokens) for job in jobs]


def assert_same(got, want, tolerance, floor=0.0):
    """Changes to a share of each tensor's norm, and to `floor`, what rounding of θ itself leaves of θ' − θ."""
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=tolerance)
        assert ours.tokens == theirs.tokens
        assert ours.delta.keys() == theirs.delta.keys()
        for name, change in theirs.delta.items():
            assert ours.delta[name].dtype == change.dtype and not ours.delta[name].requires_grad
            assert change.norm() > 1e-5
            assert float((ours.delta[name] - change).norm()) <= tolerance * float(change.norm()) + floor, name


@pytest.mark.parametrize("module", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_sgd_of_many_devices_is_that_of_each(kit, kind, module):
    case = kit.setup(kind, learning=settings("sgd"))
    jobs = jobs_of(kit, case, module)
    assert_same(train_stack(case.engine, case.tokens, jobs), one_by_one(case, jobs), 1e-5, 2e-7)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_in_double_they_agree_to_the_last_digits(kit, kind, optimizer):
    case = kit.setup(kind, learning=settings(optimizer), double=True)
    for whole in (True, False):
        jobs = jobs_of(kit, case, 1, whole, double=True)
        assert_same(train_stack(case.engine, case.tokens, jobs), one_by_one(case, jobs), 1e-9)


def test_devices_do_not_touch_one_another(kit):
    """A device's change is the same whoever else is in the stack, and is its own."""
    case = kit.setup("bert", learning=settings(), double=True)
    jobs = jobs_of(kit, case, 2, double=True)
    whole = train_stack(case.engine, case.tokens, jobs)
    assert_same(train_stack(case.engine, case.tokens, jobs[1:]), whole[1:], 1e-9)
    name = "classifier.weight"
    assert not torch.allclose(whole[0].delta[name], whole[1].delta[name], rtol=1e-2)


def test_what_is_fixed_takes_part_and_stays(kit):
    """A frozen A per device: the change of B is that of a device whose A is held by a zero learning rate."""
    case = kit.setup("bert", learning=LearningConfig(optimizer="sgd", clip_norm=1e9, packing="packed"), double=True)
    jobs = jobs_of(kit, case, 1, double=True)
    split = [
        replace(
            job,
            start={name: x for name, x in job.start.items() if not name.endswith("lora_A")},
            fixed={name: x for name, x in job.start.items() if name.endswith("lora_A")},
            batches=job.batches[:1],
        )
        for job in jobs
    ]
    got = train_stack(case.engine, case.tokens, split)
    want = one_by_one(case, [replace(job, batches=job.batches[:1]) for job in jobs])
    for ours, theirs in zip(got, want, strict=True):
        assert all(not name.endswith("lora_A") for name in ours.delta)
        for name, change in ours.delta.items():
            torch.testing.assert_close(change, theirs.delta[name], rtol=1e-9, atol=1e-13)


def test_the_engine_trains_one_by_one_after_a_stack(kit):
    """The model is as it was: the head's own layers, no groups."""
    case = kit.setup("roberta", learning=settings())
    jobs = jobs_of(kit, case, 1)
    before = one_by_one(case, jobs)
    train_stack(case.engine, case.tokens, jobs)
    after = one_by_one(case, jobs)
    assert all(torch.equal(b.delta[n], a.delta[n]) for b, a in zip(before, after, strict=True) for n in b.delta)


def ways(case, jobs):
    """The jobs' results in a stack, and device by device."""
    return {"stack": train_stack(case.engine, case.tokens, jobs), "single": one_by_one(case, jobs)}


@pytest.mark.parametrize(("kind", "least"), [("bert", 0.99), ("llama", 0.98)])
def test_bf16_moves_where_fp32_moves(kit, kind, least):
    """Each device's update, stacked or not, against that of fp32; it is not fp32's."""
    got = {}
    for precision in ("fp32", "bf16"):
        case = kit.setup(kind, learning=settings("sgd", precision=precision))
        got[precision] = ways(case, jobs_of(kit, case, 2))
    for way, results in got["bf16"].items():
        for ours, exact in zip(results, got["fp32"]["single"], strict=True):
            a, b = (torch.cat([x.flatten() for x in one.delta.values()]) for one in (ours, exact))
            assert a.dtype == torch.float32
            assert float(torch.cosine_similarity(a, b, dim=0)) >= least, way
            assert float(a.norm() / b.norm()) == pytest.approx(1.0, abs=0.05), way
            assert ours.loss == pytest.approx(exact.loss, rel=0.05) and ours.loss != exact.loss


@pytest.mark.parametrize("way", ["stack", "single"])
def test_bf16_learns_with_a_loss_that_falls_and_state_in_fp32(kit, way, monkeypatch):
    """Twelve times over the same batches, θ in fp32 throughout: leaves, gradients, AdamW's moments."""
    case = kit.setup("bert", learning=settings("adamw", precision="bf16"))
    jobs, optimizers = jobs_of(kit, case, 2), []
    make = case.engine.optimizer

    def kept(part, rates):
        optimizers.append(make(part, rates))
        return optimizers[-1]

    monkeypatch.setattr(case.engine, "optimizer", kept)
    losses = []
    for _ in range(12):
        results = ways(case, jobs)[way]
        losses.append(np.mean([one.loss for one in results]))
        moved = [
            {name: x + one.delta[name] for name, x in job.start.items()} for job, one in zip(jobs, results, strict=True)
        ]
        jobs = [replace(job, start=start) for job, start in zip(jobs, moved, strict=True)]
    assert losses[-1] < 0.8 * losses[0], losses
    leaves = [leaf for each in optimizers for group in each.param_groups for leaf in group["params"]]
    moments = [x for each in optimizers for state in each.state.values() for x in state.values()]
    assert len(moments) == 3 * len(leaves) > 0
    assert {x.dtype for x in [*leaves, *moments, *(leaf.grad for leaf in leaves)]} == {torch.float32}


@pytest.mark.parametrize("sizes", [(3, 3), (1, 5, 2)])
def test_grouped_product_is_one_product_per_device(sizes):
    draw = torch.Generator().manual_seed(0)
    total = sum(sizes)
    x = torch.randn(total, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    a, b = (torch.randn(len(sizes), *s, generator=draw, dtype=torch.float64) for s in ((2, 6), (5, 2)))
    got = groups_of(sizes, torch.device("cpu")).product(x, a, b)
    want = torch.cat([part @ a[d].T @ b[d].T for d, part in enumerate(x.split(list(sizes)))])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(got.square().sum(), x, retain_graph=True)
    (other,) = torch.autograd.grad(want.square().sum(), x)
    torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-12)


def test_clipping_is_torchs_for_each_device():
    draw = torch.Generator().manual_seed(0)
    part = {name: torch.zeros(3, *shape, requires_grad=True) for name, shape in (("a", (4, 2)), ("b", (5,)))}
    size = torch.tensor([0.01, 1.0, 30.0])
    for leaf in part.values():
        leaf.grad = torch.randn(leaf.shape, generator=draw) * size.view(3, *[1] * (leaf.dim() - 1))
    alone = [[leaf.grad[d].clone() for leaf in part.values()] for d in range(3)]
    clip_each(part, 0.5)
    for d, gradients in enumerate(alone):
        leaves = [torch.zeros_like(g, requires_grad=True) for g in gradients]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        for leaf, stack in zip(leaves, part.values(), strict=True):
            torch.testing.assert_close(stack.grad[d], leaf.grad)


def test_what_cannot_be_stacked_is_refused(kit):
    case = kit.setup("bert", learning=settings())
    first, other = jobs_of(kit, case, 1)[0], jobs_of(kit, case, 2)[0]
    moved = replace(first, rest={name: x + 1 for name, x in first.rest.items()})
    copied = replace(first, rest={name: x.clone() for name, x in first.rest.items()})
    assert not fits(first, other) and not fits(first, moved) and fits(first, copied)
    for alone in ({"pruning": 1}, {"measure": True}, {"rates": Rates(5e-3, 1e-3, 1.0)}):
        assert not fits(first, replace(first, **alone)), alone
    with pytest.raises(AirtuneError, match="one module"):
        train_stack(case.engine, case.tokens, [first, other])
    with pytest.raises(AirtuneError, match=r"learning\.stack: only packed"):
        kit.setup("bert", learning=LearningConfig(packing="bucketed", stack=2))


def test_divergence_in_a_stack_is_told_in_one_line(kit):
    case = kit.setup("bert", learning=settings())
    jobs = jobs_of(kit, case, 1)
    jobs[1].start["classifier.bias"][0] = float("nan")
    with pytest.raises(AirtuneError, match=r"training diverged: the loss became nan"):
        train_stack(case.engine, case.tokens, jobs)
    one_by_one(case, jobs[:1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none():
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(AirtuneError, match=r"learning\.device: torch finds no CUDA device here; use auto or cpu"):
        device_of("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_is_the_cpu(kit, kind):
    """In double precision; rotary embeddings are float32's whatever the model's."""
    rotary = kind not in ("bert", "roberta", "distilbert", "deberta")
    results = []
    for device in ("cpu", "cuda"):
        case = kit.setup(kind, learning=settings("sgd", device=device), double=True)
        jobs = jobs_of(kit, case, 1, double=True)
        results += [train_stack(case.engine, case.tokens, jobs), one_by_one(case, jobs)]
    for got in results[1:]:
        assert_same(got, results[0], 1e-6 if rotary else 1e-8)
