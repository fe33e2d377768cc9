"""Methods that decompose matrices, as functions on vectors in memory."""

from __future__ import annotations

from tvgrad.merging.isotropic_subspaces import IsotropicSubspaces
from tvgrad.merging.knots import Knots
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.tsv_c import TsvC
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.vectors.parameters import Weights


def isotropic_subspaces(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, common: float = 0.8
) -> Weights:
    """Merge a common and task-specific subspaces with one strength for all directions (Iso-CTS).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        common: share of the directions that all tasks have in common.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import isotropic_subspaces
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 1.0])]
        >>> isotropic_subspaces(vectors)["w"].round(decimals=6).abs().tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return merge_vectors(IsotropicSubspaces(common), task_vectors, alpha, base=base)


def knots(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.2) -> Weights:
    """Write all tasks in one basis of singular vectors, and merge by TIES there (KnOTS).

    Args:
        task_vectors: two or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of the entries in that basis that a task keeps.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import knots
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 1.0])]
        >>> knots(vectors, density=1.0)["w"].round(decimals=6).abs().tolist()
        [[3.0, 0.0], [0.0, 1.0]]
    """
    return merge_vectors(Knots(density), task_vectors, alpha, base=base)


def tsv_c(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, share: float | None = None) -> Weights:
    """Add task matrices, each compressed to its leading singular triplets (TSV-C).

    Args:
        task_vectors: one or more, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        share: of the triplets that a task keeps; by default 1/T.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import tsv_c
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 1.0], [0.5, 2.0])]
        >>> tsv_c(vectors, share=0.5)["w"].round(decimals=6).abs().tolist()
        [[3.0, 0.0], [0.0, 2.0]]
    """
    return merge_vectors(TsvC(share), task_vectors, alpha, base=base)
