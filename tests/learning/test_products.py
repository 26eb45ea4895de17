"""Products of frozen and of adapted layers against float64, and what they leave to torch."""

import pytest
import torch
from torch import nn

from airtune.learning import products
from airtune.learning.products import FrozenLinear, adapted_linear, freeze_products, frozen_linear, product, suits

N, IN, OUT, RANK, MORE = 37, 24, 20, 4, 3


@pytest.fixture
def given():
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (N, IN), "w": (OUT, IN), "bias": (OUT,), "a": (RANK, IN), "b": (OUT, RANK), "other": (N, OUT)}
    shapes |= {"more_a": (MORE, IN), "more_b": (OUT, MORE), "d": (N, OUT)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def close(got, want):
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[True, False])
def with_onednn(request, monkeypatch):
    """With oneDNN and as on a machine without."""
    if request.param and not products.available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "available", lambda: request.param)
    return request.param


def test_product_of_any_strides(given):
    if not products.available():
        pytest.skip("this torch has no oneDNN")
    x, w, bias, other = (given[name] for name in ("x", "w", "bias", "other"))
    want = x.double() @ w.double().t()
    close(product(x, w), want)
    close(product(x, w.t().contiguous().t(), bias, other), want + bias.double() + other.double())


def test_a_frozen_layer_passes_the_gradient_of_its_input_on(given, with_onednn):
    x, w, bias, d = (given[name] for name in ("x", "w", "bias", "d"))
    leaf = x.view(1, N, IN).clone().requires_grad_()
    y = frozen_linear(leaf, w, bias)
    assert y.shape == (1, N, OUT) and suits(leaf) == with_onednn
    close(y[0], x.double() @ w.double().t() + bias.double())
    y.backward(d[None])
    close(leaf.grad[0], d.double() @ w.double())


@pytest.mark.parametrize("beyond", [False, True])
def test_an_adapted_layer_s_gradients(given, beyond):
    if not products.available():
        pytest.skip("this torch has no oneDNN")
    wide = {name: tensor.double().requires_grad_() for name, tensor in given.items()}
    leaf = {name: given[name].clone().requires_grad_() for name in ("x", "a", "b")}
    rest = (given["more_a"], given["more_b"]) if beyond else None
    y = adapted_linear(leaf["x"], given["w"], given["bias"], (leaf["a"], leaf["b"]), rest, 0.5)
    change = wide["b"] @ wide["a"] + (wide["more_b"] @ wide["more_a"] if beyond else 0.0)
    want = wide["x"] @ (wide["w"] + 0.5 * change).t() + wide["bias"]
    close(y, want)
    y.backward(given["d"])
    want.backward(wide["d"].detach())
    for name, tensor in leaf.items():
        close(tensor.grad, wide[name].grad)


def test_what_is_left_to_torch(given):
    assert not suits(given["x"].double())
    assert not suits(given["x"][: products.LEAST_ROWS - 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(given["x"])


def test_only_frozen_layers_change_and_names_stay(given):
    model = nn.Sequential(nn.Linear(IN, OUT), nn.ReLU(), nn.Linear(OUT, IN))
    model[0].requires_grad_(False)
    before, names = model(given["x"]), [name for name, _ in model.named_parameters()]
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    freeze_products(model)
    assert [type(model[i]) for i in (0, 2)] == [FrozenLinear, nn.Linear]
    assert [name for name, _ in model.named_parameters()] == names
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    torch.testing.assert_close(model(given["x"]), before, rtol=1e-5, atol=1e-5)
