"""Sums of vectors in parameter space that carry the errors of the vectors, of the coefficients and of the summation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up
from tvgrad.update_rules.base import Array


def decayed(vector: BoundedVector, at: torch.Tensor, coupled: float) -> BoundedVector:
    """Add the part of coupled decay, `lambda at`.

    Args:
        vector: a gradient, or a product with the Hessian.
        at: the weights, or the direction.
        coupled: lambda.

    Returns:
        The sum with its rounding.
    """
    if not coupled:
        return vector
    extra = coupled * at
    value = vector.value + extra
    rounding = 2 * UNIT_ROUNDOFF * float(extra.norm() + value.norm()) * (1 + gamma(len(at)))
    return BoundedVector(value, vector.error + rounding)


def weighted(
    coefficients: Array, vectors: Sequence[BoundedVector], rounding: float, *, norms: Array | None = None
) -> BoundedVector:
    """Sum vectors with nonnegative coefficients.

    Args:
        coefficients: (k,).
        vectors: k vectors.
        rounding: relative error of the coefficients.
        norms: (k,) of the computed vectors, or upper bounds of them.

    Returns:
        The sum, with the errors of vectors, coefficients and summation.
    """
    total = torch.zeros_like(vectors[0].value)
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        if coefficient:
            total.add_(vector.value, alpha=float(coefficient))
    if norms is None:
        norms = np.array([vector.norm for vector in vectors])
    errors: Array = np.array([vector.error for vector in vectors])
    summation = round_up((rounding + gamma(len(coefficients) + 4)) * float(coefficients @ norms))
    return BoundedVector(total, float(coefficients @ errors) + summation)


def scaled_sum(parts: Sequence[BoundedVector], factor: float, *, roundings: int) -> BoundedVector:
    """Multiply the sum of vectors by a factor.

    Args:
        parts: the vectors.
        factor: taken as exact.
        roundings: of every coordinate at most, beyond those of the summation.

    Returns:
        The product.
    """
    value = factor * torch.stack([one.value for one in parts]).sum(0)
    sizes = sum(one.norm for one in parts)
    error = sum(one.error for one in parts) + gamma(len(parts) + roundings) * sizes
    return BoundedVector(value, round_up(abs(factor) * error))
