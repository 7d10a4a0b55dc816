"""FID with its standard error, IS, KID, precision and recall, as torch-fidelity computes them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from srdd.errors import UserError
from srdd.metrics.frechet import Gaussian
from srdd_platform.evaluation.extractors import Features, import_torch_fidelity
from srdd_platform.evaluation.kid import class_bias
from srdd_platform.evaluation.protocol import MIN_IMAGES

JACKKNIFE_BLOCKS = 10
KID_SUBSETS, KID_SUBSET_SIZE = 50, 250


class Reference(Gaussian):
    """Features of the real images that samples are compared with.

    Args:
        real: of at least two images.
        labels_n: int64 [n], their classes; None where they are not known.
    """

    def __init__(self, real: Features, labels_n: Tensor | None = None) -> None:
        super().__init__(real.features_nD)
        self.real = real
        self.kid_bias = _kid_bias(real, labels_n)

    def left_out(self, features_nD: Tensor, labels_n: Tensor | None) -> npt.NDArray[np.float64]:
        """Distances without one block of images each: [JACKKNIFE_BLOCKS].

        A block takes every tenth image of a class, so that it holds all classes alike. Where
        classes are not known it takes a random tenth, as the images' order may follow them.
        """
        n = len(features_nD)
        if labels_n is None:
            order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
        else:
            order = torch.argsort(labels_n, stable=True)
        block_n = torch.empty_like(order)
        block_n[order] = torch.arange(n) % JACKKNIFE_BLOCKS
        return np.array([self.frechet(features_nD[block_n != k]) for k in range(JACKKNIFE_BLOCKS)])


def jackknife_error(left_out: npt.NDArray[np.float64]) -> float:
    """The standard error that values without one block each tell."""
    spread = np.square(left_out - left_out.mean()).sum()
    return float(np.sqrt((len(left_out) - 1) / len(left_out) * spread))


def raw_kid(fake_nD: Tensor, real_mD: Tensor, subsets: int = KID_SUBSETS) -> float:
    """torch-fidelity's KID of features, which takes all images for independent draws."""
    import_torch_fidelity()
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(KID_SUBSET_SIZE, len(fake_nD), len(real_mD))
    found = kid_features_to_metric(
        fake_nD, real_mD, kid_subsets=subsets, kid_subset_size=size, verbose=False
    )
    return float(found["kernel_inception_distance_mean"])


def _kid_bias(features: Features, labels_n: Tensor | None) -> float | None:
    """What fixed numbers of each class add to KID; None where that cannot be known."""
    return None if labels_n is None else class_bias(features.features_nD, labels_n)


def _of_torch_fidelity(fake: Features, real: Features) -> dict[str, float]:
    """The metrics that torch-fidelity computes of features."""
    import_torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    statistics = [fid_features_to_statistics(f.features_nD) for f in (fake, real)]
    fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    prc = prc_features_to_metric(fake.features_nD, real.features_nD, verbose=False)
    isc = isc_features_to_metric(fake.logits_nK, splits=1)
    return {
        "fid": float(fid),
        "inception_score": isc["inception_score_mean"],
        "kid_raw": raw_kid(fake.features_nD, real.features_nD),
        "precision": float(prc["precision"]),
        "recall": float(prc["recall"]),
    }


def measure(
    fake: Features, reference: Reference, labels_n: Tensor | None, *, accuracy: bool
) -> dict[str, float]:
    """FID, IS, KID, precision and recall as torch-fidelity computes them.

    Where the classes of both sides are known, the numbers of images of each count as fixed, and
    ``kid`` has the bias of that subtracted (:mod:`srdd_platform.evaluation.kid`).

    Args:
        fake: features of the images judged.
        reference: the real images.
        labels_n: int64 [n], the class asked for each image; None where none was, as for a folder
            of somebody else's images.
        accuracy: whether the extractor's classes are the data's.

    Returns:
        fid, fid_se (ours, jackknife), inception_score (one split), kid_raw (torch-fidelity's),
        precision and recall. With labels, accuracy, the share of images classified as the class
        asked for; with labels on both sides and two images of some class, kid.

    Raises:
        UserError: there are too few images.
    """
    real = reference.real
    fewest = min(len(fake.features_nD), len(real.features_nD))
    if fewest < MIN_IMAGES:
        raise UserError(f"metrics need at least {MIN_IMAGES} images on both sides, got {fewest}")
    scores = _of_torch_fidelity(fake, real)
    error = jackknife_error(reference.left_out(fake.features_nD, labels_n))
    measured = {"fid": scores.pop("fid"), "fid_se": error, **scores}  # rows keep this order
    bias = _kid_bias(fake, labels_n)
    if bias is not None and reference.kid_bias is not None:
        measured["kid"] = measured["kid_raw"] - bias - reference.kid_bias
    if accuracy and labels_n is not None:
        hits = fake.logits_nK.argmax(1) == labels_n
        measured["accuracy"] = float(hits.double().mean())
    return measured
