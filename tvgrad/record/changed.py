"""changed: gradients that a script changes between its backward passes and its optimizer's step.

It may divide them by the samples or tokens of the step, or clip them by code of its own: then the weights of batches
are those of what the step consumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from tvgrad.numerics.floats import unit_roundoff
from tvgrad.record.batch_weights import Evidence

CHANGED = "the script changes the gradients that it has accumulated by more than a factor before its steps"


def as_consumed(
    found: Sequence[Evidence], step: int, consumed: torch.Tensor, dtype: torch.dtype
) -> tuple[list[Evidence], bool]:
    """Make gradients of backward passes what a step consumes of them.

    Args:
        found: gradients of batches.
        step: the number of the step.
        consumed: the gradient that it consumes, at the same coordinates.
        dtype: in which gradients are accumulated.

    Returns:
        The gradients, those of the step as it consumes them; whether it consumes several of them that were changed by
        more than a factor, so that they cannot be told.
    """
    own = [one for one in found if one.step == step]
    if not own:
        return list(found), False
    if len(own) == 1:
        return [replace(one, gradient=consumed) if one is own[0] else one for one in found], False
    summed = torch.stack([one.gradient for one in own]).sum(0)
    factor = factor_of(consumed, summed, dtype)
    size = float(torch.stack([one.gradient.norm() for one in own]).sum()) * abs(factor)
    told = float((consumed - factor * summed).norm()) <= 8 * unit_roundoff(dtype) * size * len(own) ** 0.5
    return [replace(one, gradient=factor * one.gradient) if one.step == step else one for one in found], not told


def factor_of(after: torch.Tensor, before: torch.Tensor, dtype: torch.dtype) -> float:
    """The factor that makes a vector of another, nearly.

    Args:
        after: float64 vector.
        before: of the same length.
        dtype: of the gradients.

    Returns:
        The factor of least squares; 1 where rounding explains the difference, or `before` is zero.
    """
    square = float(before @ before)
    factor = float(after @ before) / square if square else 1.0
    return 1.0 if abs(factor - 1.0) <= 8 * unit_roundoff(dtype) else factor


def narrowest(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """Tell in which format gradients are accumulated.

    Args:
        tensors: parameters, at least one.

    Returns:
        The narrowest format of them.
    """
    return min((one.dtype for one in tensors), key=lambda dtype: dtype.itemsize)
