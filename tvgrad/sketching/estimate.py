"""Estimate: a number told from sketches, and the interval that covers it. The page on sketches derives the interval."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from tvgrad.results import Result

QUANTILE = 1.08 * 1.96
"""Standard deviations to either side: those of 95 % of a normal law, and a twelfth more.

That is 96.6 % in the limit, so that a thousand cases, of which as many as chance wills miss, hardly fall below 95 %.
"""


@dataclass(frozen=True)
class Estimate(Result):
    """A number estimated from sketches.

    Attributes:
        value: the estimate.
        low: lower end of the interval, which covers the number in at least 95 of 100 cases; the page on sketches names
            the vectors of a few equal entries for which it is 93.
        high: upper end.
    """

    value: float
    low: float
    high: float


UNKNOWN = Estimate(math.nan, math.nan, math.nan)
"""What is told of a direction that a vector has not: it is zero, or not finite."""


SMALL, LARGE = 1e-120, 1e120
"""Between these, squares of entries are formed as they are; beyond them vectors are scaled first."""


def magnitude(parts: Iterable[torch.Tensor]) -> float:
    """Tell by what vectors are divided before their entries are squared, so that no square leaves float64.

    Args:
        parts: float64 vectors, to be divided by one number.

    Returns:
        1 where nothing need be done, else the largest absolute value.
    """
    largest = max((float(part.abs().max()) for part in parts if len(part)), default=0.0)
    return largest if 0 < largest < SMALL or LARGE < largest < math.inf else 1.0


def length_within(length: float, variance: float, rounding: float) -> Estimate:
    """Give a length its interval.

    Args:
        length: of the sketch.
        variance: of its square, over the fourth power of the length.
        rounding: bound on what rounding adds, in units of the length.

    Returns:
        The estimate; NaN of a length that is not finite.
    """
    if not math.isfinite(length):
        return UNKNOWN
    spread, slack = QUANTILE * math.sqrt(variance), length * rounding
    return Estimate(length, length / math.sqrt(1 + spread) - slack, length / math.sqrt(1 - spread) + slack)


def cosine_within(cosine: float, variance: float, rounding: float) -> Estimate:
    """Give a cosine its interval.

    Args:
        cosine: of the sketches.
        variance: of its inverse hyperbolic tangent.
        rounding: bound on what rounding adds.

    Returns:
        The estimate.
    """
    spread = QUANTILE * math.sqrt(variance)
    low, high = (
        cosine if spread == 0 or abs(cosine) == 1 else math.tanh(math.atanh(cosine) + side)
        for side in (-spread, spread)
    )
    return Estimate(cosine, max(-1.0, low - rounding), min(1.0, high + rounding))


def norm_of_squares(squares: Iterable[float]) -> float:
    """Take the root of a sum of squares.

    Args:
        squares: none negative.

    Returns:
        The root; an infinity where the sum of finite squares is beyond float64.
    """
    try:
        return math.sqrt(math.fsum(squares))
    except OverflowError:
        return math.inf
