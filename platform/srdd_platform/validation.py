"""What a finished model reaches on the held-out split."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srdd.train.classifier import ClassifierTask
from srdd.train.codebook import codebook_usage
from srdd.train.loop import Task
from srdd.train.quality import psnr, ssim, to_8bit
from srdd.train.tokenizer import TokenizerTask, to_float
from srdd.train.transformer import TransformerTask, nll_per_scale
from srdd_platform.codes import load_codes
from srdd_platform.data import ShardDataset
from srdd_platform.fidelity import Reference, load_extractor
from srdd_platform.sweep_args import MIN_IMAGES

MAX_IMAGES = 10_000
BATCH = 128
SSIM_SIDE = 11  # of the smallest images that have an SSIM


@torch.no_grad()
def validate(
    task: Task, data: Path, codes: str, device: torch.device, extractor: Sequence[str] = ()
) -> dict[str, float]:
    """Validation numbers of a task: at most 10,000 held-out images.

    Args:
        task: what is trained.
        data: shard directory.
        codes: code shards, for transformers.
        device: where the task is.
        extractor: name and weights, of the features by which a tokenizer's rFID is measured.
    """
    task.module.eval()
    try:
        if isinstance(task, TransformerTask):
            return _transformer(task, Path(codes), device)
        images, labels = _images(data)
        if isinstance(task, TokenizerTask):
            return _tokenizer(task, images, device, extractor)
        assert isinstance(task, ClassifierTask)
        hits = [
            (task.classifier(to_float(x).to(device))[1].argmax(1).cpu() == y).double()
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return {"n": len(images), "accuracy": float(torch.cat(hits).mean())}
    finally:
        task.module.train()


def _images(data: Path) -> tuple[Tensor, Tensor]:
    dataset = ShardDataset(data, "val")
    samples = [dataset[i] for i in range(min(MAX_IMAGES, len(dataset)))]
    labels = torch.tensor([sample["label"] for sample in samples])
    return torch.stack([sample["image"] for sample in samples]), labels


def _tokenizer(
    task: TokenizerTask, images: Tensor, device: torch.device, extractor: Sequence[str]
) -> dict[str, float]:
    """Means over images of PSNR in dB and of SSIM, rFID, and the use of codes at each scale.

    SSIM needs images of 11 px, rFID 50 of them and an extractor; without, they are left out.
    """
    tokenizer, decoded, codes = task.tokenizer, [], []
    for batch in images.split(BATCH):
        codes_BL = tokenizer.encode(to_float(batch).to(device))
        decoded.append(to_8bit(tokenizer.decode(codes_BL)).cpu())
        codes.append(codes_BL.cpu())
    pairs = list(zip(images.split(BATCH), decoded, strict=True))
    found = {
        "n": float(len(images)),
        "psnr": float(torch.cat([psnr(*pair) for pair in pairs]).mean()),
    }
    if images.shape[-1] >= SSIM_SIDE:
        found["ssim"] = float(torch.cat([ssim(*pair) for pair in pairs]).mean())
    if extractor and len(images) >= MIN_IMAGES:
        name, weights = extractor
        features = load_extractor(name, Path(weights), device.type)
        real, fake = features(images), features(torch.cat(decoded))
        found["rfid"] = Reference(real).frechet(fake.features_nD)
    all_codes, vocab = torch.cat(codes), tokenizer.config.vocab_size
    schedule = tokenizer.schedule
    for side, (begin, end) in zip(schedule.patch_nums, schedule.spans, strict=True):
        counts_V = torch.bincount(all_codes[:, begin:end].flatten(), minlength=vocab)
        usage, perplexity = codebook_usage(counts_V)
        found |= {f"usage_{side}x{side}": usage, f"perplexity_{side}x{side}": perplexity}
    return found


def _transformer(task: TransformerTask, codes: Path, device: torch.device) -> dict[str, float]:
    """Negative log-likelihood in nats a code, in all and by scale, without label dropout."""
    codes_nL, labels = load_codes(codes, "val")
    codes_nL, labels = codes_nL[:MAX_IMAGES].long(), labels[:MAX_IMAGES]
    if task.model.config.unconditional:
        labels = torch.full_like(labels, task.model.null_class)
    sums: dict[str, float] = {"nll": 0.0}
    for x, y in zip(codes_nL.split(BATCH), labels.split(BATCH), strict=True):
        logits = task.model(y.to(device), x.to(device))
        nll_BL, means = nll_per_scale(task.model, logits, x.to(device))
        for name, value in {"nll": nll_BL.mean(), **means}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(x)
    return {"n": float(len(codes_nL)), **{k: v / len(codes_nL) for k, v in sums.items()}}
