"""VAR's transformer over scales. VAR and SDD are this model; they differ by ``mask`` alone.

Letters: B images, L codes of all scales, l of one, W width, C latent channels, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.errors import UserError
from srdd.nn.linear import RowLinear
from srdd.rng import hash_counters
from srdd.var.attention import (
    AttentionConstants,
    Backend,
    KVCache,
    attend_scales,
    attention_constants,
    choose_backend,
)
from srdd.var.block import Block
from srdd.var.config import TransformerConfig
from srdd.var.mask_tensors import neighbourhood
from srdd.var.masks import AttentionSpan
from srdd.var.quantize import MultiScaleQuantizer
from srdd.var.scales import ScaleSchedule


class Conditioning(NamedTuple):
    """All that the class decides, computed once a call. The first dimension is an image's.

    ``scale`` factors already have 1 added.
    """

    start_BW: Tensor  # class embedding, the start token before its position
    blocks_BD6W: Tensor  # AdaLN of each of D blocks: gamma x2, scale x2, shift x2
    head_B2W: Tensor  # AdaLN before the head: scale, shift; float32

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply ``change`` to every part."""
        return Conditioning(*(change(part) for part in self))


class ScaleTransformer(nn.Module):
    """Codes of scales < s to logits of scale s, for every s at once or one scale at a time.

    ``quantizer`` is a frozen copy of the tokenizer's codebook and phi: it turns codes into the
    input, so that the model stands alone. ``backend`` fixes how teacher forcing attends; None
    chooses by mask and device.
    """

    def __init__(self, config: TransformerConfig, backend: Backend | None = None) -> None:
        super().__init__()
        self.config = config
        self.backend = backend
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

    def _classes(self, labels_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The class embedding [B, W], its activation [B, W], and what the blocks' AdaLN takes."""
        if self.config.unconditional:
            labels_B = torch.full_like(labels_B, self.null_class)
        start_BW = self.class_emb(labels_B)
        active_BW = F.silu(start_BW)
        if self.config.shared_aln:
            return start_BW, active_BW, self.shared_ada_lin(active_BW).unflatten(1, (6, -1))
        return start_BW, active_BW, active_BW

    def _head_rows(self, active_BW: Tensor) -> Tensor:
        head_B2W = self.head_ada(active_BW).unflatten(1, (2, -1)).float()
        return torch.stack((head_B2W[:, 0] + 1, head_B2W[:, 1]), dim=1)

    def conditioning(self, labels_B: Tensor) -> Conditioning:
        """Everything the class decides: int64 [B], up to the null class -> rows for each image."""
        start_BW, active_BW, given = self._classes(labels_B)
        blocks_BD6W = torch.stack([block.ada(given) for block in self.layers], dim=1)
        blocks_BD6W[:, :, 2:4].add_(1)
        return Conditioning(start_BW, blocks_BD6W, self._head_rows(active_BW))

    def position(self, scale: int) -> Tensor:
        """Position plus level embedding of one scale, by its index in ``schedule``: [1, l, W]."""
        begin, end = self.schedule.spans[scale]
        level_W = self.level_embed.weight[scale]
        return self.pos_embed[:, begin:end] + level_W

    def start(self, conditioning: Conditioning) -> Tensor:
        """The first scale's input: the class embedding at its positions, [B, l_1, W]."""
        return conditioning.start_BW[:, None] + self.pos_start + self.position(0)

    def embed(self, tokens_BlC: Tensor, scale: int) -> Tensor:
        """A later scale's input: the map built so far, at that scale. [B, l, C] -> [B, l, W]."""
        out: Tensor = self.word_embed(tokens_BlC) + self.position(scale)
        return out

    def constants(self) -> list[AttentionConstants]:
        """What the weights alone decide, for any number of calls of :meth:`hidden`."""
        return attention_constants([block.attn for block in self.layers])

    def hidden(
        self,
        x_BlW: Tensor,
        conditioning: Conditioning,
        constants: Sequence[AttentionConstants],
        span: AttentionSpan,
        cache: KVCache | None = None,
        write: bool = True,
    ) -> Tensor:
        """Run the blocks on one scale: [B, l, W] -> [B, l, W].

        It attends to itself and, where the mask shows it earlier scales, to ``cache``. ``write``
        stores the scale's own keys and values; a refinement pass leaves those of the first pass
        in place.
        """
        near = neighbourhood(span.local_side, x_BlW.device) if span.local_side else None
        for depth, block in enumerate(self.layers):
            ada_B6W = conditioning.blocks_BD6W[:, depth]
            q, k, v = block.project(x_BlW, ada_B6W, constants[depth])
            if cache is not None:
                k, v = cache.extend(depth, k, v, span, write)
            x_BlW = block.finish(x_BlW, block.attn.attend(q, k, v, near), ada_B6W)
        return x_BlW

    def before_head(self, x_BlW: Tensor, conditioning: Conditioning) -> Tensor:
        """Norm, scale and shift before the linear head, float32: [B, l, W] -> [B, l, W]."""
        return self._modulated(x_BlW, conditioning.head_B2W)

    def _modulated(self, x_BlW: Tensor, head_B2W: Tensor) -> Tensor:
        scale_BW, shift_BW = head_B2W.unbind(1)
        normed = F.layer_norm(x_BlW.float(), x_BlW.shape[-1:], eps=self.config.norm_eps)
        return torch.addcmul(shift_BW[:, None], normed, scale_BW[:, None])

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
        start_BW, active_BW, given = self._classes(labels_B)
        levels = zip(self.level_embed.weight, self.schedule.spans, strict=True)
        level_LW = torch.cat([level_W.expand(end - begin, -1) for level_W, (begin, end) in levels])
        start = start_BW[:, None] + self.pos_start
        x_BLW = torch.cat((start, self.word_embed(tokens_BlC.to(start.dtype))), dim=1)
        x_BLW = x_BLW + (self.pos_embed + level_LW)
        for depth, block in enumerate(self.layers):
            keys_B = None if path_keys_B is None else hash_counters(path_keys_B, depth)
            x_BLW = block(x_BLW, given, self._attend, keys_B)
        logits_BLV: Tensor = self.head(self._modulated(x_BLW, self._head_rows(active_BW)))
        return logits_BLV

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        mask, schedule = self.config.mask, self.schedule
        backend = self.backend or choose_backend(mask, schedule.length, q)
        return attend_scales(q, k, v, mask, schedule, backend, softmax_scale)
