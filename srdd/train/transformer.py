"""Training the transformer on codes: cross-entropy with label dropout."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.config import TransformerConfig
from srdd.errors import UserError
from srdd.rng import hash_counters, uniform
from srdd.tokenizer import Tokenizer
from srdd.train.config import OptimConfig, TransformerLossConfig
from srdd.train.loop import Batch, Stateless
from srdd.transformer import ScaleTransformer

_DROP_LABEL, _DROP_PATH = 0x1ABE1, 0xD309  # streams of random numbers


@torch.no_grad()
def init_weights(model: ScaleTransformer, *, gate: float = 1e-3, head: float = 0.02) -> None:
    """VAR's initialisation (``var.py``, ``init_weights``).

    Args:
        model: changed in place, drawing from torch's generator.
        gate: factor of the AdaLN rows that gate the residual branches, at first nearly closed.
        head: factor of the output layer.
    """
    width, depth = model.config.width, model.config.depth
    std = math.sqrt(1 / width / 3)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and not name.startswith("quantizer"):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    for position in (model.pos_start, model.pos_embed):
        nn.init.trunc_normal_(position, std=std)
    model.head.weight.mul_(head)
    model.head_ada.weight.mul_(0.5)
    for block in model.layers:
        block.attn.proj.weight.div_(math.sqrt(2 * depth))
        block.ffn.fc2.weight.div_(math.sqrt(2 * depth))
        if model.config.shared_aln:
            block.ada_gss[:, :, :2].mul_(gate)
            block.ada_gss[:, :, 2:].mul_(0.5)
        else:
            block.ada_lin.weight[: 2 * width].mul_(gate)
            block.ada_lin.weight[2 * width :].mul_(0.5)


def nll_per_scale(
    model: ScaleTransformer, logits_BLV: Tensor, codes_BL: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood in nats a code: [B, L], and its mean on each scale."""
    flat = F.cross_entropy(logits_BLV.flatten(0, 1), codes_BL.flatten(), reduction="none")
    nll_BL = flat.view(codes_BL.shape)
    means = {}
    for side, (begin, end) in zip(model.schedule.patch_nums, model.schedule.spans, strict=True):
        means[f"nll_{side}x{side}"] = nll_BL[:, begin:end].detach().mean()
    return nll_BL, means


class TransformerLoss(nn.Module):
    """Cross-entropy, the mean over all codes."""

    def __init__(self, model: ScaleTransformer, config: TransformerLossConfig, seed: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.seed = seed

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch's share, with the mean of each scale."""
        dropped = uniform(batch.index_b, self.seed, step, _DROP_LABEL) < self.config.label_drop
        labels = torch.where(dropped, self.model.null_class, batch.labels_b)
        keys = None
        if self.model.config.drop_path > 0:
            keys = hash_counters(batch.index_b, self.seed, step, _DROP_PATH)
        logits = self.model(labels, batch.inputs, path_keys_B=keys)
        nll_BL, means = nll_per_scale(self.model, logits, batch.inputs)
        loss = nll_BL.mean()
        return loss, {"loss": loss, **means}


class TransformerTask(Stateless):
    """The transformer's training, on the codes of one tokenizer."""

    def __init__(
        self,
        config: TransformerConfig,
        loss: TransformerLossConfig,
        optim: OptimConfig,
        tokenizer: Tokenizer,
        *,
        init_gate: float = 1e-3,
        init_head: float = 0.02,
    ) -> None:
        wanted = (config.patch_nums, config.vocab_size, config.z_channels, config.num_phi)
        given = tokenizer.config
        found = (given.patch_nums, given.vocab_size, given.z_channels, given.num_phi)
        if wanted != found:
            raise UserError(
                "the transformer's patch_nums, vocab_size, z_channels, num_phi "
                f"{wanted} are not the tokenizer's {found}"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.model = ScaleTransformer(config)
            init_weights(self.model, gate=init_gate, head=init_head)
        self.model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
        self.module = TransformerLoss(self.model, loss, optim.seed)
