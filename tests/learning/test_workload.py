"""Costs of a module against counted FLOPs, counted parameters and measured memory."""

import copy
import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from airtune.config import LearningConfig, ModulesConfig
from airtune.learning import attending, packed, products
from airtune.learning.engine import Engine, Rates
from airtune.learning.lora import attach, family_of, install
from airtune.learning.workload import modules_of, workload

ARCHITECTURES = ("bert", "roberta", "distilbert", "llama")
RANKS, DEPTHS = (2, 4, 8, 8), (1, 2, 3, 4)


def flash_forward(query, key, value, *_, out_shape=None, **__):
    return sdpa_flop_count(query, key, value)


def flash_backward(out_gradient, query, key, value, *_, out_shape=None, **__):
    return sdpa_backward_flop_count(out_gradient, query, key, value)


FLASH = {  # torch counts these kernels on a GPU and forgets them on a CPU; the formulas are torch's own
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flash_forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward,
}


@pytest.fixture(autouse=True)
def plain_layers(monkeypatch):
    """A device is modelled as running torch's own products and attention; so does what is counted here."""
    monkeypatch.setattr(products, "available", lambda: False)
    monkeypatch.setattr(attending, "LONGEST", 0)


def adapted(kit, kind, **changes):
    """Random model with its family installed, not packed."""
    model = kit.plain_model(kind, **changes)
    config = ModulesConfig(ranks=RANKS, depths=DEPTHS, targets=kit.KINDS[kind][2], alpha=8.0, bits_per_parameter=16)
    family = family_of(model, model.base_model_prefix, config)
    return model, family, install(model, family), config


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("length", [6, 40])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_flops_are_those_counted(kit, kind, length, whole):
    """One step on six samples of equal length, counted by torch: forward exactly, both together within 1 %."""
    model, family, installed, _ = adapted(kit, kind)
    tokens = 6 * length
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 64, (6, length)))
    totals = []
    for module in range(1, 5):
        load = workload(model, family, installed, module, length, whole)
        adapters = kit.random_adapters(family)
        part = {name: x.clone().requires_grad_() for name, x in family.slice(adapters, module).items()}
        attach(model, installed, family, part, family.rest(adapters, module) if whole else None)
        with FlopCounterMode(display=False, custom_mapping=FLASH) as counter:
            logits = model(input_ids=ids).logits
            forward = counter.get_total_flops()
            torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long)).backward()
        total = counter.get_total_flops()
        assert load.forward_flop_per_token * tokens == pytest.approx(forward, rel=1e-3)
        assert load.backward_flop_per_token * tokens == pytest.approx(total - forward, rel=0.02)
        assert load.flop_per_token * tokens == pytest.approx(total, rel=0.01)
        totals.append(load.flop_per_token)
    assert (np.diff(totals) > 0.1 * totals[0]).all()


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_downlink_is_the_slice_or_the_whole_adapter(kit, kind):
    model, family, installed, config = adapted(kit, kind)
    alone = modules_of(model, family, installed, config, 12.0, 192.0)
    whole = modules_of(model, family, installed, config, 12.0, 192.0, whole=True)
    assert alone.downlink_bit.tolist() == alone.payload_bit.tolist() == whole.payload_bit.tolist()
    assert set(whole.downlink_bit) == {alone.payload_bit[-1]}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_parameters_and_payload_are_what_peft_would_train(kit, kind):
    model, family, installed, config = adapted(kit, kind)
    modules = modules_of(model, family, installed, config, 12.0, 192.0)
    assert len(modules) == 4 and modules.rank.tolist() == list(RANKS) and modules.depth.tolist() == list(DEPTHS)
    heads = sorted({name.split(".")[0] for name, _ in family.head})
    for module in range(4):
        lora = LoraConfig(
            r=RANKS[module],
            target_modules=list(config.targets),
            layers_to_transform=list(range(4 - DEPTHS[module], 4)),
            layers_pattern=kit.KINDS[kind][3],
            modules_to_save=heads,
            task_type="SEQ_CLS",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            trainable, _ = get_peft_model(copy.deepcopy(kit.plain_model(kind)), lora).get_nb_trainable_parameters()
        assert modules.parameters[module] == trainable
        assert modules.payload_bit[module] == 16 * trainable + 4096


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive at once, from the birth and the death of every storage made inside."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def _drop(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.sizes or storage._cdata in given:
                continue
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata)
        return out


def test_live_bytes_by_hand():
    """Two tensors of 400 bytes at once, a third after one has died."""
    with LiveBytes() as live:
        a = torch.ones(100)
        b = a + 1.0
        a.view(10, 10).add_(1.0)
        del a
        c = b * 2.0
    assert (live.peak, live.now) == (800, 800)
    del b, c
    assert live.now == 0


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_memory_is_what_a_step_takes(kit, kind, whole, monkeypatch):
    """Frozen weights and the most that two local steps hold at once, packed: within 25 % for every module.

    A device is modelled as running the whole last layer and attention with a row for each sequence; so does the engine
    here.
    """
    wide = {"dim": 64, "hidden_dim": 256} if kind == "distilbert" else {"hidden_size": 64, "intermediate_size": 256}
    model, family, installed, config = adapted(kit, kind, **wide)
    tokens = kit.token_set(40, longest=40)
    batch = np.arange(16)
    held = float(tokens.lengths[batch].sum())
    modules = modules_of(model, family, installed, config, held / len(batch), held, whole)
    frozen = 4 * sum(parameter.numel() for parameter in model.parameters())
    learning = LearningConfig(optimizer="adamw", packing="packed", device="cpu")
    engine = Engine(model, family, installed, learning, tokens)
    engine.batcher.backbone.restore()
    monkeypatch.setattr(packed, "_placed", lambda lengths, longest: np.arange(len(lengths)) * longest)
    measured = []
    for module in range(1, 5):
        adapters = kit.random_adapters(family)
        part, beyond = family.slice(adapters, module), family.rest(adapters, module) if whole else {}
        with LiveBytes() as live:
            rest = {name: tensor.clone() for name, tensor in beyond.items()}
            engine.train(part, tokens, [batch, batch], Rates(1e-3, 1e-3, 1.0), rest=rest or None)
        measured.append(live.peak)
    ratio = (modules.memory_byte - frozen) / measured
    assert (np.diff(measured) > 0).all() and measured[0] > frozen  # activations are most of it here
    assert ((ratio > 0.8) & (ratio < 1.25)).all(), ratio


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_whole_adapter_takes_four_bytes_for_each_parameter_not_trained(kit, kind):
    """Nothing else differs: frozen components keep no activations, gradients or moments."""
    model, family, installed, config = adapted(kit, kind)
    alone = modules_of(model, family, installed, config, 12.0, 192.0).memory_byte
    whole = modules_of(model, family, installed, config, 12.0, 192.0, whole=True).memory_byte
    adapters = kit.random_adapters(family)
    everything = sum(tensor.numel() for tensor in adapters.values())
    missing = [everything - sum(tensor.numel() for tensor in family.slice(adapters, m).values()) for m in range(1, 5)]
    assert missing[-1] == 0 < min(missing[:-1])
    np.testing.assert_allclose(whole - alone, 4.0 * np.array(missing), rtol=1e-12)


def test_memory_grows_with_the_batch_and_depth_not_with_the_layers_below(kit):
    model, family, installed, config = adapted(kit, "bert")
    small = modules_of(model, family, installed, config, 12.0, 100.0).memory_byte
    large = modules_of(model, family, installed, config, 12.0, 200.0).memory_byte
    assert (np.diff(small) > 0).all()
    per_token = (large - small) / 100.0
    np.testing.assert_allclose(np.diff(per_token), np.diff(per_token).mean(), rtol=0.1)


def test_probing_leaves_the_model_as_it_was(kit):
    model, family, installed, config = adapted(kit, "bert")
    modules_of(model, family, installed, config, 12.0, 100.0)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_probing_keeps_no_model_alive(kit):
    """Storages of the weights are gone with the model: no graph that saved them outlives the probe."""

    def held_byte():
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, torch.nn.Parameter)]
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
        return sum(storages.values())

    before = held_byte()
    model, family, installed, config = adapted(kit, "bert")
    whole = sum(parameter.nbytes for parameter in model.parameters())
    modules_of(model, family, installed, config, 12.0, 96.0)
    assert held_byte() >= before + whole
    del model, family, installed
    assert held_byte() < before + whole / 10
