"""A small image classifier: the feature extractor of data that Inception does not know.

Its features stand in for Inception's in FID, KID, precision and recall, its class probabilities
in IS. Numbers from it can be compared with each other, never with published ones.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from srdd.validation import require, settle


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """A convolutional net of three levels."""

    num_classes: int
    resolution: int
    ch: int = 32  # width of the first level; the others have twice as many channels
    features: int = 64  # D, the pooled features

    def __post_init__(self) -> None:
        settle(self)
        for name in ("num_classes", "ch", "features"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "positive")
        require(self.resolution >= 8, "resolution", self.resolution, "at least 8")


class Classifier(nn.Module):
    """Images to pooled features and logits."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = (3, config.ch, 2 * config.ch, 2 * config.ch, config.features)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in widths[1:])
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 3, R, R] in [-1, 1] -> features [B, D], logits [B, classes]."""
        x = images
        last = len(self.convs) - 1
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            if i in (1, last - 1):
                x = F.max_pool2d(x, 2)
        features_BD = x.mean((2, 3))
        return features_BD, self.head(features_BD)
