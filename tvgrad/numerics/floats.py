"""Facts of floating-point formats, and rounding a bound outward: the one place for each of them.

u is the unit roundoff of a format, half the spacing of its numbers at 1. The relative error of n roundings in a row is
at most `gamma_n = n u / (1 - n u)` (N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2002, Lemma 3.1).
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Number = TypeVar("Number", float, np.ndarray, torch.Tensor)

UNIT_ROUNDOFF = 2.0**-53
"""The unit roundoff of float64."""

TINY = 1e-150
"""Over what underflow can take from a norm or a sum of products of up to a million numbers in float64."""

SUM_MARGIN = 1e-9
"""Over gamma_n of four million terms in float64, a handful of further operations included."""

FEW_OPERATIONS_MARGIN = 1e-12
"""Over gamma_n of nine thousand operations in float64: for sums and products of a few numbers."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the spacing of a format at 1: 2^-53, 2^-24, 2^-8, 2^-11 for float64, float32, bfloat16, float16.

    Args:
        dtype: a floating-point dtype.

    Returns:
        The unit roundoff u.
    """
    return torch.finfo(dtype).eps / 2


def smallest_subnormal(dtype: torch.dtype) -> float:
    """The smallest positive number of a format.

    Args:
        dtype: a floating-point dtype.

    Returns:
        omega.
    """
    format_ = torch.finfo(dtype)
    return format_.smallest_normal * format_.eps


def ulp(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Spacing of a format's numbers just above |y|.

    Args:
        values: float64 tensor of numbers y of the format.
        dtype: the format whose spacing is meant.

    Returns:
        Float64 tensor of spacings; at 0 the smallest subnormal.
    """
    format_ = torch.finfo(dtype)
    spacing, smallest = int(np.log2(format_.eps)), int(np.log2(format_.smallest_normal))
    # frexp writes |y| = m 2^e with m in [1/2, 1), so that |y| lies in the binade of spacing 2^(e - 1) eps.
    magnitudes = values.abs().numpy()
    exponents = np.where(magnitudes == 0, smallest + 1, np.frexp(magnitudes)[1])
    # numpy's ldexp is exact down to the subnormals; torch's goes through a float32 power.
    return torch.from_numpy(np.ldexp(1.0, np.maximum(exponents, smallest + 1) - 1 + spacing))


def gamma(operations: int) -> float:
    """Bound the relative error of so many roundings in float64.

    Args:
        operations: n.

    Returns:
        `gamma_n = n u / (1 - n u)`, rounded up.
    """
    return operations * UNIT_ROUNDOFF / (1 - operations * UNIT_ROUNDOFF) * (1 + 8 * UNIT_ROUNDOFF)


def round_up(value: Number, margin: float = SUM_MARGIN) -> Number:
    """Round an upper bound outward.

    Args:
        value: nonnegative numbers, computed without cancellation.
        margin: their relative rounding error at most; by default that of any norm or sum of up to four million terms.

    Returns:
        Numbers at least `value (1 + margin)`, up to the rounding of this product.
    """
    return value * (1 + margin)


def upper_norm(rows: torch.Tensor, margin: float = SUM_MARGIN) -> torch.Tensor:
    """Bound Euclidean norms of rows, those included whose squares underflow.

    A square below 2^-1022 is off by less than that, the sum of d of them by d times as much, the root by at most
    `sqrt(d) 2^-511`, 1.5e-154 for each of the d numbers at most.

    Args:
        rows: (n, d), float64.
        margin: the relative rounding error of a norm at most.

    Returns:
        Upper bounds, (n,); zero for zeros.
    """
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=1)
    positive = norms != 0
    if not bool(positive.all()):  # else, as mostly, no row needs to be looked at again
        positive = (rows != 0).any(dim=1)
    return round_up(norms, margin) + TINY * positive


def own_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy numbers to float64 on the CPU, in memory of their own: what happens to the tensor later is not seen.

    Args:
        tensor: of any floating-point or integer dtype.

    Returns:
        A float64 tensor without gradient that shares nothing with it.
    """
    return tensor.detach().to(device="cpu", dtype=torch.float64, copy=True)
