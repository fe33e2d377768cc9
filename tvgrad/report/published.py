"""Published figures that reports stand beside, with their source and what differs."""

from __future__ import annotations

import pandas as pd

SOURCE = "Zhou et al., On Task Vectors and Gradients, arXiv 2508.16082: CLIP ViT-B/16, Adam, lr 1e-5, batch size 32"
DIFFERENCE = (
    "Published: the mean over an epoch's steps of the norm of the batch gradient before clipping, at moving weights. "
    "Measured here: the norm of the full-batch gradient at the weights with which the epoch begins. These are two "
    "measures, and their shares do not compare as numbers; the published one stands beside it where it was recorded"
)

_SHARES = {
    "CIFAR100": (0.324, 6),
    "SVHN": (0.402, 4),
    "RESISC45": (0.228, 15),
    "MNIST": (0.421, 5),
    "EuroSAT": (0.266, 12),
    "GTSRB": (0.681, 11),
    "DTD": (0.124, 76),
}


def first_epoch_shares() -> pd.DataFrame:
    """The published share of the first epoch in the sum of per-epoch gradient norms.

    Returns:
        Columns data_set, epochs and share; `share * epochs` is 1 where all epochs have the same norm.
    """
    return pd.DataFrame([
        {"data_set": name, "epochs": epochs, "share": share} for name, (share, epochs) in _SHARES.items()
    ])
