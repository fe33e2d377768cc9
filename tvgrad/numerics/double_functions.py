"""Exponential, logarithm and normal distribution in double-double arithmetic, with bounds on their errors.

Arguments are reduced to a small interval round points of a table, and a Taylor polynomial does the rest; terms below
2^-54 of the result need float64 alone. The tables are computed with 80 decimal digits when they are first used.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

import torch

from tvgrad.numerics.double_double import DoubleDouble, add, divide, multiply, power_of_two, two_product, two_sum

FUNCTION_ROUNDING = 2.0**-98
"""Error at most: relative of `exponential`, absolute of `normal_cdf`, and of `logarithm` relative to 1 + |log|."""

_PARTS = 32  # of a binade, in the table of the exponential
_STEP, _REACH = 16, 14  # points a unit and largest argument in the table of the normal distribution: 1 - Phi < 2^-146
_DEGREE, _WIDE = 17, 9  # of the polynomial there, and the first power whose coefficients are float64 numbers
_DIGITS = 80


def constant(value: float) -> DoubleDouble:
    """A number as double-double.

    Args:
        value: the number.

    Returns:
        Scalars.
    """
    return DoubleDouble(torch.tensor(value, dtype=torch.float64), torch.zeros((), dtype=torch.float64))


def _of_decimals(values: list[Decimal]) -> DoubleDouble:
    high = [float(value) for value in values]
    low = [float(value - Decimal(part)) for value, part in zip(values, high, strict=True)]
    return DoubleDouble(torch.tensor(high, dtype=torch.float64), torch.tensor(low, dtype=torch.float64))


@lru_cache(maxsize=1)
def _exponential_table() -> tuple[list[float], DoubleDouble, DoubleDouble]:
    """log(2)/32 in three parts, 2^(j/32), and 1/n! for n = 0 .. 13."""
    with localcontext() as context:
        context.prec = _DIGITS
        width = Decimal(2).ln() / _PARTS
        scale = Decimal(2) ** 42  # parts of 36 bits: times an index of 16 bits, they are float64 numbers
        first = (width * scale).to_integral_value() / scale
        second = ((width - first) * scale**2).to_integral_value() / scale**2
        powers = _of_decimals([(width * j).exp() for j in range(_PARTS)])
        inverse, term = [], Decimal(1)
        for n in range(14):
            inverse.append(term)
            term /= n + 1
        return [float(first), float(second), float(width - first - second)], powers, _of_decimals(inverse)


def exponential(x: DoubleDouble) -> DoubleDouble:
    """Compute e^x.

    x = m log(2)/32 + r with |r| < 0.011: r is exact up to 2^-105, r^14/14! is below 2^-126, the float64 part from
    r^7/7! on is rounded by less than 2^-105, and eight operations remain.

    Args:
        x: at most 700.

    Returns:
        Within `FUNCTION_ROUNDING` of the exact value, relatively, and of 2^-900, absolutely.
    """
    parts, powers, inverse = _exponential_table()
    clamped = x.hi.clamp(-690, 700)
    low = torch.where(clamped == x.hi, x.lo, 0.0)
    m = torch.round(clamped / (parts[0] + parts[1]))
    r = two_sum(clamped - m * parts[0], low)  # m and the first part have 16 and 37 bits: their product is exact
    for part in parts[1:]:
        r = add(r, two_product(m, torch.full_like(m, -part)))
    tail = torch.zeros_like(r.hi)
    for n in range(13, 6, -1):
        tail = tail * r.hi + inverse.hi[n]
    value = DoubleDouble(tail, torch.zeros_like(tail))
    for n in range(6, -1, -1):
        value = add(multiply(value, r), DoubleDouble(inverse.hi[n], inverse.lo[n]))
    index = m.long() % _PARTS
    value = multiply(value, DoubleDouble(powers.hi[index], powers.lo[index]))
    shift = torch.div(m.long(), _PARTS, rounding_mode="floor")
    factor = power_of_two(shift)
    return DoubleDouble(value.hi * factor, value.lo * factor)


def logarithm(x: DoubleDouble) -> DoubleDouble:
    """Compute log x.

    With y = log x in float64, t = x e^-y - 1 is below 2^-50 (1 + |y|), and y + t - t^2/2 is off by t^3/3.

    Args:
        x: positive.

    Returns:
        Within `FUNCTION_ROUNDING (1 + |log x|)` of the exact value.
    """
    y = x.hi.log()
    inverse = exponential(DoubleDouble(-y, torch.zeros_like(y)))
    t = add(multiply(x, inverse), constant(-1.0))
    return add(DoubleDouble(y, torch.zeros_like(y)), add(t, DoubleDouble(-t.hi * t.hi / 2, torch.zeros_like(y))))


@lru_cache(maxsize=1)
def _normal_table() -> tuple[DoubleDouble, torch.Tensor]:
    """Taylor coefficients of Phi round every c = j/16, powers below 9 in double-double: (points, 9), (points, 9)."""
    with localcontext() as context:
        context.prec = _DIGITS
        root = (2 * _pi()).sqrt()
        wide, narrow = [], []
        for j in range(-_STEP * _REACH, _STEP * _REACH + 1):
            c = Decimal(j) / _STEP
            density = (-c * c / 2).exp() / root
            total, term, n = Decimal(0), abs(c), 1
            while term > Decimal(10) ** -40 or n < 3:
                total, term, n = total + term, term * c * c / (n + 2), n + 2
            half = density * total
            coefficients = [Decimal("0.5") + (half if c > 0 else -half)]
            before, here, factorial = Decimal(0), Decimal(1), Decimal(1)  # Hermite polynomials He_(n-1)
            for n in range(1, _DEGREE + 1):
                factorial *= n
                coefficients.append((-1) ** (n - 1) * here * density / factorial)
                before, here = here, c * here - (n - 1) * before
            wide.append(_of_decimals(coefficients[:_WIDE]))
            narrow.append(torch.tensor([float(one) for one in coefficients[_WIDE:]], dtype=torch.float64))
        return DoubleDouble(torch.stack([w.hi for w in wide]), torch.stack([w.lo for w in wide])), torch.stack(narrow)


def _pi() -> Decimal:
    """Machin's formula."""

    def inverse_tangent(of: int) -> Decimal:
        total, power, n = Decimal(0), Decimal(1) / of, 1
        while power > Decimal(10) ** -(_DIGITS + 4):
            total += power / n * (1 if n % 4 == 1 else -1)
            power, n = power / (of * of), n + 2
        return total

    return 16 * inverse_tangent(5) - 4 * inverse_tangent(239)


def normal_cdf(x: DoubleDouble) -> DoubleDouble:
    """Compute the standard normal distribution function Phi.

    Round c = j/16, |h| <= 1/32, the term of h^n is below 0.44 sqrt((n-1)!) / n! 2^-5n (Cramer's inequality for Hermite
    functions): 2^-118 for the first that is left out, 2^-57 for the first in float64.

    Args:
        x: any numbers; beyond 14, Phi is taken at 14.

    Returns:
        Within `FUNCTION_ROUNDING` of the exact value.
    """
    table, narrow = _normal_table()
    clamped = x.hi.clamp(-_REACH, _REACH)
    low = torch.where(clamped == x.hi, x.lo, 0.0)
    j = torch.round(clamped * _STEP)
    h = two_sum(clamped - j / _STEP, low)
    index = j.long() + _STEP * _REACH
    tail = torch.zeros_like(h.hi)
    for n in range(narrow.shape[1] - 1, -1, -1):
        tail = tail * h.hi + narrow[:, n][index]
    value = DoubleDouble(tail, torch.zeros_like(tail))
    for n in range(_WIDE - 1, -1, -1):
        value = add(multiply(value, h), DoubleDouble(table.hi[:, n][index], table.lo[:, n][index]))
    return value


def normal_density(x: DoubleDouble) -> DoubleDouble:
    """Compute the standard normal density e^(-x^2/2) / sqrt(2 pi).

    Args:
        x: any numbers.

    Returns:
        Within `4 FUNCTION_ROUNDING (1 + x^2)` of the exact value, relatively, and of 2^-900, absolutely.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        root = _of_decimals([(2 * _pi()).sqrt()])
    square = multiply(x, x)
    return divide(exponential(DoubleDouble(-square.hi / 2, -square.lo / 2)), DoubleDouble(root.hi[0], root.lo[0]))
