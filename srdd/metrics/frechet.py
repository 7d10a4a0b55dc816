"""The Frechet distance of Gaussians fitted to features: FID, where they are Inception's."""

import numpy as np
import numpy.typing as npt
from torch import Tensor

Array = npt.NDArray[np.float64]


class Gaussian:
    """Mean and covariance of features, in float64.

    Args:
        features_nD: of at least two images.
    """

    def __init__(self, features_nD: Tensor) -> None:
        values: Array = features_nD.double().cpu().numpy()
        self.mean: Array = values.mean(axis=0)
        self.cov: Array = np.cov(values, rowvar=False)
        eigenvalues, vectors = np.linalg.eigh(self.cov)
        self.root: Array = (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T

    def frechet(self, features_nD: Tensor) -> float:
        """The distance to other features' Gaussian, through a symmetric product.

        The product of the covariances has the same positive eigenvalues as an n x n matrix, which
        is the smaller one where there are fewer images than features.
        """
        values: Array = features_nD.double().cpu().numpy()
        mean = values.mean(axis=0)
        centred_nD = (values - mean) / np.sqrt(len(values) - 1)
        if len(values) < values.shape[1]:
            product = centred_nD @ self.cov @ centred_nD.T
        else:
            product = self.root @ (centred_nD.T @ centred_nD) @ self.root
        roots = np.sqrt(np.linalg.eigvalsh(product).clip(0)).sum()
        gap = self.mean - mean
        return float(gap @ gap + np.trace(self.cov) + np.square(centred_nD).sum() - 2 * roots)
