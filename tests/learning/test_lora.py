"""The nested family: slices of one adapter, one scale, against dense ΔW in plain models."""

import numpy as np
import pytest
import torch

from airtune.config import ModulesConfig
from airtune.learning.lora import add_scaled, attach, family_of, install, layer_index
from airtune.types import AirtuneError

ARCHITECTURES = ("bert", "roberta", "distilbert", "llama")


def family(kit, kind="bert", **changes):
    model = kit.plain_model(kind)
    config = ModulesConfig(**{"ranks": (2, 4), "depths": (2, 4), "targets": kit.KINDS[kind][2], **changes})
    return family_of(model, model.base_model_prefix, config)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_adapted_matrix_and_the_head_are_found(kit, kind):
    found = family(kit, kind)
    model = kit.plain_model(kind)
    assert found.layers == kit.LAYERS and len(found.matrices) == 2 * kit.LAYERS
    for matrix in found.matrices:
        weight = model.get_submodule(matrix.name).weight
        assert weight.shape == (matrix.out_features, matrix.in_features)
        assert f".{matrix.layer}." in matrix.name
    head = {name for name, _ in found.head}
    backbone = {f"{model.base_model_prefix}.{name}" for name, _ in model.base_model.named_parameters()}
    assert head == {name for name, _ in model.named_parameters()} - backbone


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("module", [1, 2, 3])
def test_a_small_module_is_the_global_adapter_with_the_rest_set_to_zero(kit, kind, module):
    """Three ways to the same logits: the slice alone, the zeroed global adapter, and dense W + (α/R) B A."""
    case = kit.setup(kind, ranks=(1, 2, 4), depths=(1, 3, 4))
    adapters = kit.random_adapters(case.family)
    index = np.arange(len(case.tokens))
    small = case.engine.logits(case.family.slice(adapters, module), case.tokens, index)

    rank, depth = case.family.ranks[module - 1], case.family.depths[module - 1]
    zeroed = {name: tensor.clone() for name, tensor in adapters.items()}
    for matrix in case.family.matrices:
        kept = rank if matrix.layer >= kit.LAYERS - depth else 0
        zeroed[f"{matrix.name}.lora_A"][kept:] = 0.0
        zeroed[f"{matrix.name}.lora_B"][:, kept:] = 0.0
    np.testing.assert_allclose(case.engine.logits(zeroed, case.tokens, index), small, rtol=0, atol=1e-5)

    with torch.no_grad():
        dense = kit.padded_logits(kit.merged(case.plain, case.family, adapters, module), case.tokens, index)
        other = kit.padded_logits(
            kit.merged(case.plain, case.family, adapters, 1 if module > 1 else 3), case.tokens, index
        )
    spread = float(dense.abs().max())
    np.testing.assert_allclose(small, dense.numpy(), rtol=0, atol=3e-5 * spread)
    assert np.abs(small - other.numpy()).max() > 1e-2 * spread  # the module matters


def test_modules_are_nested_views(kit):
    found = family(kit, ranks=(1, 2, 4), depths=(1, 3, 4))
    adapters = kit.random_adapters(found)
    for module in (1, 2):
        small, large = found.slice(adapters, module), found.slice(adapters, module + 1)
        assert set(small) < set(large)
        for name, tensor in small.items():
            assert tensor.untyped_storage().data_ptr() == adapters[name].untyped_storage().data_ptr()
            covered = large[name][tuple(slice(0, size) for size in tensor.shape)]
            assert torch.equal(tensor, covered)
    whole = found.slice(adapters, 3)
    assert whole.keys() == adapters.keys() and all(torch.equal(whole[name], adapters[name]) for name in whole)


def test_parameters_are_those_of_the_slice(kit):
    found = family(kit, "roberta", ranks=(1, 2, 4), depths=(1, 3, 4))
    for module in (1, 2, 3):
        part = found.slice(found.initial(0), module)
        assert found.parameters(module) == sum(tensor.numel() for tensor in part.values())


def test_the_first_adapter_changes_nothing_and_depends_on_the_seed_alone(kit):
    case = kit.setup("bert")
    index = np.arange(6)
    start = case.family.initial(5)
    assert all(torch.equal(tensor, case.family.initial(5)[name]) for name, tensor in start.items())
    assert not torch.equal(start["classifier.weight"], case.family.initial(6)["classifier.weight"])
    none = {name: start[name] for name, _ in case.family.head}
    np.testing.assert_array_equal(
        case.engine.logits(start, case.tokens, index), case.engine.logits(none, case.tokens, index)
    )
    for matrix in case.family.matrices:
        a = start[f"{matrix.name}.lora_A"]
        limit = matrix.in_features**-0.5
        assert a.abs().max() <= limit and a.std() == pytest.approx(limit / 3**0.5, rel=0.3)


def test_a_new_head_s_norm_passes_its_input_on(kit):
    """A norm whose scale started at zero would never learn, and would hide from the check of packing."""
    case = kit.setup("modernbert-window")
    start = case.family.initial(0)
    assert (start["head.norm.weight"] == 1).all() and (start["classifier.bias"] == 0).all()
    assert np.ptp(case.engine.logits(start, case.tokens, np.arange(8)), axis=0).min() > 0


def test_frozen_weights_take_no_gradient(kit):
    case = kit.setup("bert")
    assert not any(parameter.requires_grad for parameter in case.model.parameters())


def test_unknown_targets_are_refused_with_what_there_is(kit):
    with pytest.raises(AirtuneError) as refusal:
        family(kit, targets=("query", "q_proj", "nothing"))
    text = str(refusal.value)
    assert text.startswith("modules.targets: ") and "named q_proj, nothing" in text and "\n" not in text
    for there in ("query", "key", "value", "dense"):
        assert there in text.split("it has")[1]


def test_a_depth_beyond_the_model_is_refused(kit):
    with pytest.raises(AirtuneError, match=r"^modules\.depths: 5 is more than the model's 4 layers$"):
        family(kit, depths=(2, 5))


def test_a_model_is_adapted_once(kit):
    model = kit.plain_model("bert")
    found = family_of(model, "bert", ModulesConfig(ranks=(2,), depths=(2,)))
    install(model, found)
    with pytest.raises(AirtuneError, match="already adapted"):
        install(model, found)


def test_only_layers_that_some_module_adapts_are_wrapped(kit):
    found = family(kit, depths=(1, 2))
    assert {matrix.layer for matrix in found.matrices} == {2, 3} and found.layers == 4


def test_attach_forgets_the_last_slice(kit):
    case = kit.setup("bert")
    adapters = kit.random_adapters(case.family)
    index = np.arange(4)
    before = case.engine.logits(case.family.slice(adapters, 1), case.tokens, index)
    case.engine.logits(adapters, case.tokens, index)
    attach(case.model, case.installed, case.family, case.family.slice(adapters, 1))
    np.testing.assert_array_equal(case.engine.logits(case.family.slice(adapters, 1), case.tokens, index), before)


def test_layer_index_is_the_first_number():
    assert layer_index("bert.encoder.layer.11.attention.self.query") == 11
    assert layer_index("bert.pooler.dense") is None
    assert layer_index("layer2.dense") is None


def test_add_scaled_adds_to_the_leading_components():
    target = {"x.lora_B": torch.ones(3, 4)}
    add_scaled(target, [("x.lora_B", torch.full((3, 2), 2.0))], 0.5)
    assert target["x.lora_B"].tolist() == [[2.0, 2.0, 1.0, 1.0]] * 3
