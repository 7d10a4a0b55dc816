"""Random weights that a comparison can fail on.

VAR's initialisation closes the gates of the residual branches, so that any mask gives the same
logits within 1e-4. Here the gates are of order one, the logits spread over several nats, the
latents have variance one and the codebook is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.sizes import Size
from srdd import Pipeline, SamplerConfig
from srdd.var.init import init_weights
from srdd.var.masks import Mask
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer


def random_images(size: Size, batch: int, device: torch.device, seed: int = 0) -> Tensor:
    """Smooth colours with some noise: [B, 3, R, R] in [-1, 1]."""
    draw, side = torch.Generator("cpu").manual_seed(seed), size.resolution
    coarse = torch.randn(batch, 3, 6, 6, generator=draw, device="cpu")
    smooth = F.interpolate(coarse, size=(side, side), mode="bilinear")
    noise = torch.randn(batch, 3, side, side, generator=draw, device="cpu")
    return (0.6 * smooth + 0.1 * noise).clamp(-1, 1).to(device)


def random_pipeline(size: Size, device: torch.device, seed: int = 0) -> Pipeline:
    """A float32 pipeline with open gates and the mask of VAR, ``block_causal``."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        tokenizer = _random_tokenizer(size, device)
        model = ScaleTransformer(size.transformer("block_causal"))
        _open(model)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    return _pipeline(tokenizer, model)


def with_mask(pipeline: Pipeline, size: Size, mask: Mask) -> Pipeline:
    """The same weights, not copied, under another mask."""
    with torch.device("meta"):
        model = ScaleTransformer(size.transformer(mask))
    model.load_state_dict(pipeline.transformer.state_dict(), assign=True)
    return _pipeline(pipeline.tokenizer, model)


def pipeline_of(
    size: Size, mask: Mask, tokenizer: dict[str, Tensor], transformer: dict[str, Tensor]
) -> Pipeline:
    """A pipeline of state dicts under our names; they must fit exactly."""
    with torch.device("meta"):
        own, model = Tokenizer(size.tokenizer()), ScaleTransformer(size.transformer(mask))
    own.load_state_dict(tokenizer, assign=True)
    model.load_state_dict(transformer, assign=True)
    return _pipeline(own, model)


def _pipeline(tokenizer: Tokenizer, model: ScaleTransformer) -> Pipeline:
    tokenizer.eval().requires_grad_(False)
    names = tuple(str(i) for i in range(model.config.num_classes))
    return Pipeline(tokenizer, model.eval().requires_grad_(False), SamplerConfig(), names)


@torch.no_grad()
def _open(model: ScaleTransformer) -> None:
    init_weights(model, gate=1.0, head=3.5)  # about 6 nats, as trained models have
    for name, parameter in model.named_parameters():
        if not name.startswith("quantizer.") and (parameter.dim() < 2 or "pos_" in name):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.class_emb.weight.normal_()
    for block in model.layers:
        block.ada_lin.bias[: 2 * model.config.width] += 1  # the gates


@torch.no_grad()
def _random_tokenizer(size: Size, device: torch.device) -> Tokenizer:
    tokenizer = Tokenizer(size.tokenizer()).eval()
    nn.init.normal_(tokenizer.quantizer.codebook.weight, std=0.6)
    images = random_images(size, 2, device, seed=1)
    f = tokenizer.latent(images)
    mean_C, std_C = f.mean((0, 2, 3)), f.std((0, 2, 3))
    conv = tokenizer.quant_conv
    assert conv.bias is not None
    conv.weight.div_(std_C[:, None, None, None])
    conv.bias.copy_((conv.bias - mean_C) / std_C)
    out = tokenizer.decode(tokenizer.encode(images))
    last = tokenizer.decoder.conv_out
    assert last.bias is not None
    last.weight.mul_(0.4 / out.std())
    last.bias.zero_()
    final = Tokenizer(size.tokenizer())  # a fresh one: decoders may keep what they derived
    final.load_state_dict(tokenizer.state_dict())
    return final
