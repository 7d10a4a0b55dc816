"""Training the small classifier on the data's train split."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from srdd.images import to_float
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.rng import hash_counters
from srdd.train.config import OptimConfig
from srdd.train.loop import Batch, Stateless

_SHIFT = 0x51F7  # a stream of random numbers


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
        bits = hash_counters(batch.index_b[:, None], axes_2, self.seed, step, _SHIFT)
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


class ClassifierTask(Stateless):
    """The classifier's training."""

    def __init__(self, config: ClassifierConfig, optim: OptimConfig) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(optim.seed)
            self.classifier = Classifier(config)
        self.module = ClassifierLoss(self.classifier, optim.seed)
