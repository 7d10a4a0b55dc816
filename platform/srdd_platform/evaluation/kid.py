"""The bias of KID where the number of images of each class is fixed, as in balanced samples.

KID adds the mean kernel over pairs of different images of either set and subtracts twice the mean
over pairs across. Let a set have n images, n_c of class c with share p_c = n_c / n, and let k_cd be
the expected kernel of independent images of the classes c and d. Independent draws put a pair into
class c with probability p_c^2; a set whose n_c are fixed does so with n_c (n_c - 1) / (n (n - 1)),
which is less. As images of a class are more alike, the mean kernel of the set comes out too low by

    (sum_c p_c k_cc - sum_cd p_c p_d k_cd) / (n - 1),

and each set adds its own such term to KID. For C equal classes a term is
g (1/C - (n/C - 1) / (n - 1)), g being the mean kernel within classes minus that between them.

torch-fidelity averages over random subsets of 250 images. Every pair of the set is equally likely
to be in a subset, so the expected value is that of the whole set, whose size is the n above.
"""

import torch
from torch import Tensor

ROWS = 500  # of the kernel matrix at once


def _kernel(x_mD: Tensor, y_nD: Tensor) -> Tensor:
    """KID's kernel of rows, (x . y / D + 1)^3: [m, n]."""
    return (x_mD @ y_nD.T / x_mD.shape[1] + 1) ** 3


def class_bias(features_nD: Tensor, labels_n: Tensor) -> float | None:
    """What the fixed numbers of each class add to a set's term in KID: below 0 but for noise.

    The estimate is unbiased, as kernels within a class leave an image's own out. A class of one
    image has no pair: its k_cc is taken as the average of the other classes'.

    Args:
        features_nD: of the set's images.
        labels_n: int64 [n], their classes.

    Returns:
        The bias, to be subtracted; None where there are several classes and each has one image.
    """
    n = len(features_nD)
    within = known = spread = 0.0  # sums over classes of p (1 - p) k_cc, and of p (1 - p)
    between = 0.0  # the sum of kernels over all pairs of different classes
    for label in labels_n.unique():
        mine_nD = features_nD[labels_n == label]
        count, pairs = len(mine_nD), 0.0
        for rows in mine_nD.split(ROWS):
            own = float(_kernel(rows, mine_nD).sum(dtype=torch.float64))
            between += float(_kernel(rows, features_nD).sum(dtype=torch.float64)) - own
            itself = (rows.double().square().mean(1) + 1) ** 3
            pairs += own - float(itself.sum())
        weight = count * (n - count) / n**2
        spread += weight
        if count > 1:
            known += weight
            within += weight * pairs / (count * (count - 1))
    if spread == 0:  # one class
        return 0.0
    if known == 0:
        return None
    return (between / n**2 - within * spread / known) / (n - 1)
