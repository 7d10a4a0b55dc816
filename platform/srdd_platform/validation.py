"""What a finished model reaches on the held-out split."""

from pathlib import Path

import torch
from torch import Tensor

from srdd.train.classifier import ClassifierTask
from srdd.train.loop import Task
from srdd.train.tokenizer import TokenizerTask, codebook_usage, to_float
from srdd.train.transformer import TransformerTask, nll_per_scale
from srdd_platform.codes import load_codes
from srdd_platform.data import ShardDataset

MAX_IMAGES = 10_000
BATCH = 128


@torch.no_grad()
def validate(task: Task, data: Path, codes: str, device: torch.device) -> dict[str, float]:
    """Validation numbers of a task: at most 10,000 held-out images."""
    task.module.eval()
    try:
        if isinstance(task, TransformerTask):
            return _transformer(task, Path(codes), device)
        images, labels = _images(data)
        if isinstance(task, TokenizerTask):
            return _tokenizer(task, images, device)
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


def _tokenizer(task: TokenizerTask, images: Tensor, device: torch.device) -> dict[str, float]:
    """PSNR in dB (mean over images) and how the codes are used at each scale."""
    tokenizer, psnr, codes = task.tokenizer, [], []
    for batch in images.split(BATCH):
        real = to_float(batch).to(device)
        codes_BL = tokenizer.encode(real)
        error = (tokenizer.decode(codes_BL) - real).square().flatten(1).mean(1) / 4
        psnr.append(-10 * error.clamp_min(1e-10).log10())
        codes.append(codes_BL.cpu())
    found = {"n": float(len(images)), "psnr": float(torch.cat(psnr).mean())}
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
    sums: dict[str, float] = {"nll": 0.0}
    for x, y in zip(codes_nL.split(BATCH), labels.split(BATCH), strict=True):
        logits = task.model(y.to(device), x.to(device))
        nll_BL, means = nll_per_scale(task.model, logits, x.to(device))
        for name, value in {"nll": nll_BL.mean(), **means}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(x)
    return {"n": float(len(codes_nL)), **{k: v / len(codes_nL) for k, v in sums.items()}}
