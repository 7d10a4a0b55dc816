"""Training the small classifier on the data's train split."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from srdd.checkpoint import save_model
from srdd.images import to_float
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.rng import Stream, hash_counters
from srdd.train.config import OptimConfig
from srdd.train.task import Batch, HeldOut, Task, random_images

BATCH = 128  # images validated at once


class ClassifierLoss(nn.Module):
    """Cross-entropy on images shifted by up to one pixel in sixteen."""

    def __init__(self, classifier: Classifier, seed: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.seed = seed

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch's share, and its accuracy."""
        images = to_float(batch.inputs)
        side = images.shape[-1]
        reach = max(1, side // 16)
        axes_2 = torch.arange(2, device=batch.index_b.device)
        bits = hash_counters(batch.index_b[:, None], axes_2, self.seed, step, Stream.SHIFTS)
        moves_B2 = (bits & 0xFFFF) % (2 * reach + 1)
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        places_B2R = moves_B2[:, :, None] + torch.arange(side, device=images.device)
        image_B = torch.arange(len(images), device=images.device)[:, None, None]
        rows, columns = places_B2R[:, 0, :, None], places_B2R[:, 1, None, :]
        crops = padded.permute(0, 2, 3, 1)[image_B, rows, columns].permute(0, 3, 1, 2)
        _, logits = self.classifier(crops.contiguous())
        loss = F.cross_entropy(logits, batch.labels_b)
        accuracy = (logits.argmax(1) == batch.labels_b).double().mean()
        return loss, {"loss": loss, "accuracy": accuracy}


class ClassifierTask(Task):
    """The classifier's training."""

    def __init__(self, config: ClassifierConfig, optim: OptimConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.classifier = Classifier(config)
        self.module = ClassifierLoss(self.classifier, optim.seed)

    def flops(self, step: int) -> int:
        """Of one image's update, the same at every step."""
        return classifier_flops(self.classifier.config)

    def random_batch(self, num: int, global_size: int) -> Batch:
        """Random images."""
        return random_images(num, self.classifier.config.resolution, global_size)

    def validate(self, held_out: HeldOut) -> dict[str, float]:
        """N and accuracy."""
        images, labels = held_out.inputs, held_out.labels_n
        hits = [
            (self.classifier(to_float(x).to(self.device))[1].argmax(1).cpu() == y).double()
            for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True)
        ]
        return {"n": len(images), "accuracy": float(torch.cat(hits).mean())}

    def export(self, directory: Path, class_names: Sequence[str]) -> None:
        """Write the classifier's model directory."""
        state = self.classifier.state_dict()
        save_model(directory, "classifier", self.classifier.config, state)


@cache
def classifier_flops(config: ClassifierConfig) -> int:
    """One image's update of the classifier, counted by torch on the meta device."""
    shape = (1, 3, config.resolution, config.resolution)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        _, logits = Classifier(config)(torch.empty(shape))
        logits.mean().backward()
    return int(counter.get_total_flops())
