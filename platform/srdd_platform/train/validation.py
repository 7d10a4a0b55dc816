"""What a finished model reaches on the held-out split."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from srdd.images import to_float
from srdd.train.classifier import ClassifierTask
from srdd.train.loop import Task
from srdd.train.var.held_out import (
    BATCH,
    reconstruct,
    tokenizer_quality,
    transformer_nll,
    unigram_entropy,
)
from srdd.train.var.tokenizer import TokenizerTask
from srdd.train.var.transformer import TransformerTask
from srdd_platform.data.codes import load_codes, load_views
from srdd_platform.data.dataset import load_images
from srdd_platform.evaluation.extractors import load_extractor
from srdd_platform.evaluation.metrics import Reference
from srdd_platform.evaluation.protocol import MIN_IMAGES
from srdd_platform.train.job import Job

MAX_IMAGES = 10_000


@torch.no_grad()
def validate(task: Task, job: Job, device: torch.device) -> dict[str, float]:
    """Validation numbers of a job's task: at most 10,000 held-out images, each its centre."""
    task.module.eval()
    try:
        if isinstance(task, TransformerTask):
            return _transformer(task, Path(job.codes))
        images, labels = held_out_images(job)
        if isinstance(task, TokenizerTask):
            return _tokenizer(task, images, device, job.extractor)
        assert isinstance(task, ClassifierTask)
        hits = [
            (task.classifier(to_float(x).to(device))[1].argmax(1).cpu() == y).double()
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return {"n": len(images), "accuracy": float(torch.cat(hits).mean())}
    finally:
        task.module.train()


def baseline(task: Task, job: Job) -> dict[str, float]:
    """What a transformer's loss must lie below: the entropy of the train codes' frequencies."""
    if not isinstance(task, TransformerTask):
        return {}
    codes_nVL, _ = load_views(Path(job.codes), "train")
    return unigram_entropy(codes_nVL[:, 0], task.model.schedule, task.model.config.vocab_size)


def held_out_images(job: Job) -> tuple[Tensor, Tensor]:
    """At most 10,000 held-out images of a job, uint8 [n, 3, R, R], and their labels."""
    dataset = job.dataset("val")
    with dataset.store.filling(dataset.whole_shards):
        return load_images(dataset, MAX_IMAGES)


def _tokenizer(
    task: TokenizerTask, images: Tensor, device: torch.device, extractor: Sequence[str]
) -> dict[str, float]:
    """Means over images of PSNR in dB and of SSIM, rFID, and the use of codes at each scale.

    SSIM needs images of 11 px, rFID 50 of them and an extractor; without, they are left out.
    """
    codes_nL, decoded = reconstruct(task.tokenizer, images)
    found = tokenizer_quality(task.tokenizer, images, codes_nL, decoded)
    if extractor and len(images) >= MIN_IMAGES:
        name, weights = extractor
        features = load_extractor(name, Path(weights), device.type)
        found["rfid"] = Reference(features(images)).frechet(features(decoded).features_nD)
    return found


def _transformer(task: TransformerTask, codes: Path) -> dict[str, float]:
    """Negative log-likelihood in nats a code, in all and by scale, without label dropout."""
    codes_nL, labels = load_codes(codes, "val")
    return transformer_nll(task.model, codes_nL[:MAX_IMAGES], labels[:MAX_IMAGES])
