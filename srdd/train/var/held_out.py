"""What trained models reach on images and codes they were not trained on."""

from collections.abc import Iterator

import torch
from torch import Tensor

from srdd.images import to_float, to_uint8
from srdd.metrics.quality import psnr, ssim
from srdd.train.var.codebook import codebook_usage
from srdd.train.var.transformer import nll_per_scale
from srdd.var.pipeline import Pipeline
from srdd.var.scales import ScaleSchedule
from srdd.var.tokenizer import Tokenizer
from srdd.var.transformer import ScaleTransformer

BATCH = 128
SSIM_SIDE = 11  # of the smallest images that have an SSIM


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int64 [n, L] and reconstructions uint8 of images uint8 [n, 3, R, R], all on the CPU."""
    device = next(tokenizer.parameters()).device
    codes, decoded = [], []
    for batch in images.split(BATCH):
        codes_BL = tokenizer.encode(to_float(batch.to(device)))
        decoded.append(to_uint8(tokenizer.decode(codes_BL).add(1).mul(0.5)).cpu())
        codes.append(codes_BL.cpu())
    return torch.cat(codes), torch.cat(decoded)


def tokenizer_quality(
    tokenizer: Tokenizer, images: Tensor, codes_nL: Tensor, decoded: Tensor
) -> dict[str, float]:
    """Means over images of PSNR in dB and of SSIM, and the use of codes at each scale.

    Args:
        tokenizer: whose schedule and vocabulary the codes have.
        images: uint8 [n, 3, R, R].
        codes_nL: theirs, of :func:`reconstruct`.
        decoded: their reconstructions.

    Returns:
        n, psnr, ssim (of images of 11 px or more), usage_<scale> (share of codes used at all) and
        perplexity_<scale>.
    """
    pairs = list(zip(images.cpu().split(BATCH), decoded.split(BATCH), strict=True))
    found = {
        "n": float(len(images)),
        "psnr": float(torch.cat([psnr(*pair) for pair in pairs]).mean()),
    }
    if images.shape[-1] >= SSIM_SIDE:
        found["ssim"] = float(torch.cat([ssim(*pair) for pair in pairs]).mean())
    for scale, counts_V in _counts(codes_nL, tokenizer.schedule, tokenizer.config.vocab_size):
        usage, perplexity = codebook_usage(counts_V)
        found |= {f"usage_{scale}": usage, f"perplexity_{scale}": perplexity}
    return found


@torch.no_grad()
def transformer_nll(
    model: ScaleTransformer, codes_nL: Tensor, labels_n: Tensor
) -> dict[str, float]:
    """Negative log-likelihood in nats a code: nll, in all, and nll_<scale>; and n, the images."""
    device = model.pos_embed.device
    if model.config.unconditional:
        labels_n = torch.full_like(labels_n, model.null_class)
    sums: dict[str, float] = {"nll": 0.0}
    for codes, labels in zip(codes_nL.split(BATCH), labels_n.split(BATCH), strict=True):
        codes_BL = codes.long().to(device)  # few of a device's kernels take uint16
        logits = model(labels.to(device), codes_BL)
        nll_BL, means = nll_per_scale(model, logits, codes_BL)
        for name, value in {"nll": nll_BL.mean(), **means}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(codes_BL)
    return {"n": float(len(codes_nL)), **{k: v / len(codes_nL) for k, v in sums.items()}}


def pipeline_quality(pipeline: Pipeline, images: Tensor, labels: Tensor) -> dict[str, float]:
    """What a pipeline reaches on images that it was not trained on.

    Args:
        pipeline: on its device.
        images: uint8 [n, 3, R, R].
        labels: int64 [n].

    Returns:
        Means over images: ``psnr`` in dB and ``ssim`` of the tokenizer's reconstructions, ``nll``
        and ``nll_<scale>`` in nats a code, ``nll_per_image`` in nats; and ``held_out``, the images.
    """
    codes_nL, decoded = reconstruct(pipeline.tokenizer, images)
    quality = tokenizer_quality(pipeline.tokenizer, images, codes_nL, decoded)
    found = transformer_nll(pipeline.transformer, codes_nL, labels)
    return {
        "held_out": found.pop("n"),
        **{name: quality[name] for name in ("psnr", "ssim") if name in quality},
        **found,
        "nll_per_image": found["nll"] * codes_nL.shape[1],
    }


def unigram_entropy(codes_nL: Tensor, schedule: ScaleSchedule, vocab_size: int) -> dict[str, float]:
    """Entropy in nats of the codes' frequencies: what a model reaches that looks at nothing.

    Returns:
        entropy, of all codes alike, and entropy_<scale>, of each scale's own.
    """
    found = {"entropy": _entropy(torch.bincount(codes_nL.long().flatten(), minlength=vocab_size))}
    for scale, counts_V in _counts(codes_nL, schedule, vocab_size):
        found[f"entropy_{scale}"] = _entropy(counts_V)
    return found


def _entropy(counts_V: Tensor) -> float:
    return float(torch.special.entr(counts_V.double() / counts_V.sum()).sum())


def _counts(
    codes_nL: Tensor, schedule: ScaleSchedule, vocab_size: int
) -> Iterator[tuple[str, Tensor]]:
    """Each scale's name, and how often each code is used there: int64 [V]."""
    for side, (begin, end) in zip(schedule.patch_nums, schedule.spans, strict=True):
        used = codes_nL[:, begin:end].long().flatten()
        yield f"{side}x{side}", torch.bincount(used, minlength=vocab_size)
