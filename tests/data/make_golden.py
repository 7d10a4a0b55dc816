"""Write golden_tiny.safetensors: a tiny VAR with random weights, and what it computes.

    python tests/data/make_golden.py

An implementation of its own, plain and in float64: names as in VAR's published files (``vqvae.``,
``var.``), dense attention under a bias over the whole prefix, no cache, uniforms on Python's
integers. It shares no code with the package that is tested. Weights are open (gates of order
one), so that a wrong mask shows; the five scales hold a tie in the choice of phi.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

CONFIG = {
    "patch_nums": [1, 2, 3, 4, 6], "resolution": 12, "ch": 8, "ch_mult": [1, 2],
    "num_res_blocks": 1, "z_channels": 6, "vocab_size": 48, "num_classes": 4,
    "depth": 2, "width": 32, "num_heads": 4,
}  # fmt: skip
SIDES, S = CONFIG["patch_nums"], len(CONFIG["patch_nums"])
C, N, V, W = CONFIG["z_channels"], SIDES[-1], CONFIG["vocab_size"], CONFIG["width"]
LABELS, SEEDS = [1, 3, 0], [7, 2**53 - 1, 123456789]
WORD = (1 << 64) - 1

generator = torch.Generator().manual_seed(20)
weights: dict[str, Tensor] = {}


def weight(name: str, *shape: int, std: float, mean: float = 0.0) -> Tensor:
    """A weight by name, drawn when it is first used; kept in float32, used in float64."""
    if name not in weights:
        weights[name] = torch.randn(*shape, generator=generator) * std + mean
    return weights[name].double()


def conv(x: Tensor, name: str, c_out: int, k: int = 3, gain: float = 1.0, **how: int) -> Tensor:
    c_in = x.shape[1]
    kernel = weight(f"{name}.weight", c_out, c_in, k, k, std=gain / math.sqrt(c_in * k * k))
    bias = weight(f"{name}.bias", c_out, std=0.1)
    return F.conv2d(x, kernel, bias, **{"padding": k // 2, **how})


def group_norm(x: Tensor, name: str) -> Tensor:
    """32 groups where the width allows it; here 8."""
    c = x.shape[1]
    scale = weight(f"{name}.weight", c, std=0.1, mean=1.0)
    return F.group_norm(x, 8, scale, weight(f"{name}.bias", c, std=0.1), eps=1e-6)


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def res_block(x: Tensor, name: str, c_out: int) -> Tensor:
    h = conv(silu(group_norm(x, f"{name}.norm1")), f"{name}.conv1", c_out)
    h = conv(silu(group_norm(h, f"{name}.norm2")), f"{name}.conv2", c_out)
    return h + (x if x.shape[1] == c_out else conv(x, f"{name}.nin_shortcut", c_out, 1))


def attn_block(x: Tensor, name: str) -> Tensor:
    b, c, height, width = x.shape
    q, k, v = conv(group_norm(x, f"{name}.norm"), f"{name}.qkv", 3 * c, 1).flatten(2).chunk(3, 1)
    attention = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c)).softmax(-1)
    h = torch.einsum("bij,bcj->bci", attention, v).view(b, c, height, width)
    return x + conv(h, f"{name}.proj_out", c, 1)


def middle(h: Tensor, name: str) -> Tensor:
    c = h.shape[1]
    h = attn_block(res_block(h, f"{name}.block_1", c), f"{name}.attn_1")
    return res_block(h, f"{name}.block_2", c)


def encode_image(images: Tensor) -> Tensor:
    """Images in [-1, 1] to the latent before quantisation."""
    h = conv(images, "vqvae.encoder.conv_in", 8)
    h = res_block(h, "vqvae.encoder.down.0.block.0", 8)
    h = F.pad(h, (0, 1, 0, 1))
    h = conv(h, "vqvae.encoder.down.0.downsample.conv", 8, stride=2, padding=0)
    h = res_block(h, "vqvae.encoder.down.1.block.0", 16)
    h = middle(attn_block(h, "vqvae.encoder.down.1.attn.0"), "vqvae.encoder.mid")
    h = silu(group_norm(h, "vqvae.encoder.norm_out"))
    return conv(conv(h, "vqvae.encoder.conv_out", C, gain=2.0), "vqvae.quant_conv", C)


def decode_latent(f_hat: Tensor) -> Tensor:
    """A latent to an image in [-1, 1]."""
    h = conv(conv(f_hat, "vqvae.post_quant_conv", C), "vqvae.decoder.conv_in", 16)
    h = middle(h, "vqvae.decoder.mid")
    for i in range(2):
        h = res_block(h, f"vqvae.decoder.up.1.block.{i}", 16)
        h = attn_block(h, f"vqvae.decoder.up.1.attn.{i}")
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = conv(h, "vqvae.decoder.up.1.upsample.conv", 16)
    for i in range(2):
        h = res_block(h, f"vqvae.decoder.up.0.block.{i}", 8)
    h = silu(group_norm(h, "vqvae.decoder.norm_out"))
    return conv(h, "vqvae.decoder.conv_out", 3).clamp(-1, 1)


def codebook() -> Tensor:
    return weight("vqvae.quantize.embedding.weight", V, C, std=0.7)


def increment(codes_Bl: Tensor, side: int, keep_Bl: Tensor | None = None) -> Tensor:
    """What one scale's codes add to the map, through the phi that VAR's rule gives them."""
    h = codebook()[codes_Bl]
    if keep_Bl is not None:
        h = h * keep_Bl[..., None]
    h = h.transpose(1, 2).reshape(len(codes_Bl), C, side, side)
    if side != N:
        h = F.interpolate(h, size=(N, N), mode="bicubic")
    ticks = np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4)
    k = int(np.argmin(np.abs(ticks - SIDES.index(side) / (S - 1))))
    return 0.5 * h + 0.5 * conv(h, f"vqvae.quantize.quant_resi.qresi_ls.{k}", C, gain=2.0)


def to_tokens(f_hat: Tensor, side: int) -> Tensor:
    return F.adaptive_avg_pool2d(f_hat, side).flatten(2).transpose(1, 2)


def quantise(f: Tensor) -> Tensor:
    """The codes of all scales."""
    codes = []
    for side in SIDES:
        distance = torch.cdist(to_tokens(f, side), codebook()[None])
        codes.append(distance.argmin(-1))
        f = f - increment(codes[-1], side)
    return torch.cat(codes, dim=1)


def build(codes_Bl: list[Tensor], sides: list[int]) -> Tensor:
    """The map of the codes of some scales."""
    return sum(increment(c, side) for c, side in zip(codes_Bl, sides, strict=True))


def linear(x: Tensor, name: str, c_out: int, gain: float = 1.0, bias: bool = True) -> Tensor:
    matrix = weight(f"{name}.weight", c_out, x.shape[-1], std=gain / math.sqrt(x.shape[-1]))
    return x @ matrix.T + (weight(f"{name}.bias", c_out, std=0.3) if bias else 0)


def layer_norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def transformer(labels_B: Tensor, blocks: list[Tensor], sides: list[int], mask: str) -> Tensor:
    """Logits of all given scales; ``blocks`` are the inputs below the first one."""
    heads, dim = CONFIG["num_heads"], W // CONFIG["num_heads"]
    classes = weight("var.class_emb.weight", CONFIG["num_classes"] + 1, W, std=1.0)[labels_B]
    x = [classes[:, None] + weight("var.pos_start", 1, 1, W, std=0.3)]
    x += [linear(block, "var.word_embed", W) for block in blocks]
    position = weight("var.pos_1LC", 1, sum(side * side for side in SIDES), W, std=0.3)
    level = weight("var.lvl_embed.weight", S, W, std=0.3)
    scales = [SIDES.index(side) for side in sides[: len(x)]]
    for i, scale in enumerate(scales):
        begin = sum(side * side for side in SIDES[:scale])
        x[i] = x[i] + position[:, begin : begin + SIDES[scale] ** 2] + level[scale]
    d = torch.tensor([s for s in scales for _ in range(SIDES[s] ** 2)])
    seen = d[:, None] >= d if mask == "block_causal" else d[:, None] == d
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    h = torch.cat(x, dim=1)
    act = silu(classes)[:, None]
    for i in range(CONFIG["depth"]):
        name = f"var.blocks.{i}"
        ada = linear(act, f"{name}.ada_lin.1", 6 * W)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = ada.chunk(6, dim=-1)
        qkv = linear(
            layer_norm(h) * (1 + scale1) + shift1, f"{name}.attn.mat_qkv", 3 * W, bias=False
        )
        q, k, v = qkv.chunk(3, dim=-1)
        q = q + weight(f"{name}.attn.q_bias", W, std=0.3)
        v = v + weight(f"{name}.attn.v_bias", W, std=0.3)
        q, k, v = (t.unflatten(-1, (heads, dim)).transpose(1, 2) for t in (q, k, v))
        scale = weight(f"{name}.attn.scale_mul_1H11", 1, heads, 1, 1, std=0.5, mean=1.4).exp()
        q, k = (t / t.norm(dim=-1, keepdim=True) for t in (q, k))
        out = ((scale * q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + gamma1 * linear(out, f"{name}.attn.proj", W)
        y = linear(layer_norm(h) * (1 + scale2) + shift2, f"{name}.ffn.fc1", 4 * W)
        y = F.gelu(y, approximate="tanh")
        h = h + gamma2 * linear(y, f"{name}.ffn.fc2", W)
    scale, shift = linear(act, "var.head_nm.ada_lin.1", 2 * W).chunk(2, dim=-1)
    return linear(layer_norm(h) * (1 + scale) + shift, "var.head", V, gain=2.0)


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def uniform(*counters: int) -> float:
    """32 bits of SplitMix64's finaliser, chained over the counters."""
    bits = 0
    for counter in counters:
        bits = mix(((bits ^ counter) + 0x9E3779B97F4A7C15) & WORD)
    return (bits >> 32) / 2**32


def draw(probs: Tensor, scale: int, step: int, top_k: int, top_p: float) -> Tensor:
    """VAR's filters, then the first code whose cumulated mass exceeds the uniform."""
    codes = torch.zeros(probs.shape[:2], dtype=torch.int64)
    for b, row in enumerate(probs.tolist()):
        for i, p in enumerate(row):
            order = sorted(range(V), key=lambda v: p[v], reverse=True)
            order = order[: top_k or V]
            total, tail = sum(p[v] for v in order), 0.0
            if top_p < 1:
                while len(order) > 1 and tail + p[order[-1]] <= (1 - top_p) * total:
                    tail += p[order.pop()]
            kept = sorted(order)
            aim = uniform(SEEDS[b], 0x5A, scale, step, i) * sum(p[v] for v in kept)
            mass = 0.0
            for v in kept:
                mass += p[v]
                if mass > aim:
                    codes[b, i] = v
                    break
    return codes


def sample(
    mask: str,
    sides: list[int],
    cfg: float,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
    refine: int = 0,
    threshold: float = 1.0,
    feedback: str = "updated",
) -> Tensor:
    """Codes of all visited scales, refined by MR; the prefix is run again in every pass."""
    labels_B = torch.tensor(LABELS)
    null_B = torch.full_like(labels_B, CONFIG["num_classes"])
    codes: list[Tensor] = []
    blocks: list[Tensor] = []  # the clean inputs of the scales so far, below the first
    for i, side in enumerate(sides):
        scale = SIDES.index(side)
        t = cfg * scale / (S - 1)
        f_hat = build(codes, sides[:i]) if i else None

        def probabilities(own: list[Tensor], side: int = side, t: float = t) -> Tensor:
            logits = transformer(labels_B, own, sides, mask)[:, -side * side :]
            null = transformer(null_B, own, sides, mask)[:, -side * side :]
            return ((1 + t) * logits - t * null).softmax(-1)

        if i:
            blocks.append(to_tokens(f_hat, side))
        probs = probabilities(blocks)
        now = draw(probs, scale, 0, top_k, top_p)
        for step in range(1, refine + 1):
            redraw = probs.gather(-1, now[..., None])[..., 0] < threshold
            if i and feedback != "none":
                keep = ~redraw if feedback == "kept" else None
                shown = f_hat + increment(now, side, keep)
                new = probabilities([*blocks[:-1], to_tokens(shown, side)])
                probs = torch.where(redraw.any(1)[:, None, None], new, probs)  # or it has stopped
            now = torch.where(redraw, draw(probs, scale, step, top_k, top_p), now)
        codes.append(now)
    return torch.cat(codes, dim=1)


def main() -> None:
    """Compute everything and write it beside this file."""
    smooth = torch.randn(2, 3, 3, 3, generator=generator)
    images = F.interpolate(smooth, size=(12, 12), mode="bilinear").clamp(-1, 1)
    latent = encode_image(images.double())
    codes = quantise(latent)
    parts = list(codes.split([side * side for side in SIDES], dim=1))
    maps = [build(parts[: i + 1], SIDES[: i + 1]) for i in range(S)]
    blocks = [to_tokens(f_hat, side) for f_hat, side in zip(maps, SIDES[1:], strict=False)]
    labels_B = torch.tensor(LABELS[:2])
    io: dict[str, Tensor] = {
        "image": images,
        "latent": latent,
        "codes": codes,
        "f_hat": maps[-1],
        "reconstruction": decode_latent(maps[-1]),
        "reconstruction_scale2": decode_latent(maps[2]),
        "teacher_input": torch.cat(blocks, dim=1),
        "labels": torch.tensor(LABELS),
        "seeds": torch.tensor(SEEDS),
    }
    for mask in ("block_causal", "markov"):
        io[f"{mask}.logits"] = transformer(labels_B, blocks, SIDES, mask)
        io[f"{mask}.greedy"] = sample(mask, SIDES, 2.0, top_k=1)
        io[f"{mask}.sampled"] = sample(mask, SIDES, 1.5, top_k=20, top_p=0.9)
        io[f"{mask}.pruned"] = sample(mask, [1, 3, 6], 1.5)
        for feedback in ("updated", "kept", "none"):
            io[f"{mask}.{feedback}"] = sample(
                mask, SIDES, 1.0, refine=2, threshold=0.1, feedback=feedback
            )
    tensors = {**weights, **{f"io.{name}": tensor for name, tensor in io.items()}}
    tensors = {k: (t.float() if t.is_floating_point() else t) for k, t in tensors.items()}
    path = Path(__file__).with_name("golden_tiny.safetensors")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"config": json.dumps(CONFIG)})


if __name__ == "__main__":
    main()
