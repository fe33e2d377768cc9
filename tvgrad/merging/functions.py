"""Methods as functions on task vectors in memory: those that came first. Others are in files of their family."""

from __future__ import annotations

from tvgrad.merging.breadcrumbs import Breadcrumbs
from tvgrad.merging.dare import Dare
from tvgrad.merging.isotropic import Isotropic
from tvgrad.merging.median import Median
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.model_stock import ModelStock
from tvgrad.merging.task_arithmetic import Analogy, Mean, Negation, TaskArithmetic
from tvgrad.merging.ties import Ties
from tvgrad.merging.tsv_m import TsvM
from tvgrad.merging.vector_lists import Base, Vectors
from tvgrad.merging.wudi import Wudi
from tvgrad.vectors.parameters import Weights


def task_arithmetic(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    r"""Add task vectors.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the sum is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> $\alpha (\tau_1 + \dots + \tau_T)$, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import task_arithmetic
        >>> vectors = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 4.0])}]
        >>> task_arithmetic(vectors, alpha=0.5)["w"].tolist()
        [2.0, 1.0]
    """
    return merge_vectors(TaskArithmetic(), task_vectors, alpha, base=base)


def mean(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    r"""Average task vectors.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the mean is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> $\alpha (\tau_1 + \dots + \tau_T) / T$, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import mean
        >>> vectors = [{"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([3.0, 4.0])}]
        >>> mean(vectors)["w"].tolist()
        [2.0, 1.0]
        >>> mean(vectors, base={"w": torch.tensor([10.0, 10.0])})["w"].tolist()
        [12.0, 11.0]
    """
    return merge_vectors(Mean(), task_vectors, alpha, base=base)


def negation(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    r"""Forget tasks.

    Args:
        task_vectors: usually one, name -> tensor.
        alpha: what minus the sum is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> $-\alpha (\tau_1 + \dots + \tau_T)$, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import negation
        >>> vectors = [{"w": torch.tensor([1.0, -2.0])}]
        >>> negation(vectors)["w"].tolist()
        [-1.0, 2.0]
    """
    return merge_vectors(Negation(), task_vectors, alpha, base=base)


def analogy(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    r"""Complete "A is to B as C is to ...".

    Args:
        task_vectors: of A, B and C, each name -> tensor.
        alpha: what the result is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> $\alpha (\tau_C + (\tau_B - \tau_A))$, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import analogy
        >>> vectors = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, {"w": torch.tensor([10.0])}]
        >>> analogy(vectors)["w"].tolist()
        [12.0]
    """
    return merge_vectors(Analogy(), task_vectors, alpha, base=base)


def ties(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.2) -> Weights:
    """Trim, elect signs, and average what agrees (TIES).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of each tensor's entries that a task keeps.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import ties
        >>> vectors = [{"w": torch.tensor([1.0, -4.0])}, {"w": torch.tensor([3.0, 2.0])}]
        >>> ties(vectors, density=1.0)["w"].tolist()
        [2.0, -4.0]
    """
    return merge_vectors(Ties(density), task_vectors, alpha, base=base)


def dare(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.5, seed: int = 0
) -> Weights:
    """Drop entries at random, rescale, and add (DARE).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: probability that an entry is kept.
        seed: of the random numbers.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import dare
        >>> vectors = [{"w": torch.ones(8)}]
        >>> sorted(set(dare(vectors, density=0.5, seed=1)["w"].tolist()))
        [0.0, 2.0]
    """
    return merge_vectors(Dare(density=density, seed=seed), task_vectors, alpha, base=base)


def median(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Take the lower median, coordinate by coordinate.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the median is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the median, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import median
        >>> vectors = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([9.0])}, {"w": torch.tensor([2.0])}]
        >>> median(vectors)["w"].tolist()
        [2.0]
    """
    return merge_vectors(Median(), task_vectors, alpha, base=base)


def tsv_m(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, share: float | None = None) -> Weights:
    """Merge matrices by their leading singular vectors, decorrelated (TSV-M).

    Args:
        task_vectors: at least two, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        share: of the triplets of each matrix that a task keeps, at most 1/T; by default 1/T.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import tsv_m
        >>> vectors = [{"w": torch.diag(torch.tensor([3.0, 0.0]))}, {"w": torch.diag(torch.tensor([0.0, 2.0]))}]
        >>> tsv_m(vectors)["w"].abs().round(decimals=6).tolist()
        [[3.0, 0.0], [0.0, 2.0]]
    """
    return merge_vectors(TsvM(share), task_vectors, alpha, base=base)


def breadcrumbs(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, *, density: float = 0.2, outliers: float = 0.01
) -> Weights:
    """Leave out each tensor's largest and smallest entries, and add (model breadcrumbs).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of each tensor's entries that are not small.
        outliers: share of each tensor's entries that are left out because they are the largest.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import breadcrumbs
        >>> vectors = [{"w": torch.tensor([9.0, 3.0, 0.1, 2.0])}]
        >>> breadcrumbs(vectors, density=0.75, outliers=0.25)["w"].tolist()
        [0.0, 3.0, 0.0, 2.0]
    """
    return merge_vectors(Breadcrumbs(density=density, outliers=outliers), task_vectors, alpha, base=base)


def wudi(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Merge matrices so that the result interferes least with each task's own rows (WUDI, in closed form).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import wudi
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 2.0])]
        >>> wudi(vectors)["w"].round(decimals=6).tolist()  # orthogonal rows do not interfere
        [[3.0, 0.0], [0.0, 2.0]]
    """
    return merge_vectors(Wudi(), task_vectors, alpha, base=base)


def isotropic(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Make all singular values of every summed matrix their mean (Iso-C).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import isotropic
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 1.0])]
        >>> isotropic(vectors)["w"].round(decimals=6).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return merge_vectors(Isotropic(), task_vectors, alpha, base=base)


def model_stock(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Shrink the mean by what the angle between task vectors says of chance (model stock).

    Args:
        task_vectors: at least two, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import model_stock
        >>> model_stock([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}])["w"].tolist()
        [0.0, 0.0]
        >>> model_stock([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([1.0, 0.0])}])["w"].tolist()
        [1.0, 0.0]
    """
    return merge_vectors(ModelStock(), task_vectors, alpha, base=base)
