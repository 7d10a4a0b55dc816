"""A linear layer in 8-bit integers."""

import torch
from torch import Tensor, nn

from srdd.nn.linear import RowLinear


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers: weights by output channel, inputs by row, at run time.

    A row's result depends on that row alone, so an image still does not depend on its batch.
    """

    weight_KN: Tensor
    scale_N: Tensor
    bias: Tensor | None

    def __init__(self, linear: RowLinear) -> None:
        super().__init__()
        weight_NK = linear.weight.detach().float()
        scale_N = weight_NK.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight_KN", (weight_NK / scale_N[:, None]).round().to(torch.int8).T)
        self.register_buffer("scale_N", scale_N)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., K] -> [..., N]; ``bias`` stands in for the layer's own."""
        rows_nK = x.flatten(0, -2)
        scale_n1 = rows_nK.abs().amax(-1, keepdim=True).clamp_min_(1e-30).float() / 127
        rows_nK = (rows_nK / scale_n1).round_().to(torch.int8)
        sums_nN = torch._int_mm(rows_nK, self.weight_KN)
        scaled_nN: Tensor = sums_nN * scale_n1
        bias = self.bias if bias is None else bias
        if bias is None:
            scaled_nN.mul_(self.scale_N)
        else:
            torch.addcmul(bias.float(), scaled_nN, self.scale_N, out=scaled_nN)
        out: Tensor = scaled_nN.to(x.dtype).unflatten(0, x.shape[:-1])
        return out
