"""The transformer's linear layers: values, gradients and independence of the batch."""

import pytest
import torch
import torch.nn.functional as F

from srdd.nn import linear
from srdd.nn.linear import RowLinear


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (1, 1, 24), (0, 24)])
@pytest.mark.parametrize("training", [True, False])
def test_values_and_gradients_are_those_of_a_linear_layer(
    shape: tuple[int, ...], training: bool
) -> None:
    layer = RowLinear(24, 40).train(training)
    x = torch.randn(shape, requires_grad=True)
    grad = torch.randn(*shape[:-1], 40)
    expected = F.linear(x, layer.weight, layer.bias)
    wanted = torch.autograd.grad(expected, (x, layer.weight, layer.bias), grad)
    found = layer(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    given = torch.autograd.grad(found, (x, layer.weight, layer.bias), grad)
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_bias_stands_in_for_the_layers_own_and_has_its_gradient() -> None:
    layer = RowLinear(8, 6, bias=False)
    x, bias = torch.randn(3, 4, 8), torch.randn(6, requires_grad=True)
    layer(x, bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((6,), 12.0))


def test_only_the_gradients_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = RowLinear(8, 6).requires_grad_(False)
    products: list[int] = []
    multiply = linear._multiply

    def counted(*given: torch.Tensor) -> torch.Tensor:
        products.append(1)
        return multiply(*given)

    monkeypatch.setattr(linear, "_multiply", counted)
    monkeypatch.setattr(linear, "_ONEDNN", True)
    x = torch.randn(5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert len(products) == 2  # forward, and the gradient of x
    assert layer.weight.grad is None


def test_autocast_reaches_the_product() -> None:
    layer = RowLinear(32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(4, 32)).dtype == torch.bfloat16


@pytest.mark.parametrize("width", [32, 512])
def test_a_row_is_the_same_to_the_bit_among_any_number(width: int) -> None:
    layer = RowLinear(width, 3 * width).eval()
    rows = torch.randn(300, width)
    with torch.no_grad():
        whole = layer(rows)
        for count in (1, 2, 3, 4, 7, 32, 130):
            assert torch.equal(layer(rows[:count]), whole[:count])
            assert torch.equal(layer(rows[-count:]), whole[-count:])
