"""VAR's transformer over scales. VAR and SDD are this model; they differ by ``mask`` alone.

Letters: B images, L codes of all scales, l of one, W width, C latent channels, V vocabulary.
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.attention import KVCache, RowLinear, SelfAttention
from srdd.config import TransformerConfig
from srdd.errors import UserError
from srdd.quantize import MultiScaleQuantizer
from srdd.rng import uniform
from srdd.scales import ScaleSchedule


class Conditioning(NamedTuple):
    """All that the class decides, computed once: each row belongs to an image."""

    start_BW: Tensor  # class embedding, the start token before its position
    blocks_BD6W: Tensor  # AdaLN of each of D blocks: gamma x2, scale x2, shift x2
    head_B2W: Tensor  # AdaLN before the head: scale, shift

    def select(self, rows_B: Tensor | slice) -> "Conditioning":
        """The conditioning of some rows."""
        return Conditioning(*(part[rows_B] for part in self))

    @staticmethod
    def cat(parts: "list[Conditioning]") -> "Conditioning":
        """Join rows."""
        return Conditioning(*(torch.cat(same) for same in zip(*parts, strict=True)))


class FeedForward(nn.Module):
    """Two layers around a tanh-GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = RowLinear(width, hidden)
        self.fc2 = RowLinear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, l, W] -> [B, l, W]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
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

    def modulated(self, x: Tensor, scale_BW: Tensor, shift_BW: Tensor) -> Tensor:
        """Layer norm without parameters, then the class's scale and shift."""
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(shift_BW[:, None], normed, 1 + scale_BW[:, None])

    def keep_path(self, branch_BlW: Tensor, path_keys_B: Tensor | None, branch: int) -> Tensor:
        """Stochastic depth, keyed by image: drop the branch of some images, scale up the rest."""
        if path_keys_B is None or self.drop_path == 0:
            return branch_BlW
        kept_B = uniform(path_keys_B, branch) >= self.drop_path
        return branch_BlW * (kept_B / (1 - self.drop_path)).to(branch_BlW)[:, None, None]


class ScaleTransformer(nn.Module):
    """Codes of scales < s to logits of scale s, for every s at once or one scale at a time.

    ``quantizer`` is a frozen copy of the tokenizer's codebook and phi: it turns codes into the
    input, so that the model stands alone.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, schedule = config.width, config.schedule
        begin, end = schedule.spans[0]
        self.quantizer = MultiScaleQuantizer(
            schedule, config.vocab_size, config.z_channels, config.num_phi
        ).requires_grad_(False)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, end - begin, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, schedule.length, width))
        self.level_embed = nn.Embedding(schedule.num_scales, width)
        self.word_embed = RowLinear(config.z_channels, width)
        if config.shared_aln:
            self.shared_ada_lin = RowLinear(width, 6 * width)
        last = max(1, config.depth - 1)
        rates = [config.drop_path * depth / last for depth in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.head_ada = RowLinear(width, 2 * width)
        self.head = RowLinear(width, config.vocab_size)

    @property
    def schedule(self) -> ScaleSchedule:
        """The scales the model was trained for."""
        return self.quantizer.schedule

    @property
    def layers(self) -> list[Block]:
        """The blocks, typed."""
        return cast(list[Block], list(self.blocks))

    @property
    def null_class(self) -> int:
        """The class index that stands for no class."""
        return self.config.num_classes

    def check_labels(self, labels_B: Tensor) -> None:
        """Refuse labels outside [0, num_classes]; num_classes is the null class.

        Raises:
            UserError: the labels are named.
        """
        if len(labels_B) and not (
            0 <= int(labels_B.min()) and int(labels_B.max()) <= self.null_class
        ):
            raise UserError(
                f"classes must lie in [0, {self.null_class}) ({self.null_class} is the null "
                f"class), got {labels_B.tolist()}"
            )

    def conditioning(self, labels_B: Tensor) -> Conditioning:
        """Everything the class decides: int64 [B], up to the null class -> rows for each image."""
        if self.config.unconditional:
            labels_B = torch.full_like(labels_B, self.null_class)
        start_BW = self.class_emb(labels_B)
        active_BW = F.silu(start_BW)
        if self.config.shared_aln:
            shared = self.shared_ada_lin(active_BW).unflatten(1, (6, -1))
            rows = [shared + block.ada_gss[0] for block in self.layers]
        else:
            rows = [block.ada_lin(active_BW).unflatten(1, (6, -1)) for block in self.layers]
        head_B2W = self.head_ada(active_BW).unflatten(1, (2, -1))
        return Conditioning(start_BW, torch.stack(rows, dim=1), head_B2W)

    def position(self, parent_index: int) -> Tensor:
        """Position plus level embedding of one scale: [1, l, W]."""
        begin, end = self.schedule.spans[parent_index]
        level_W = self.level_embed.weight[parent_index]
        return self.pos_embed[:, begin:end] + level_W

    def start(self, conditioning: Conditioning) -> Tensor:
        """The first scale's input: the class embedding at its positions, [B, l_1, W]."""
        return conditioning.start_BW[:, None] + self.pos_start + self.position(0)

    def embed(self, tokens_BlC: Tensor, parent_index: int) -> Tensor:
        """A later scale's input: the map built so far, at that scale. [B, l, C] -> [B, l, W]."""
        out: Tensor = self.word_embed(tokens_BlC) + self.position(parent_index)
        return out

    def hidden(
        self,
        x_BlW: Tensor,
        conditioning: Conditioning,
        *,
        spans: tuple[tuple[int, int], ...] | None = None,
        cache: KVCache | None = None,
        scale: int = 0,
        write: bool = True,
        path_keys_B: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks: [B, l, W] -> [B, l, W].

        With ``spans`` all scales at once (l = L). Without, one scale: it attends to itself and,
        where the mask shows it earlier ones, to ``cache``. ``write`` stores the scale's own keys
        and values; a refinement pass leaves those of the first pass in place.
        """
        for depth, block in enumerate(self.layers):
            gamma1, gamma2, scale1, scale2, shift1, shift2 = conditioning.blocks_BD6W[
                :, depth
            ].unbind(1)
            normed = block.modulated(x_BlW, scale1, shift1)
            if spans is not None:
                branch = block.attn(normed, self.config.mask, spans)
            else:
                q, k, v = block.attn.project(normed)
                if cache is not None:
                    k, v = cache.extend(depth, k, v, self.config.mask, scale, write)
                branch = block.attn.merge(block.attn.attend(q, k, v))
            branch = block.keep_path(branch * gamma1[:, None], path_keys_B, 2 * depth)
            x_BlW = x_BlW + branch
            branch = block.ffn(block.modulated(x_BlW, scale2, shift2)) * gamma2[:, None]
            x_BlW = x_BlW + block.keep_path(branch, path_keys_B, 2 * depth + 1)
        return x_BlW

    def before_head(self, x_BlW: Tensor, conditioning: Conditioning) -> Tensor:
        """Norm, scale and shift before the linear head, float32: [B, l, W] -> [B, l, W]."""
        scale_BW, shift_BW = conditioning.head_B2W.float().unbind(1)
        normed = F.layer_norm(x_BlW.float(), x_BlW.shape[-1:], eps=self.config.norm_eps)
        return torch.addcmul(shift_BW[:, None], normed, 1 + scale_BW[:, None])

    def forward(
        self,
        labels_B: Tensor,
        codes_BL: Tensor,
        tokens_BlC: Tensor | None = None,
        path_keys_B: Tensor | None = None,
    ) -> Tensor:
        """Teacher-forced logits of all scales.

        Args:
            labels_B: int64 [B]; the null class is index ``num_classes``.
            codes_BL: int64 [B, L], the true codes.
            tokens_BlC: the input below the first scale [B, L - l_1, C], if it is not the one
                that the codes give.
            path_keys_B: int64 [B], keys of stochastic depth; None leaves it out.

        Returns:
            float32 [B, L, V].

        Raises:
            UserError: in eval mode, a label is out of range.
        """
        if not self.training:  # it waits for the device, so a training step does without
            self.check_labels(labels_B)
        if tokens_BlC is None:
            with torch.no_grad():
                tokens_BlC = self.quantizer.teacher_input(codes_BL)
        conditioning = self.conditioning(labels_B)
        level_LW = torch.repeat_interleave(
            self.level_embed.weight,
            torch.tensor([e - b for b, e in self.schedule.spans], device=codes_BL.device),
            dim=0,
            output_size=self.schedule.length,
        )
        start = conditioning.start_BW[:, None] + self.pos_start
        x_BLW = torch.cat((start, self.word_embed(tokens_BlC.to(start.dtype))), dim=1)
        x_BLW = x_BLW + (self.pos_embed + level_LW)
        x_BLW = self.hidden(x_BLW, conditioning, spans=self.schedule.spans, path_keys_B=path_keys_B)
        logits_BLV: Tensor = self.head(self.before_head(x_BLW, conditioning))
        return logits_BLV
