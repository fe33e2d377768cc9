"""The methods as functions on task vectors in memory, and by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tvgrad.merging.breadcrumbs import Breadcrumbs
from tvgrad.merging.dare import Dare
from tvgrad.merging.median import Median
from tvgrad.merging.method import Method
from tvgrad.merging.streaming import merge_vectors
from tvgrad.merging.task_arithmetic import Analogy, Mean, Negation, TaskArithmetic
from tvgrad.merging.ties import Ties
from tvgrad.merging.tsv_m import TsvM
from tvgrad.vectors.parameters import Weights

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (TaskArithmetic, Mean, Ties, Dare, Median, TsvM, Breadcrumbs, Negation, Analogy)
}
"""Name -> method, in the order of a first look."""

Vectors = Sequence[Mapping[str, torch.Tensor]]
Base = Mapping[str, torch.Tensor] | None


def task_arithmetic(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Add task vectors.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the sum is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha (tau_1 + ... + tau_T), or base plus that.
    """
    return merge_vectors(TaskArithmetic(), task_vectors, alpha, base)


def mean(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Average task vectors.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the mean is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha (tau_1 + ... + tau_T) / T, or base plus that.
    """
    return merge_vectors(Mean(), task_vectors, alpha, base)


def negation(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Forget tasks.

    Args:
        task_vectors: usually one, name -> tensor.
        alpha: what minus the sum is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> -alpha (tau_1 + ... + tau_T), or base plus that.
    """
    return merge_vectors(Negation(), task_vectors, alpha, base)


def analogy(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Complete "A is to B as C is to ...".

    Args:
        task_vectors: of A, B and C, each name -> tensor.
        alpha: what the result is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha (tau_C + (tau_B - tau_A)), or base plus that.
    """
    return merge_vectors(Analogy(), task_vectors, alpha, base)


def ties(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, density: float = 0.2) -> Weights:
    """Trim, elect signs, and average what agrees (TIES).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: share of each tensor's entries that a task keeps.

    Returns:
        Name -> alpha times the merged vector, or base plus that.
    """
    return merge_vectors(Ties(density), task_vectors, alpha, base)


def dare(task_vectors: Vectors, alpha: float = 1.0, base: Base = None, density: float = 0.5, seed: int = 0) -> Weights:
    """Drop entries at random, rescale, and add (DARE).

    Args:
        task_vectors: each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.
        density: probability that an entry is kept.
        seed: of the random numbers.

    Returns:
        Name -> alpha times the merged vector, or base plus that.
    """
    return merge_vectors(Dare(density, seed), task_vectors, alpha, base)


def median(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Take the lower median, coordinate by coordinate.

    Args:
        task_vectors: each name -> tensor.
        alpha: what the median is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the median, or base plus that.
    """
    return merge_vectors(Median(), task_vectors, alpha, base)


def tsv_m(task_vectors: Vectors, alpha: float = 1.0, base: Base = None) -> Weights:
    """Merge matrices by their leading singular vectors, decorrelated (TSV-M).

    Args:
        task_vectors: at least two, each name -> tensor.
        alpha: what the merged vector is multiplied with.
        base: weights to add it to.

    Returns:
        Name -> alpha times the merged vector, or base plus that.
    """
    return merge_vectors(TsvM(), task_vectors, alpha, base)


def breadcrumbs(
    task_vectors: Vectors, alpha: float = 1.0, base: Base = None, density: float = 0.2, outliers: float = 0.01
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
    """
    return merge_vectors(Breadcrumbs(density, outliers), task_vectors, alpha, base)
