"""Feature extractors of torch-fidelity's metrics: Inception or a small classifier.

Every number carries its extractor's name: ``inception-v3-compat`` for torch-fidelity's Inception,
``classifier-<data>-<weights>`` for one trained on the data's train split. An FID of the one says
nothing about an FID of the other.
"""

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srdd.checkpoint import build_empty, load_weights, read_config
from srdd.errors import UserError
from srdd.foreign import check_tensors, listed, main_state, owned
from srdd.metrics.classifier import Classifier, ClassifierConfig
from srdd.networks import is_inception, name_network
from srdd.weight_files import read_weights
from srdd_platform.evaluation.protocol import extractor_name

INCEPTION = "inception-v3-compat"
BATCH = 250  # images the network sees at once
_WANTED = (
    "--extractor inception takes torch-fidelity's Inception, "
    "weights-inception-2015-12-05-6726825d.pth"
)


def import_torch_fidelity() -> Any:
    """Import torch-fidelity, also beside a CPU build of torch.

    It imports torchvision, whose wheels on the package index are linked to CUDA: beside a CPU
    build their operators are missing, and the import fails where it describes two of them. We
    use none of its operators, so declaring those two is enough.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEEP.append(library)
    import torch_fidelity

    return torch_fidelity


_KEEP: list[torch.library.Library] = []  # a library's declarations live as long as it does


@dataclass(frozen=True, slots=True)
class Features:
    """What the metrics need of n images."""

    features_nD: Tensor  # float32
    logits_nK: Tensor  # of the extractor's classes


class Extractor:
    """A feature extractor registered with torch-fidelity, by name."""

    def __init__(self, name: str, net: Any, layers: tuple[str, str], device: str) -> None:
        self.name = name
        self.device = device
        self._net = net.eval().requires_grad_(False).to(device)
        self._layers = layers

    @torch.no_grad()
    def __call__(self, images: Tensor | Iterable[Tensor]) -> Features:
        """Features and logits of uint8 images [n, 3, R, R], or of an iterable of such batches.

        The network sees :data:`BATCH` images at once, however they come, so that equal images
        have equal features.

        Raises:
            UserError: there are no images, or they are not uint8 with three channels.
            FloatingPointError: a feature is not finite.
        """
        batches = [images] if isinstance(images, Tensor) else images
        parts = [self._features(batch) for batch in _of_size(BATCH, batches)]
        if not parts:
            raise UserError("metrics need images, and there are none")
        features, logits = map(torch.cat, zip(*parts, strict=True))
        if not (torch.isfinite(features).all() and torch.isfinite(logits).all()):
            raise FloatingPointError(f"the extractor {self.name} gave features that are not finite")
        return Features(features, logits)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of one batch, float32 on the CPU."""
        found = self._net.convert_features_tuple_to_dict(self._net(images.to(self.device)))
        features, logits = (found[layer].float().cpu() for layer in self._layers)
        return features, logits


def _of_size(size: int, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of batches in batches of one size; the last may be smaller."""
    waiting: list[Tensor] = []
    missing = size
    for images in batches:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise UserError(
                f"metrics take uint8 images [n, 3, R, R], got {images.dtype} {list(images.shape)}"
            )
        rest = images
        while len(rest):
            waiting.append(rest[:missing])
            rest = rest[missing:]
            missing -= len(waiting[-1])
            if not missing:
                yield torch.cat(waiting)
                waiting, missing = [], size
    if waiting:
        yield torch.cat(waiting)


def check_classes(num: int, name: str) -> None:
    """Refuse a classifier of one class: its loss is 0 from the start, and its weights stay random.

    Args:
        num: classes.
        name: of what has them, for the message.

    Raises:
        UserError: there are fewer than two.
    """
    if num < 2:
        raise UserError(f"{name} has one class, so a classifier has nothing to tell apart: give "
                        "sweeps and distill --extractor inception --weights FILE")  # fmt: skip


def _classifier_class(fidelity: Any, directory: Path) -> Any:
    """torch-fidelity's extractor interface around a :class:`Classifier`."""
    config = read_config(directory, "classifier", ClassifierConfig)
    check_classes(config.num_classes, str(directory))

    class ClassifierExtractor(fidelity.FeatureExtractorBase):  # type: ignore[misc]
        """Pooled features and logits of the classifier."""

        def __init__(self, name: str, features_list: Any, **_: Any) -> None:
            super().__init__(name, features_list)
            self.net = load_weights(build_empty(Classifier, config), directory)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.net(images.float() / 127.5 - 1)
            found = {"features": features, "logits": logits}
            return tuple(found[layer] for layer in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return True

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            side = config.resolution
            return torch.zeros(1, 3, side, side, dtype=torch.uint8)

    return ClassifierExtractor


def classifier_name(directory: Path) -> str:
    """The name under which a classifier's numbers stand: it changes with its weights.

    Raises:
        UserError: there are no weights.
    """
    path = directory / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{path} does not exist: the classifier is not finished, or not whole")
    return extractor_name("classifier", path)


def load_extractor(name: str, weights: Path | None, device: str = "cpu") -> Extractor:
    """An extractor by name.

    Args:
        name: "classifier" (``weights`` is its model or run directory) or "inception"
            (``weights`` is torch-fidelity's file ``weights-inception-2015-12-05-6726825d.pth``).
        weights: where the weights are.
        device: where to run.

    Raises:
        UserError: the name is unknown or the weights are missing or of another kind.
    """
    if name not in ("classifier", "inception"):
        raise UserError(f"no extractor {name!r}: use classifier or inception")
    if weights is None or not weights.exists():
        raise UserError(
            f"--extractor {name} needs --weights: "
            + ("a file of torch-fidelity's Inception" if name == "inception" else "a classifier")
            + (f"; {weights} does not exist" if weights else "")
        )
    if name == "inception":
        layers = ("2048", "logits_unbiased")
        net = _inception(weights, layers)
        return Extractor(extractor_name(INCEPTION, weights), net, layers, device)
    if weights.is_file():
        raise UserError(
            f"--weights {weights} is a file: a classifier is the run directory that srdd train "
            "classifier made; for a file of Inception give --extractor inception"
        )
    directory = weights / "model" if (weights / "model" / "config.json").exists() else weights
    return _load_classifier(directory, device)


def _load_classifier(directory: Path, device: str) -> Extractor:
    """The extractor of a classifier's model directory."""
    fidelity = import_torch_fidelity()
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import create_feature_extractor

    wrapper = _classifier_class(fidelity, directory)
    registered = classifier_name(directory)
    FEATURE_EXTRACTORS_REGISTRY.pop(registered, None)  # the directory may have moved
    fidelity.register_feature_extractor(registered, wrapper)
    layers = ("features", "logits")
    net = create_feature_extractor(registered, list(layers), cuda=False, verbose=False)
    return Extractor(registered, net, layers, device)


def _inception(weights: Path, layers: tuple[str, str]) -> Any:
    """torch-fidelity's Inception; its own way to read a file would run a pickle's code.

    Raises:
        UserError: the file holds something else, which is named.
    """
    state = main_state(read_weights(weights, _WANTED))
    if not is_inception(state):
        network = name_network(state)
        what = f"is {network}" if network else f"has other keys ({listed(state) or 'none'})"
        raise UserError(f"{weights} {what}: {_WANTED}")
    import_torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Inception(FeatureExtractorInceptionV3):  # type: ignore[misc]
        """Takes the weights that were read here."""

        def load_state_dict(self, *_: Any, **__: Any) -> Any:
            own = self.state_dict()
            counts = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
            given = owned({name: state[name] for name in state if name not in counts})
            check_tensors(own, given | counts)
            return super().load_state_dict(given | counts)

    none = io.BytesIO()
    torch.save({}, none)
    none.seek(0)
    try:
        return Inception(INCEPTION, list(layers), feature_extractor_weights_path=none)
    except UserError as error:
        raise UserError(f"{weights}: {error}; {_WANTED}") from None
