"""Starting from a PEFT adapter, against what PEFT itself computes with it."""

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from airtune.config import ModulesConfig
from airtune.learning.lora import family_of
from airtune.learning.method import Nest
from airtune.learning.methods.personal import FedSa
from airtune.learning.methods.products import FedEx, Flora
from airtune.learning.server import first_server
from airtune.learning.warm_start import read_adapter, warm_start
from airtune.types import AirtuneError


@pytest.fixture
def made(tmp_path, kit):
    """`made(kind, **settings)`: case, plain PEFT model of random LoRA over it, and the folder where it is saved."""

    def make(kind="bert", layers=(0, 1, 2, 3), **settings):
        case = kit.setup(kind, ranks=(2, 6), depths=(2, 4))
        names = [matrix.name for matrix in case.family.matrices if matrix.layer in layers]
        names = settings.pop("target_modules", names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(4)
                config = LoraConfig(target_modules=names, **{"task_type": TaskType.SEQ_CLS, "r": 3, **settings})
                model = get_peft_model(copy.deepcopy(case.plain), config).eval()
                for name, parameter in model.named_parameters():
                    if "lora_" in name or "modules_to_save" in name:
                        parameter.data = 0.3 * torch.randn_like(parameter)
            model.save_pretrained(tmp_path / "adapter")
        return case, model, tmp_path / "adapter"

    return make


def started(case, folder, seed=0):
    return warm_start(read_adapter(folder), case.family, case.family.initial(seed))


def with_head_of(case, adapters):
    """The adapter with the model's own head, which PEFT keeps where it saves none."""
    return adapters | {name: dict(case.plain.named_parameters())[name].detach() for name, _ in case.family.head}


SETTINGS = {
    "other scale": {"lora_alpha": 5},
    "own scale": {"lora_alpha": 4, "r": 3},
    "largest rank": {"r": 6, "lora_alpha": 8},
    "top layers": {"layers": (2, 3)},
    "lower layers": {"layers": (0, 1)},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 5},
    "patterns": {"rank_pattern": {".*layers?.1.*": 5, ".*layers?.3.*": 1}, "alpha_pattern": {".*layers?.3.*": 7}},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_computes_what_peft_computes(made, kit, kind, name):
    case, model, folder = made(kind, **SETTINGS[name])
    adapters, told = started(case, folder)
    index = np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(model, case.tokens, index).numpy()
    got = case.engine.logits(adapters, case.tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * max(1.0, np.abs(want).max()))
    fresh = case.engine.logits(case.family.initial(0), case.tokens, index)
    assert np.abs(got - fresh).max() > 0.1 * np.abs(want).max() and "with its task head" in told


def test_the_rest_starts_as_usual(made):
    case, _, folder = made(r=3, layers=(2, 3))
    adapters, told = started(case, folder, seed=9)
    usual = case.family.initial(9)
    assert told.startswith("rank 3 on 4 matrices")
    saved = load_file(folder / "adapter_model.safetensors")
    for matrix in case.family.matrices:
        a, b = (adapters[f"{matrix.name}.{x}"] for x in ("lora_A", "lora_B"))
        rank = 3 if matrix.layer in (2, 3) else 0
        assert torch.equal(a[rank:], usual[f"{matrix.name}.lora_A"][rank:]) and not b[:, rank:].any()
        assert a.shape == (6, matrix.in_features) and a[rank:].any()
        if rank:
            assert torch.equal(a[:rank], saved[f"base_model.model.{matrix.name}.lora_A.weight"])


def test_a_head_that_is_not_there_or_of_other_classes_is_fresh(made, kit):
    case, model, folder = made(task_type=None)
    adapters, told = started(case, folder)
    usual = case.family.initial(0)
    assert "a fresh task head" in told and all(torch.equal(adapters[name], usual[name]) for name, _ in case.family.head)
    index = np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(model, case.tokens, index).numpy()
    got = case.engine.logits(with_head_of(case, adapters), case.tokens, index)
    np.testing.assert_allclose(got, want, rtol=0, atol=3e-5 * max(1.0, np.abs(want).max()))
    shutil.rmtree(folder)
    _, _, folder = made()
    more = kit.plain_model("bert", classes=5)
    family = family_of(more, more.base_model_prefix, case.config)
    adapters, told = warm_start(read_adapter(folder), family, family.initial(0))
    assert "a fresh task head" in told and adapters["classifier.weight"].shape[0] == 5


def change_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(change(tensors), folder / "adapter_model.safetensors")


def only_pickle(folder):
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


def without(tensors, part):
    found = next(name for name in tensors if part in name)
    return {name: tensor for name, tensor in tensors.items() if name != found}


def narrowed(tensors):
    return {name: tensor[:, :-1].contiguous() if "lora_A" in name else tensor for name, tensor in tensors.items()}


def poisoned(tensors):
    return {name: tensor * float("nan") if "lora_B" in name else tensor for name, tensor in tensors.items()}


BROKEN = {
    "no folder": (shutil.rmtree, r"there is no such folder; a PEFT folder"),
    "pickle": (only_pickle, r"only pickle weights \(adapter_model.bin\), which can run code"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"holds no adapter_model.safetensors"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), r"holds no adapter_config.json"),
    "torn": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12345678"), r"is damaged"),
    "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), r"is damaged"),
    "a list": (lambda f: (f / "adapter_config.json").write_text("[]"), r"is damaged"),
    "not LoRA": (lambda f: change_config(f, peft_type="IA3"), r"peft_type is IA3; only LORA"),
    "biases": (lambda f: change_config(f, bias="all"), r"trains biases \(bias all\)"),
    "PiSSA": (lambda f: change_config(f, init_lora_weights="pissa"), r"init_lora_weights pissa changes"),
    "alpha": (lambda f: change_config(f, lora_alpha=None), r"lora_alpha of .* is None; a positive number"),
    "pattern": (lambda f: change_config(f, alpha_pattern=[1]), r"lora_alpha of .*; a positive number"),
    "one factor": (lambda f: change_tensors(f, lambda t: without(t, "lora_B")), r"has only one of lora_A and lora_B"),
    "shapes": (lambda f: change_tensors(f, narrowed), r"has factors \(3, 31\) and \(32, 3\), not \(r, 32\) and"),
    "not finite": (lambda f: change_tensors(f, poisoned), r"is not finite"),
    "more": (
        lambda f: change_tensors(f, lambda t: t | {"base_model.model.bert.pooler.dense.bias": torch.zeros(32)}),
        r"holds bert.pooler.dense.bias, which is neither LoRA nor the task head",
    ),
    "nothing": (lambda f: change_tensors(f, lambda t: {"classifier.bias": torch.zeros(3)}), r"holds no lora_A"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_started_from_is_refused_in_one_line(made, name):
    case, _, folder = made()
    damage, why = BROKEN[name]
    damage(folder)
    with pytest.raises(AirtuneError, match=rf"^model\.adapter: {folder}: .*{why}") as refusal:
        started(case, folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"r": 7}, r"has rank 7, more than modules.ranks allows \(6\); raise the largest rank, or merge"),
        ({"use_dora": True}, r"it uses use_dora; only plain LoRA"),
        ({"target_modules": ["query", "key"]}, r"adapts .*\.key, which the family does not; set modules.targets"),
    ],
)
def test_another_kind_of_adapter_is_refused(made, settings, why):
    case, _, folder = made(**settings)
    with pytest.raises(AirtuneError, match=why):
        started(case, folder)


def test_methods_with_weights_of_their_own_start_from_the_same_function(made, kit):
    """FLoRA merges the adapter before its first fresh factors; FedSA gives it to every device."""
    case, model, folder = made()
    adapters, _ = started(case, folder)
    index = np.arange(len(case.tokens))
    with torch.no_grad():
        want = kit.padded_logits(model, case.tokens, index).numpy()
    sizes = ModulesConfig(ranks=(2, 6), depths=(2, 4), targets=case.targets, alpha=8.0)
    nest, fresh = Nest(case.family, sizes, True), case.family.initial(0)
    for method in (Flora(nest, 0), FedEx(nest), FedSa(nest)):
        theta, kept = method.start(adapters)
        server = first_server(theta, kept)
        lesson = method.lesson(0, theta, server, 3, 1)
        for given in (theta, method.models(theta, server)[0]):
            got = case.engine.logits(given, case.tokens, index)
            np.testing.assert_allclose(got, want, rtol=0, atol=5e-5 * max(1.0, np.abs(want).max()))
        for name, tensor in lesson.start.items():
            if name.endswith(".lora_B"):
                assert torch.equal(tensor, (0.0 if isinstance(method, Flora) else 1.0) * adapters[name][:, :2]), name
        if isinstance(method, Flora):
            assert all(torch.equal(theta[name], fresh[name]) for name in fresh if name.endswith((".lora_A", ".lora_B")))
            paid = sum(min(3 * (m.in_features + m.out_features), m.in_features * m.out_features)
                       for m in case.family.matrices)  # fmt: skip
            assert int(kept["merged_parameters"]) == paid
    assert not FedSa(nest).start(fresh)[1] and int(Flora(nest, 0).start(fresh)[1]["merged_parameters"]) == 0


def test_the_saved_adapter_is_the_one_peft_reads(made, kit):
    """The reference itself: PEFT loads from the folder what the tests above compare with."""
    case, model, folder = made()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = PeftModel.from_pretrained(copy.deepcopy(case.plain), folder).eval()
    index = np.arange(4)
    with torch.no_grad():
        left, right = (kit.padded_logits(m, case.tokens, index) for m in (model, again))
    torch.testing.assert_close(left, right)
