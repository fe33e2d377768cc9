"""ChunkRounding: how far a full-batch gradient moves when the data is cut into chunks of another size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from tvgrad.problem.checks import BATCH_DEPENDENT
from tvgrad.problem.objective import Objective
from tvgrad.results import Result
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, norm

ROOM = 10.0
"""Rounding of the same size: so many times the rounding that is measured, or one unit roundoff where that is more."""


@dataclass(frozen=True)
class ChunkRounding(Result):
    """The same gradient in chunks of two sizes.

    Attributes:
        agrees: they differ by no more than the stated bound.
        chunk_size: samples in a chunk, as the run was recorded.
        other: samples in a chunk of the other gradient.
        difference: distance of the two gradients, relative to the float64 gradient's norm.
        bound: an estimate of how far chunks of any size may move it, likewise.
        sentence: the outcome in words.
    """

    agrees: bool
    chunk_size: int
    other: int
    difference: float
    bound: float
    sentence: str


def other_size(objective: Objective) -> int | None:
    """Choose another size of chunks: half, rounded up.

    Args:
        objective: the run's.

    Returns:
        Samples in a chunk; None where there is no other size, or a size changes more than rounding because the user
        allowed what depends on a batch.
    """
    size = min(objective.chunk_size, len(objective.samples))
    return None if size < 2 or set(objective.allowed) & BATCH_DEPENDENT else (size + 1) // 2


def chunk_rounding(
    sizes: tuple[int, int], gradients: tuple[Weights, Weights], truth: Weights, error: float, epoch: int
) -> ChunkRounding | None:
    r"""Compare gradients that were computed in chunks of two sizes.

    A gradient is $\sum_k w_k \hat g_k / W$ over chunks k. The sum is formed in float64 and cast once: for C chunks
    that is at most $\gamma_{C+1} \sum_k w_k \lVert \hat g_k \rVert / W$ with the unit $2^{-53}$, and one unit roundoff
    u of the dtype. What is left is the rounding inside the passes over single chunks. It has no bound for an arbitrary
    model, and is measured instead: as the distance e of the gradient in the run's own chunks to the float64 one. By
    the triangle inequality two sizes differ by at most the sum of their two distances; the stated bound,
    10 max(e, u), is an estimate: it takes chunks of another size to round at most nine times as badly.

    Args:
        sizes: samples in a chunk, of the run and of the other.
        gradients: name -> tensor, likewise.
        truth: name -> tensor, the same gradient in float64.
        error: relative distance of the first to it, as rounding of the run's dtype makes it.
        epoch: where they were computed, for the sentence.

    Returns:
        The comparison; None where the gradient is zero or not finite.
    """
    length = norm(truth)
    if not length or not math.isfinite(length) or not math.isfinite(error):
        return None
    unit = max(torch.finfo(tensor.dtype).eps / 2 for tensor in gradients[0].values())
    moved, bound = norm(difference(gradients[1], gradients[0])) / length, ROOM * max(error, unit)
    agrees = moved <= bound
    words = "the same bits" if moved == 0 else f"differs by {moved:.2g} of its norm"
    sentence = (
        f"in chunks of {sizes[1]} in place of {sizes[0]} samples the gradient at epoch {epoch} "
        f"{'has ' if moved == 0 else ''}{words}, {'within' if agrees else 'more than'} {bound:.2g} "
        f"(an estimate: ten times the rounding that is measured against float64)"
    )
    return ChunkRounding(agrees, *sizes, moved, bound, sentence)
