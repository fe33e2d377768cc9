"""Methods that drop or shrink single entries, as functions on vectors in memory."""

from __future__ import annotations

from tvgrad.merging.breadcrumbs import BreadcrumbsTies
from tvgrad.merging.dare import DareTies
from tvgrad.merging.magnitude_prune import MagnitudePrune
from tvgrad.merging.masked_mean import MaskedMean
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.trust_region import TrustRegion
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.vectors.parameters import Weights


def magnitude_prune(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.2) -> Weights:
    """Add each tensor's largest entries.

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of each tensor's entries that a task keeps.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import magnitude_prune
        >>> vectors = [{"w": torch.tensor([9.0, 3.0, 0.1, 2.0])}]
        >>> magnitude_prune(vectors, density=0.5)["w"].tolist()
        [9.0, 3.0, 0.0, 0.0]
    """
    return merge_vectors(MagnitudePrune(density), task_vectors, alpha, base=base)


def dare_ties(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.5, seed: int = 0
) -> Weights:
    """Drop entries at random, and average what agrees with the elected sign (DARE-TIES).

    Args:
        task_vectors: two or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: probability with which an entry is kept.
        seed: of the random numbers.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import dare_ties
        >>> vectors = [{"w": torch.tensor([1.0, -4.0])}, {"w": torch.tensor([3.0, 2.0])}]
        >>> dare_ties(vectors, density=1.0)["w"].tolist()
        [2.0, -4.0]
    """
    return merge_vectors(DareTies(density, seed), task_vectors, alpha, base=base)


def breadcrumbs_ties(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.2, outliers: float = 0.01
) -> Weights:
    """Leave out each tensor's largest and smallest entries, and average what agrees with the elected sign.

    Args:
        task_vectors: two or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of each tensor's entries that are not small.
        outliers: share of each tensor's entries that are left out because they are the largest.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import breadcrumbs_ties
        >>> vectors = [{"w": torch.tensor([9.0, 3.0, 0.1, 2.0])}, {"w": torch.tensor([9.0, 5.0, 0.1, -1.0])}]
        >>> breadcrumbs_ties(vectors, density=0.75, outliers=0.25)["w"].tolist()
        [0.0, 4.0, 0.0, 2.0]
    """
    return merge_vectors(BreadcrumbsTies(density=density, outliers=outliers), task_vectors, alpha, base=base)


def masked_mean(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, agreement: float = 0.4) -> Weights:
    """Average task vectors, less where signs disagree (gradient masked averaging).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        agreement: of signs, from which on the mean counts in full.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import masked_mean
        >>> vectors = [{"w": torch.tensor([1.0, -4.0])}, {"w": torch.tensor([3.0, 2.0])}]
        >>> masked_mean(vectors)["w"].tolist()
        [2.0, -0.0]
    """
    return merge_vectors(MaskedMean(agreement), task_vectors, alpha, base=base)


def trust_region(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, share: float = 0.01) -> Weights:
    """Add task vectors, but for the coordinates where tasks conflict most (TATR without data).

    Args:
        task_vectors: two or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        share: of the coordinates of each tensor that are left out.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import trust_region
        >>> vectors = [{"w": torch.tensor([1.0, 4.0])}, {"w": torch.tensor([1.0, 2.0])}]
        >>> trust_region(vectors, share=0.5)["w"].tolist()
        [2.0, 0.0]
    """
    return merge_vectors(TrustRegion(share), task_vectors, alpha, base=base)
