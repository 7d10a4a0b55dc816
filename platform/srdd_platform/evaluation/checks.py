"""Whether images and a model belong together."""

from pathlib import Path

from srdd.errors import UserError
from srdd.generator import Card
from srdd_platform.data.manifest import Manifest


def check_data(card: Card, model: Path, manifest: Manifest, data: object) -> None:
    """Refuse images that are not a model's own kind.

    Args:
        card: of the model.
        model: what messages call it.
        manifest: of the images.
        data: what messages call them.

    Raises:
        UserError: the images have another size, or other classes.
    """
    if manifest.resolution != card.resolution:
        raise UserError(
            f"{model} draws {card.resolution} px images, {data} holds {manifest.resolution} px ones"
        )
    if not card.unconditional and len(manifest.classes) != len(card.class_names):
        raise UserError(
            f"{model} knows {len(card.class_names)} classes, {data} holds {len(manifest.classes)}"
        )
