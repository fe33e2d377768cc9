"""Double-double arithmetic on tensors: a number is an unevaluated sum of two float64 numbers, about 32 digits.

The sums and products without error are those of D. E. Knuth and T. J. Dekker (M. Joldes, J.-M. Muller, V. Popescu,
Tight and rigorous error bounds for basic building blocks of double-word arithmetic, ACM TOMS 44, 2017): with u = 2^-53,
a sum is within 3 u^2 (1 + small) of the exact one, relatively, a product within 7 u^2, a quotient within 10 u^2 +
small, a square root within 8 u^2. `ROUNDING`, 16 u^2, covers each of them. Where a product underflows, `UNDERFLOW`
covers what is lost. Numbers above 2^996 overflow to NaN, which every bound then carries.

A product of matrices is split into slices of few bits, so that float64 multiplies and adds the leading ones without any
rounding (K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, Error-free transformations of matrix multiplication, 2012).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma

ROUNDING = 16 * UNIT_ROUNDOFF**2
"""Relative error of one operation at most."""

UNDERFLOW = 2.0**-1000
"""Absolute error of one operation at most that comes from subnormal numbers."""

_SPLITTER = 2.0**27 + 1
_LEAST_EXPONENT = -800  # of a row's largest entry, so that the units of its slices are normal numbers


class DoubleDouble(NamedTuple):
    """Tensors of numbers hi + lo, |lo| at most half a spacing of hi."""

    hi: torch.Tensor
    lo: torch.Tensor


def power_of_two(exponents: torch.Tensor) -> torch.Tensor:
    """2^e without rounding, which torch's own ldexp does not give: it takes the power in float32.

    Args:
        exponents: integers.

    Returns:
        Float64 numbers.
    """
    return torch.from_numpy(np.ldexp(1.0, exponents.numpy()))


def two_sum(a: torch.Tensor, b: torch.Tensor) -> DoubleDouble:
    """Add without error.

    Args:
        a: float64.
        b: float64.

    Returns:
        The rounded sum and what was rounded off.
    """
    s = a + b
    rest = s - a
    return DoubleDouble(s, (a - (s - rest)) + (b - rest))


def _ordered_sum(a: torch.Tensor, b: torch.Tensor) -> DoubleDouble:
    """The same for |a| >= |b|."""
    s = a + b
    return DoubleDouble(s, b - (s - a))


def _split(a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = _SPLITTER * a
    high = scaled - (scaled - a)
    return high, a - high


def two_product(a: torch.Tensor, b: torch.Tensor) -> DoubleDouble:
    """Multiply without error.

    Args:
        a: float64.
        b: float64.

    Returns:
        The rounded product and what was rounded off.
    """
    p = a * b
    (ah, al), (bh, bl) = _split(a), _split(b)
    return DoubleDouble(p, ((ah * bh - p) + ah * bl + al * bh) + al * bl)


def add(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """Add.

    Args:
        x: first summand.
        y: second summand.

    Returns:
        The sum.
    """
    high, low = two_sum(x.hi, y.hi), two_sum(x.lo, y.lo)
    first = _ordered_sum(high.hi, high.lo + low.hi)
    return _ordered_sum(first.hi, first.lo + low.lo)


def multiply(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """Multiply entry by entry.

    Args:
        x: first factor.
        y: second factor.

    Returns:
        The product.
    """
    p, e = two_product(x.hi, y.hi)
    return _ordered_sum(p, e + (x.hi * y.lo + x.lo * y.hi))


def divide(x: DoubleDouble, y: DoubleDouble) -> DoubleDouble:
    """Divide entry by entry.

    Args:
        x: numerator.
        y: denominator.

    Returns:
        The quotient: that of the leading parts, and the remainder's.
    """
    q = x.hi / y.hi
    p, e = two_product(q, y.hi)
    rest = (((x.hi - p) - e) + x.lo) - q * y.lo
    return _ordered_sum(q, rest / y.hi)


def square_root(x: DoubleDouble) -> DoubleDouble:
    """Take roots of positive numbers.

    Args:
        x: the numbers.

    Returns:
        Their roots: that of the leading part, and one step of Newton's method.
    """
    s = x.hi.sqrt()
    p, e = two_product(s, s)
    return _ordered_sum(s, (((x.hi - p) - e) + x.lo) / (2 * s))


def total(x: DoubleDouble) -> tuple[DoubleDouble, int]:
    """Sum along the last axis, in a binary tree.

    Args:
        x: (..., n).

    Returns:
        The sums (...), and the number of additions that a summand went through.
    """
    if x.hi.shape[-1] == 0:
        return DoubleDouble(x.hi.sum(-1), x.lo.sum(-1)), 0
    levels = 0
    while x.hi.shape[-1] > 1:
        size, levels = x.hi.shape[-1], levels + 1
        half = size // 2
        paired = add(*(DoubleDouble(x.hi[..., at], x.lo[..., at]) for at in (slice(half), slice(half, 2 * half))))
        if size % 2:
            rest = (torch.cat([mine, whole[..., -1:]], -1) for mine, whole in zip(paired, x, strict=True))
            paired = DoubleDouble(*rest)
        x = paired
    return DoubleDouble(x.hi[..., 0], x.lo[..., 0]), levels


def _slices(x: DoubleDouble, bits: int, axis: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Three slices of `bits` bits, the rest, and powers of two above the largest entries along an axis."""
    exponents = torch.frexp(x.hi.abs().amax(axis, keepdim=True))[1].clamp(min=_LEAST_EXPONENT)
    slices, rest = [], x.hi
    for number in (1, 2, 3):
        carried = torch.zeros_like(rest)
        if number == 3:
            rest, carried = two_sum(rest, x.lo)
        unit = power_of_two(exponents - number * bits)
        part = torch.round(rest * power_of_two(number * bits - exponents)) * unit
        slices.append(part)
        rest = rest - part
    return [*slices, rest + carried], power_of_two(exponents)


def matrix_product(x: DoubleDouble, y: DoubleDouble) -> tuple[DoubleDouble, torch.Tensor]:
    """Multiply matrices.

    Each matrix is A_1 + A_2 + A_3 + A_4 (module docstring), the slices with `2 bits + log2 k <= 52`, so that A_1 B_1,
    A_1 B_2 + A_2 B_1 and A_1 B_3 + A_2 B_2 + A_3 B_1 are sums of less than 2^53 units, without rounding. All other
    products are below `8 k 2^(-3 bits)` times the largest entries, and float64 rounds them by gamma_(4k) of that;
    adding the four parts rounds by less than 8 u^2 of them.

    Args:
        x: A, (..., m, k).
        y: B, (..., k, n).

    Returns:
        The product (..., m, n), and upper bounds of its rounding error, of a shape that broadcasts with it.
    """
    k = x.hi.shape[-1]
    bits = (52 - math.ceil(math.log2(max(k, 1)))) // 2
    (a1, a2, a3, a4), rows = _slices(x, bits, -1)
    (b1, b2, b3, b4), columns = _slices(y, bits, -2)
    leading = a1 @ b1
    second = a1 @ b2 + a2 @ b1
    third = (a1 @ b3 + a2 @ b2) + a3 @ b1
    rest = a1 @ b4 + a2 @ (b3 + b4) + a3 @ (b2 + b3 + b4) + a4 @ y.hi
    s, first_error = two_sum(leading, second)
    s, second_error = two_sum(s, third)
    product = two_sum(s, (first_error + second_error) + rest)
    share = k * (ROUNDING + 16 * 2.0 ** (-3 * bits) * gamma(4 * k + 16))
    return product, share * rows * columns
