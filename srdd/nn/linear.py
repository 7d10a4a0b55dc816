"""The transformer's linear layers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

_MIN_ROWS = 4  # a product of fewer rows takes another CPU kernel, which rounds otherwise
# oneDNN's product, which torch's own compiler calls too; F.linear takes MKL's for float32, which
# is slower on processors that are not Intel's (docs/performance.md).
_ONEDNN = torch.backends.mkldnn.is_available() and "AVX" in torch.backends.cpu.get_cpu_capability()


def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, **__: Any) -> int:
    """What FlopCounterMode counts of it, as of any product."""
    return 2 * math.prod(x_shape) * weight_shape[0]


if _ONEDNN:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)


class RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on how many there are.

    On CPU, products of fewer than four rows are padded, so that an image drawn alone equals the
    same image drawn in a batch, bit for bit.
    """

    def forward(self, input: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002
        """[..., C] -> [..., C']; ``bias`` stands in for the layer's own."""
        bias = self.bias if bias is None else bias
        rows = input.shape[:-1].numel()
        if not input.is_cpu or rows == 0:
            return F.linear(input, self.weight, bias)
        if rows < _MIN_ROWS and not self.training:
            flat = F.pad(input.reshape(rows, -1), (0, 0, 0, _MIN_ROWS - rows))
            padded = _product(flat, self.weight, bias)
            return padded[:rows].view(*input.shape[:-1], self.out_features)
        return _product(input, self.weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    single = x.dtype == weight.dtype == torch.float32 and (bias is None or bias.dtype == x.dtype)
    if (
        not _ONEDNN
        or not single
        or x.dim() < 2
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _multiply(x, weight, bias)
    out: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Give x W^T + b by oneDNN, whatever the strides."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Product(torch.autograd.Function):
    """:func:`_multiply` with its three gradients, each a product of the same library.

    Once differentiable, and not for ``torch.func``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_nN, x_nK = grad.flatten(0, -2), x.flatten(0, -2)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _multiply(grad_nN, weight.T).view_as(x) if needs_x else None,
            _multiply(grad_nN.T, x_nK.T) if needs_weight else None,
            grad_nN.sum(0) if needs_bias else None,
        )
