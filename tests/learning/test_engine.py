"""Local training against a plain PEFT loop, in double precision; evaluation; what is refused."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from airtune.config import LearningConfig
from airtune.learning import engine as engine_module
from airtune.learning.engine import Rates, log_prior, rates_at
from airtune.types import AirtuneError

BATCHES = [np.array(rows) for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 10], [3, 1, 11, 5])]
RATES = Rates(adapter=5e-3, head=2e-3, server=1.0)
SETTINGS = LearningConfig(optimizer="adamw", weight_decay=0.05, clip_norm=0.4)
RANKS, DEPTHS = (2, 4), (2, 4)


def peft_model(case, start, module):
    """PEFT set up as module m alone: its rank, its layers, and lora_alpha so that the scale is the family's α/R."""
    rank, depth = RANKS[module - 1], DEPTHS[module - 1]
    layers = case.family.layers
    heads = sorted({name.split(".")[0] for name, _ in case.family.head})
    config = LoraConfig(
        r=rank,
        lora_alpha=case.config.alpha / RANKS[-1] * rank,
        target_modules=list(case.targets),
        layers_to_transform=list(range(layers - depth, layers)),
        layers_pattern=case.layers_pattern,
        modules_to_save=heads,
        lora_dropout=0.0,
        task_type="SEQ_CLS",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(copy.deepcopy(case.plain), config).double().eval()
    trained = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
            own = own.replace(".default.weight", "")
            parameter.data.copy_(start[own])
            trained[own] = parameter
    assert trained.keys() == start.keys()
    return model, trained


def plain_training(kit, case, start, module, prior=None, optimizer="adamw"):
    """The textbook loop: padded batches, PEFT model, torch optimiser, clipping."""
    model, trained = peft_model(case, start, module)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    adapter = [parameter for name, parameter in trained.items() if "lora" in name]
    head = [parameter for name, parameter in trained.items() if "lora" not in name]
    make = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    groups = [{"params": adapter, "lr": RATES.adapter}, {"params": head, "lr": RATES.head}]
    steps = make(groups, lr=1.0, weight_decay=SETTINGS.weight_decay)
    losses, norms = [], []
    for index in BATCHES:
        logits = kit.padded_logits(model, case.tokens, index)
        if prior is not None:
            logits = logits + prior
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(case.tokens.label[index]))
        steps.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(adapter + head, SETTINGS.clip_norm)))
        steps.step()
        losses.append(float(loss.detach()))
    delta = {name: parameter.detach() - before[name] for name, parameter in trained.items()}
    return delta, float(np.mean(losses)), norms


def double_start(kit, case, module):
    part = case.family.slice(kit.random_adapters(case.family), module)
    return {name: tensor.double() for name, tensor in part.items()}


@pytest.mark.parametrize("module", [1, 2])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama"])
def test_training_is_the_plain_peft_loop(kit, kind, module):
    """Packed and double: same loss and the same change of every tensor after four clipped AdamW steps."""
    case = kit.setup(kind, RANKS, DEPTHS, replace(SETTINGS, device="cpu"), double=True)
    assert case.engine.layout == "packed"
    start = double_start(kit, case, module)
    kept = {name: tensor.clone() for name, tensor in start.items()}
    prior = torch.tensor([-0.3, -1.5, -2.5])
    got = case.engine.train(start, case.tokens, BATCHES, RATES, prior)
    want, loss, norms = plain_training(kit, case, start, module, prior)
    assert min(norms) > SETTINGS.clip_norm  # clipping acts in every step
    assert got.loss == pytest.approx(loss, rel=1e-6)
    assert got.delta.keys() == want.keys()
    for name in want:
        assert want[name].abs().max() > 1e-3
        torch.testing.assert_close(got.delta[name], want[name], rtol=1e-4, atol=1e-7, msg=name)
    assert all(torch.equal(start[name], kept[name]) for name in start)
    assert got.tokens == sum(int(case.tokens.lengths[index].sum()) for index in BATCHES)


def test_sgd_is_the_plain_peft_loop(kit):
    config = LearningConfig(optimizer="sgd", weight_decay=SETTINGS.weight_decay, clip_norm=SETTINGS.clip_norm)
    case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
    start = double_start(kit, case, 1)
    got = case.engine.train(start, case.tokens, BATCHES, RATES)
    want, loss, _ = plain_training(kit, case, start, 1, optimizer="sgd")
    assert got.loss == pytest.approx(loss, rel=1e-9)
    for name in want:
        torch.testing.assert_close(got.delta[name], want[name], rtol=1e-6, atol=1e-10, msg=name)


def test_a_slice_in_the_context_of_the_whole_takes_its_part_of_the_whole_gradient(kit):
    """One plain gradient step: training Π_m θ with the rest of θ present moves it by Π_m of the whole step, A4."""
    config = LearningConfig(optimizer="sgd", clip_norm=1e9)
    case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
    adapters = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    whole = case.engine.train(adapters, case.tokens, BATCHES[:1], RATES)
    start, rest = case.family.slice(adapters, 1), case.family.rest(adapters, 1)
    part = case.engine.train(start, case.tokens, BATCHES[:1], RATES, rest=rest)
    assert part.loss == pytest.approx(whole.loss, rel=1e-12)
    want = case.family.slice(whole.delta, 1)
    assert part.delta.keys() == want.keys() and len(rest) > 0
    for name in want:
        assert want[name].abs().max() > 0
        torch.testing.assert_close(part.delta[name], want[name], rtol=1e-9, atol=1e-12, msg=name)
    alone = case.engine.train(start, case.tokens, BATCHES[:1], RATES)
    assert alone.loss != pytest.approx(whole.loss, rel=1e-6)


def test_padded_layout_trains_the_same(kit):
    config = LearningConfig(optimizer="adamw", weight_decay=0.05, clip_norm=0.4, packing="bucketed")
    case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
    start = double_start(kit, case, 2)
    got = case.engine.train(start, case.tokens, BATCHES, RATES)
    want, _, _ = plain_training(kit, case, start, 2)
    for name in want:
        torch.testing.assert_close(got.delta[name], want[name], rtol=1e-4, atol=1e-7, msg=name)


def test_every_call_starts_afresh(kit):
    """No optimiser state, gradient or slice of one device reaches the next."""
    case = kit.setup("bert", RANKS, DEPTHS)
    adapters = kit.random_adapters(case.family)
    first = case.engine.train(case.family.slice(adapters, 1), case.tokens, BATCHES, RATES)
    case.engine.train(adapters, case.tokens, BATCHES[::-1], RATES)
    again = case.engine.train(case.family.slice(adapters, 1), case.tokens, BATCHES, RATES)
    assert first.loss == again.loss
    assert all(torch.equal(first.delta[name], again.delta[name]) for name in first.delta)
    assert all(not tensor.requires_grad for tensor in first.delta.values())


def test_log_prior_by_hand():
    """Labels 0, 0, 1 of three classes: smoothed counts 3, 2, 1."""
    got = log_prior(np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(got.numpy(), np.log([3 / 6, 2 / 6, 1 / 6]), rtol=1e-6)


def test_prior_correction_by_hand(kit):
    """Loss of a step without movement: −z_y − log p_y + log Σ_c p_c e^{z_c}, averaged."""
    case = kit.setup("bert", RANKS, DEPTHS)
    adapters = kit.random_adapters(case.family)
    prior = log_prior(np.array([0] * 9 + [1]), 3)
    index = np.arange(6)
    z = case.engine.logits(adapters, case.tokens, index).astype(float)
    p, y = np.array([10, 2, 1]) / 13, case.tokens.label[index]
    want = np.mean([-z[i, y[i]] - math.log(p[y[i]]) + math.log((p * np.exp(z[i])).sum()) for i in range(6)])
    got = case.engine.train(adapters, case.tokens, [index], Rates(0.0, 0.0, 1.0), prior)
    assert got.loss == pytest.approx(want, rel=1e-5)
    without = case.engine.train(adapters, case.tokens, [index], Rates(0.0, 0.0, 1.0)).loss
    assert abs(without - want) > 1e-2
    assert all((tensor == 0).all() for tensor in got.delta.values())


def test_divergence_is_told_in_one_line(kit):
    case = kit.setup("bert", RANKS, DEPTHS, LearningConfig(rate=7e3))
    start = case.family.initial(0)
    start["classifier.bias"][0] = math.nan
    with pytest.raises(AirtuneError, match=r"nan; lower learning\.rate \(now 7000\) or learning\.server_rate"):
        case.engine.train(start, case.tokens, BATCHES, RATES)


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_backpropagation_stops_below_the_lowest_adapted_layer(kit, depth):
    case = kit.setup("bert", ranks=(2,), depths=(depth,))
    seen = {}

    def look(number):
        def hook(layer, inputs, output):
            seen[number] = (output[0] if isinstance(output, tuple) else output).requires_grad

        return hook

    for number, layer in enumerate(case.model.bert.backbone.encoder.layer):
        layer.register_forward_hook(look(number))
    case.engine.train(case.family.initial(0), case.tokens, BATCHES[:1], RATES)
    assert seen == {number: number >= 4 - depth for number in range(4)}


def test_shallow_modules_keep_less_for_the_backward_pass(kit):
    """Bytes that autograd saves grow with depth: layer by layer, nothing below the lowest adapted one."""
    case = kit.setup("bert", ranks=(2, 2, 2, 2), depths=(1, 2, 3, 4))
    adapters = kit.random_adapters(case.family)
    sizes = []
    for module in (1, 2, 3, 4):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            case.engine.train(case.family.slice(adapters, module), case.tokens, BATCHES[:1], RATES)
        sizes.append(sum(saved.values()))
    steps = np.diff(sizes)
    assert (steps > 0).all() and sizes[0] < 0.5 * sizes[3]
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)


@pytest.mark.parametrize("rounds", [2, 30])
def test_rates_fall_by_a_cosine(rounds):
    config = LearningConfig(rate=4e-3, head_rate=1e-3, final_rate=0.1)
    assert rates_at(config, 0, rounds) == Rates(4e-3, 1e-3, 1.0)
    last = rates_at(config, rounds - 1, rounds)
    assert (last.adapter, last.head, last.server) == pytest.approx((4e-4, 1e-4, 0.1))
    values = [rates_at(config, t, rounds).adapter for t in range(rounds)]
    assert (np.diff(values) < 0).all()


def test_rates_half_way_and_of_a_single_round():
    """Half way the cosine is 0: the mean of both ends."""
    config = LearningConfig(rate=4e-3, head_rate=1e-3, final_rate=0.1)
    assert rates_at(config, 5, 11).adapter == pytest.approx(0.55 * 4e-3)
    assert rates_at(config, 0, 1) == Rates(4e-3, 1e-3, 1.0)


@pytest.mark.parametrize("packing", ["packed", "bucketed"])
def test_evaluation_does_not_depend_on_the_batches(kit, monkeypatch, packing):
    case = kit.setup("bert", RANKS, DEPTHS, LearningConfig(packing=packing))
    adapters = kit.random_adapters(case.family)
    everything = np.arange(len(case.tokens))
    whole = case.engine.logits(adapters, case.tokens, everything)
    atol = 2e-5 * np.abs(whole).max()
    some = np.array([7, 0, 13, 1, 7])
    np.testing.assert_allclose(case.engine.logits(adapters, case.tokens, some), whole[some], rtol=0, atol=atol)
    for tokens in (1, 25):
        monkeypatch.setattr(engine_module, "EVALUATION_TOKENS", tokens)
        np.testing.assert_allclose(case.engine.logits(adapters, case.tokens, everything), whole, rtol=0, atol=atol)


def test_accuracy_counts_the_right_ones(kit):
    case = kit.setup("bert", RANKS, DEPTHS)
    adapters = kit.random_adapters(case.family)
    index = np.arange(12)
    guess = kit.padded_logits(kit.merged(case.plain, case.family, adapters, 2), case.tokens, index).argmax(1)
    want = float((guess.numpy() == case.tokens.label[index]).mean())
    assert case.engine.accuracy(adapters, case.tokens, index) == pytest.approx(want)
    assert 0 < want < 1


def test_what_is_fixed_is_present_but_not_trained(kit):
    """With A fixed, B and head move by their part of a plain gradient step, and A is not in the upload."""
    config = LearningConfig(optimizer="sgd", clip_norm=1e9)
    case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
    start = double_start(kit, case, 1)
    whole = case.engine.train(start, case.tokens, BATCHES[:1], RATES).delta
    fixed = {name: tensor for name, tensor in start.items() if name.endswith("lora_A")}
    loose = {name: tensor for name, tensor in start.items() if name not in fixed}
    part = case.engine.train(loose, case.tokens, BATCHES[:1], RATES, fixed=fixed).delta
    assert fixed and part.keys() == loose.keys()
    for name in part:
        torch.testing.assert_close(part[name], whole[name], rtol=1e-9, atol=1e-12)


def test_merged_changes_are_changes_of_the_frozen_weights(kit):
    """Logits with `merged` are those of a plain model whose weights were changed."""
    case = kit.setup("bert", RANKS, DEPTHS)
    adapters = kit.random_adapters(case.family)
    changed = copy.deepcopy(kit.merged(case.plain, case.family, adapters, 2))
    parameters, draw = dict(changed.named_parameters()), torch.Generator().manual_seed(0)
    for matrix in case.family.matrices:
        change = 0.1 * torch.randn(matrix.out_features, matrix.in_features, generator=draw)
        adapters[f"{matrix.name}.merged"] = change
        parameters[f"{matrix.name}.weight"].data += change
    index = np.arange(6)
    want = kit.padded_logits(changed, case.tokens, index).detach().numpy()
    np.testing.assert_allclose(case.engine.logits(adapters, case.tokens, index), want, rtol=1e-3, atol=1e-4)
    for matrix in case.family.matrices:  # and it is gone with the next adapter
        del adapters[f"{matrix.name}.merged"]
    assert np.abs(case.engine.logits(adapters, case.tokens, index) - want).max() > 1e-2


def test_fedprox_pulls_back_by_hand(kit):
    """SGD on the loss and (μ/2)‖θ − θ_t‖²: the second of two equal steps is the plain one less η μ times the first."""
    for proximal in (0.0, 3.0):
        config = LearningConfig(optimizer="sgd", clip_norm=1e9, proximal=proximal)
        case = kit.setup("bert", RANKS, DEPTHS, config, double=True)
        start = double_start(kit, case, 1)
        one = case.engine.train(start, case.tokens, BATCHES[:1], RATES).delta
        there = {name: start[name] + one[name] for name in start}
        plain = kit.setup("bert", RANKS, DEPTHS, LearningConfig(optimizer="sgd", clip_norm=1e9), double=True)
        next_step = plain.engine.train(there, case.tokens, BATCHES[1:2], RATES).delta
        two = case.engine.train(start, case.tokens, BATCHES[:2], RATES).delta
        for name in start:
            rate = RATES.adapter if "lora" in name else RATES.head
            want = one[name] + next_step[name] - rate * proximal * one[name]
            torch.testing.assert_close(two[name], want, rtol=1e-9, atol=1e-13, msg=name)


def test_pruning_adds_the_gradient_of_the_tail_s_norm(kit):
    """One SGD step with weight λ: B's columns beyond module 1 move by −η λ ‖A‖ B/‖B‖ more, its first ones as before."""
    weight = 0.5
    config = LearningConfig(optimizer="sgd", clip_norm=1e9, prune_weight=weight)
    case = kit.setup("bert", RANKS, (4, 4), config, double=True)
    start = {name: tensor.double() for name, tensor in kit.random_adapters(case.family).items()}
    plain = case.engine.train(start, case.tokens, BATCHES[:1], RATES).delta
    pruned = case.engine.train(start, case.tokens, BATCHES[:1], RATES, pruning=1).delta
    for matrix in case.family.matrices:
        a, b = start[f"{matrix.name}.lora_A"][2:], start[f"{matrix.name}.lora_B"][:, 2:]
        name = f"{matrix.name}.lora_B"
        more = pruned[name] - plain[name]
        assert more[:, :2].abs().max() < 1e-12
        torch.testing.assert_close(
            more[:, 2:], -RATES.adapter * weight * a.norm() * b / b.norm(), rtol=1e-6, atol=1e-12
        )


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.55, 0.1]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.55, 0.1]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]),
    ],
)
def test_rates_rise_then_fall(schedule, want):
    """Three rounds of warm-up, then from 1 in round 3 to a tenth in round 5, half way down in round 4."""
    config = LearningConfig(schedule=schedule, warmup_rounds=3, final_rate=0.1, rate=2.0, head_rate=1.0)
    got = [rates_at(config, t, 6) for t in range(6)]
    assert [one.server for one in got] == pytest.approx(want)
    assert [one.adapter for one in got] == pytest.approx([2.0 * x for x in want])
