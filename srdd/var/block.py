"""A block of the transformer: attention and MLP under the class's AdaLN."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.nn.linear import RowLinear
from srdd.rng import uniform
from srdd.var.attention import AttentionConstants, SelfAttention, attention_constants
from srdd.var.config import TransformerConfig

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class FeedForward(nn.Module):
    """Two layers around a tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = RowLinear(width, hidden)
        self.fc2 = RowLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, l, W] -> [B, l, W]."""
        h: Tensor = self.fc1(x)
        if torch.is_grad_enabled():
            h = F.gelu(h, approximate="tanh")
        else:
            torch.ops.aten.gelu_(h, approximate="tanh")
        out: Tensor = self.fc2(h)
        return out


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the class (adaLN)."""

    def __init__(self, config: TransformerConfig, drop_path: float) -> None:
        super().__init__()
        width = config.width
        self.drop_path = drop_path
        self.eps = config.norm_eps
        self.attn = SelfAttention(width, config.num_heads, config.attn_l2_norm)
        self.ffn = FeedForward(width, round(width * config.mlp_ratio))
        if config.shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        else:
            self.ada_lin = RowLinear(width, 6 * width)

    def ada(self, given: Tensor) -> Tensor:
        """This block's AdaLN before 1 is added to its scales: [B, 6, W].

        Args:
            given: the class's activation [B, W], or, where all blocks share one AdaLN, its rows
                [B, 6, W].
        """
        if given.dim() == 3:
            return given + self.ada_gss[0]
        out: Tensor = self.ada_lin(given).unflatten(1, (6, -1))
        return out

    def forward(
        self, x: Tensor, given: Tensor, attend: Attend, path_keys_B: Tensor | None = None
    ) -> Tensor:
        """The block as training runs it, by its own weights alone: [B, L, W] -> [B, L, W].

        Args:
            x: all scales.
            given: what :meth:`ada` takes.
            attend: queries, keys and values [B, H, L, hd], and the softmax's scale, to what the
                heads attended to.
            path_keys_B: int64 [B], keys of stochastic depth; None leaves it out.
        """
        ada_B6W = self.ada(given)
        ada_B6W[:, 2:4].add_(1)
        (constants,) = attention_constants([self.attn])
        q, k, v = self.project(x, ada_B6W, constants)
        attended = attend(q, k, v, self.attn.softmax_scale)
        return self.finish(x, attended, ada_B6W, path_keys_B)

    def modulated(self, x: Tensor, scale_BW: Tensor, shift_BW: Tensor) -> Tensor:
        """Layer norm without parameters, then the class's scale and shift."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        reuse = None if torch.is_grad_enabled() else normed
        return torch.addcmul(shift_BW[:, None], normed, scale_BW[:, None], out=reuse)

    def project(
        self, x: Tensor, ada_B6W: Tensor, constants: AttentionConstants
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first half: [B, l, W] -> queries, keys and values, three times [B, H, l, hd]."""
        return self.attn.project(self.modulated(x, ada_B6W[:, 2], ada_B6W[:, 4]), constants)

    def finish(
        self, x: Tensor, attended: Tensor, ada_B6W: Tensor, path_keys_B: Tensor | None = None
    ) -> Tensor:
        """The second half: what the heads attended to [B, H, l, hd], and the MLP -> [B, l, W]."""
        x = self.add_branch(x, self.attn.merge(attended), ada_B6W[:, 0], path_keys_B, 0)
        branch = self.ffn(self.modulated(x, ada_B6W[:, 3], ada_B6W[:, 5]))
        return self.add_branch(x, branch, ada_B6W[:, 1], path_keys_B, 1)

    def add_branch(
        self, x: Tensor, branch: Tensor, gamma_BW: Tensor, path_keys_B: Tensor | None, index: int
    ) -> Tensor:
        """Add a gated branch; stochastic depth drops it for some images, keyed by image."""
        if path_keys_B is not None and self.drop_path > 0:
            kept_B = uniform(path_keys_B, index) >= self.drop_path
            gamma_BW = gamma_BW * (kept_B / (1 - self.drop_path)).to(gamma_BW)[:, None]
        return torch.addcmul(x, branch, gamma_BW[:, None])
