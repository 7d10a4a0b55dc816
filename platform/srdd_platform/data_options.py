"""What a training takes of its data: how images vary, and how they are read."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from srdd.errors import UserError
from srdd_platform.data import Augmentation, Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Options of every training; the first two decide its result."""

    crop: Literal["random", "centre"] | None = None  # of what --keep stored; random where it did
    flip: bool = False  # left and right, half of the time; a transformer's with --views
    loader_workers: int = 1  # threads that read and decode ahead; 0 reads between the steps

    def check_data(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: it names the option.
        """
        if self.loader_workers < 0:
            raise UserError(f"--loader-workers must be >= 0, got {self.loader_workers}")


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


def code_settings(options: DataOptions, views: int) -> dict[str, Any]:
    """The settings of a training on codes; none where every image has one view.

    Raises:
        UserError: a crop is chosen, which views make by themselves.
    """
    if options.crop is not None:
        raise UserError("--crop is for trainings on pixels: a transformer trains on codes, whose "
                        "views are crops (--views)")  # fmt: skip
    return {"codes": {"views": views, "flip": options.flip}} if views > 1 else {}
