"""How training images vary: a random crop and flip, keyed by seed, draw and sample.

VAR resizes the shorter side to 1.125 R and cuts R x R at random; so do shards that were prepared
with ``keep=1.125``. A draw is an epoch, or the number of a view. What is drawn depends on
(seed, draw, sample) alone: never on batch, rank or worker.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from srdd.errors import UserError
from srdd_platform.data.manifest import Manifest
from srdd_platform.data.options import DataOptions
from srdd_platform.data.pixels import Cut, Pixels
from srdd_platform.data.sources import AUGMENT_DRAWS


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is varied."""

    crop: bool = True  # R x R anywhere in the stored image; else its centre
    flip: bool = False  # left and right, half of the time
    seed: int = 0

    def check(self, manifest: Manifest) -> None:
        """Refuse a crop where nothing is stored to crop.

        Raises:
            UserError: the images are stored at the size they are read at.
        """
        if self.crop and manifest.stored_side == manifest.resolution:
            raise UserError(f"random crops need more than the {manifest.resolution} px that are "
                            "stored: prepare the data with --keep 1.125")  # fmt: skip

    def cut(self, draw: int, sample: int) -> Cut:
        """The cut of one sample in one draw. Crop and flip do not depend on each other."""
        key = np.array([self.seed, (AUGMENT_DRAWS << 32) + draw], dtype=np.uint64)
        counter = np.array([0, sample, 0, 0], dtype=np.uint64)
        raw = [int(x) for x in np.random.Philox(key=key, counter=counter).random_raw(3)]

        def apply(pixels: Pixels, resolution: int) -> Pixels:
            spare = [side - resolution for side in pixels.shape[:2]]
            top, left = (
                x % (more + 1) if self.crop else round(more / 2)
                for x, more in zip(raw, spare, strict=False)
            )
            part = pixels[top : top + resolution, left : left + resolution]
            return np.ascontiguousarray(part[:, ::-1]) if self.flip and raw[2] & 1 else part

        return apply


def pixel_settings(options: DataOptions, manifest: Manifest) -> dict[str, Any]:
    """The settings of a training on pixels; none where every image is read as it is.

    Raises:
        UserError: random crops are asked for, and nothing is stored to crop.
    """
    margin = manifest.stored_side > manifest.resolution
    crop = margin if options.crop is None else options.crop == "random"
    augmentation = Augmentation(crop=crop, flip=options.flip)
    augmentation.check(manifest)
    found = {name: value for name, value in asdict(augmentation).items() if name != "seed"}
    return {"augmentation": found} if any(found.values()) else {}
