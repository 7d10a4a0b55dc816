"""The plain loop: VAR's sampling as its algorithm reads, on our weights.

What a direct implementation does, and a fast one need not: both halves of guidance run at every
scale and through the head, AdaLN is computed again at each scale, keys and values grow by
``torch.cat``, top-p sorts the whole vocabulary, and the whole batch is decoded at once.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain_vae
from benchmarks.official import Greedy
from srdd import Pipeline
from srdd.errors import UserError
from srdd.var.config import TokenizerConfig, TransformerConfig
from srdd.var.mask_tensors import build_mask
from srdd.var.masks import Mask

Cache = dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class PlainVar:
    """Weights of a pipeline by name."""

    config: TransformerConfig
    tokenizer: TokenizerConfig
    weights: dict[str, Tensor]
    vae: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a loop ends with."""

    f_hat: Tensor
    greedy: Greedy


def plain(pipeline: Pipeline) -> PlainVar:
    """The plain model of a pipeline; weights are shared where they are contiguous."""
    config = pipeline.transformer.config
    if config.shared_aln or not config.attn_l2_norm or config.unconditional:
        raise UserError("the plain loop knows VAR's published form alone")
    own = {k: v.contiguous() for k, v in pipeline.transformer.state_dict().items()}
    vae = {k: v.contiguous() for k, v in pipeline.tokenizer.state_dict().items()}
    return PlainVar(config, pipeline.tokenizer.config, own, vae)


def decode(model: PlainVar, f_hat: Tensor) -> Tensor:
    """Latents to images in [0, 1], the whole batch at once."""
    levels = len(model.tokenizer.ch_mult)
    pixels = plain_vae.decode(model.vae, f_hat, levels, model.tokenizer.num_res_blocks)
    return pixels.clamp_(-1, 1).add_(1).mul_(0.5)


def latent(model: PlainVar, images: Tensor) -> Tensor:
    """Images to latents, the whole batch at once."""
    levels = len(model.tokenizer.ch_mult)
    return plain_vae.encode(model.vae, images, levels, model.tokenizer.num_res_blocks)


def encode(model: PlainVar, images: Tensor) -> Tensor:
    """Images to the codes of every scale: [B, 3, R, R] -> int64 [B, L]."""
    config = model.tokenizer
    return plain_vae.quantise(model.vae, latent(model, images), config.patch_nums, config.num_phi)


def teacher_input(model: PlainVar, codes_BL: Tensor) -> Tensor:
    """What the transformer is fed below the start token: int64 [B, L] -> [B, L - 1, C]."""
    sides = model.config.patch_nums
    maps = plain_vae.cumulative(model.weights, codes_BL, sides, model.config.num_phi)
    pairs = zip(maps, sides[1:], strict=False)
    tokens = [F.interpolate(f_hat, size=(side, side), mode="area") for f_hat, side in pairs]
    return torch.cat([map_.flatten(2).transpose(1, 2) for map_ in tokens], 1)


def reconstruct(model: PlainVar, codes_BL: Tensor) -> Tensor:
    """Codes to images in [-1, 1]: int64 [B, L] -> [B, 3, R, R]."""
    sides = model.config.patch_nums
    f_hat = plain_vae.cumulative(model.weights, codes_BL, sides, model.config.num_phi)[-1]
    return decode(model, f_hat).mul_(2).sub_(1)


def teacher_logits(model: PlainVar, labels_B: Tensor, tokens_BlC: Tensor, mask: Mask) -> Tensor:
    """All scales at once under a dense bias: float [B, L, V]."""
    w, schedule = model.weights, model.config.schedule
    condition_BW = w["class_emb.weight"][labels_B]
    levels = [s for s, side in enumerate(schedule.patch_nums) for _ in range(side * side)]
    x = torch.cat((condition_BW[:, None] + w["pos_start"], _linear(w, "word_embed", tokens_BlC)), 1)
    x = x + w["pos_embed"] + w["level_embed.weight"][levels]
    seen_LL = build_mask(mask, schedule).to(x.device)
    bias_LL = torch.zeros(seen_LL.shape, device=x.device).masked_fill(~seen_LL, -torch.inf)
    for depth in range(model.config.depth):
        x = _block(model, depth, x, condition_BW, None, bias_LL)
    return _logits(model, x, condition_BW)


@torch.no_grad()
def draw(
    model: PlainVar,
    labels_B: Tensor,
    cfg: float,
    top_k: int,
    top_p: float,
    *,
    decoded: bool = True,
    leads: bool = False,
) -> Drawn:
    """Draw images from torch's generator.

    Args:
        model: the plain model; its mask decides whether there is a cache.
        labels_B: int64 [B].
        cfg: guidance weight at the last scale.
        top_k: 0 keeps every code.
        top_p: 0 keeps every code.
        decoded: False leaves ``images`` empty.
        leads: record how far the likeliest code led.
    """
    w, sides = model.weights, model.config.patch_nums
    batch, last = len(labels_B), len(sides) - 1
    null_B = torch.full_like(labels_B, model.config.num_classes)
    condition_BW = w["class_emb.weight"][torch.cat((labels_B, null_B))]
    spans = model.config.schedule.spans
    cache: Cache | None = {} if model.config.mask == "block_causal" else None
    f_hat = condition_BW.new_zeros(batch, model.config.z_channels, sides[-1], sides[-1])
    codes, lead = [], []
    for scale, (side, (begin, end)) in enumerate(zip(sides, spans, strict=True)):
        place = w["pos_embed"][:, begin:end] + w["level_embed.weight"][scale]
        if scale == 0:
            x = condition_BW[:, None] + w["pos_start"] + place
        else:
            tokens = F.interpolate(f_hat, size=(side, side), mode="area")
            x = _linear(w, "word_embed", tokens.flatten(2).transpose(1, 2)) + place
            x = x.repeat(2, 1, 1)
        for depth in range(model.config.depth):
            x = _block(model, depth, x, condition_BW, cache, None)
        logits = _logits(model, x, condition_BW)
        t = cfg * scale / last if last else 0.0
        logits = (1 + t) * logits[:batch] - t * logits[batch:]
        if leads:
            top = logits.topk(2, dim=-1).values
            lead.append(top[..., 0] - top[..., 1])
        codes.append(_choose(logits, top_k, top_p))
        f_hat.add_(plain_vae.increment(w, codes[-1], scale, sides, model.config.num_phi))
    images = decode(model, f_hat) if decoded else f_hat.new_zeros(0)
    lead_BL = torch.cat(lead, 1) if leads else f_hat.new_zeros(0)
    return Drawn(f_hat, Greedy(images, torch.cat(codes, 1), lead_BL))


def _linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6).mul(scale.add(1)).add(shift)


def _block(
    model: PlainVar,
    depth: int,
    x: Tensor,
    condition_BW: Tensor,
    cache: Cache | None,
    bias_LL: Tensor | None,
) -> Tensor:
    w, width, name = model.weights, model.config.width, f"blocks.{depth}"
    ada = _linear(w, f"{name}.ada_lin", F.silu(condition_BW)).view(-1, 1, 6, width)
    gamma1, gamma2, scale1, scale2, shift1, shift2 = ada.unbind(2)
    q_bias, v_bias = w[f"{name}.attn.q_bias"], w[f"{name}.attn.v_bias"]
    bias = torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))
    qkv = F.linear(_modulated(x, scale1, shift1), w[f"{name}.attn.qkv.weight"], bias)
    heads = qkv.view(*x.shape[:2], 3, model.config.num_heads, -1)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    sharpness = w[f"{name}.attn.log_scale"].clamp_max(math.log(100)).exp()
    q, k = F.normalize(q, dim=-1).mul(sharpness), F.normalize(k, dim=-1)
    if cache is not None:
        if depth in cache:
            k, v = torch.cat((cache[depth][0], k), 2), torch.cat((cache[depth][1], v), 2)
        cache[depth] = (k, v)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_LL, scale=1.0)
    out = out.transpose(1, 2).reshape(x.shape)
    x = x + _linear(w, f"{name}.attn.proj", out).mul(gamma1)
    h = F.gelu(_linear(w, f"{name}.ffn.fc1", _modulated(x, scale2, shift2)), approximate="tanh")
    return x + _linear(w, f"{name}.ffn.fc2", h).mul(gamma2)


def _logits(model: PlainVar, x: Tensor, condition_BW: Tensor) -> Tensor:
    w = model.weights
    ada = _linear(w, "head_ada", F.silu(condition_BW)).view(-1, 1, 2, model.config.width)
    scale, shift = ada.unbind(2)
    return _linear(w, "head", _modulated(x.float(), scale, shift).float()).float()


def _choose(logits_BlV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Truncate by top-k, then by a sort over the vocabulary, and draw: int64 [B, l]."""
    if top_k > 0:
        floor = logits_BlV.topk(top_k, dim=-1).values.amin(-1, keepdim=True)
        logits_BlV = logits_BlV.masked_fill(logits_BlV < floor, -torch.inf)
    if top_p > 0:
        ascending, order = logits_BlV.sort(dim=-1)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[..., -1] = False
        logits_BlV = logits_BlV.masked_fill(tail.scatter(-1, order, tail), -torch.inf)
    probs = logits_BlV.softmax(-1).flatten(0, 1)
    return torch.multinomial(probs, 1).view(logits_BlV.shape[:2])
