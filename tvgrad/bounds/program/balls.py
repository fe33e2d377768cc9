"""Balls: tensors of numbers together with a bound, entry by entry, on how far each is from the exact one.

A ball's centre is float64, or double-double where 32 digits are asked for. Every function encloses: if the exact
arguments lie in the balls given, the exact result lies in the ball returned. The errors follow the rules

    a + b:  e_a + e_b           a b:  |a| e_b + |b| e_a + e_a e_b           a / b:  (e_a + |a/b| e_b) / (|b| - e_b)
    A B:    |A| E_B + E_A (|B| + E_B)           s(x):  sup |s'| e_x

and the rounding of the centre, as `double_double` and float64 bound it. They are computed in float64 from nonnegative
numbers, and rounded up by 1e-9 and `UNDERFLOW` each time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tvgrad.numerics import double_double as wide
from tvgrad.numerics import double_functions
from tvgrad.numerics.double_double import ROUNDING, UNDERFLOW, DoubleDouble
from tvgrad.numerics.double_functions import FUNCTION_ROUNDING
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up

Narrow = Callable[[torch.Tensor], torch.Tensor]
Wide = Callable[[DoubleDouble], DoubleDouble]

LIBRARY = 64 * UNIT_ROUNDOFF
"""Relative error of PyTorch's exponentials and error functions in float64 at most; they are within a few units."""


@dataclass(frozen=True)
class Ball:
    """Centres and radii.

    Attributes:
        hi: leading parts of the centres, float64.
        lo: trailing parts, or None where the centres are float64.
        err: radii, of the same shape.
    """

    hi: torch.Tensor
    lo: torch.Tensor | None
    err: torch.Tensor

    @classmethod
    def exact(cls, value: torch.Tensor, *, precise: bool) -> Ball:
        """Numbers without error.

        Args:
            value: float64.
            precise: whether centres are double-double.

        Returns:
            The ball.
        """
        zeros = torch.zeros_like(value)
        return cls(value, zeros if precise else None, zeros)

    @property
    def shape(self) -> torch.Size:
        """Of the tensors."""
        return self.hi.shape

    @property
    def precise(self) -> bool:
        """Whether the centres are double-double."""
        return self.lo is not None

    @property
    def wide(self) -> DoubleDouble:
        """The centres as double-double."""
        return DoubleDouble(self.hi, torch.zeros_like(self.hi) if self.lo is None else self.lo)

    @property
    def spread(self) -> torch.Tensor:
        """The radii round the leading parts."""
        return self.err if self.lo is None else round_up(self.err + self.lo.abs())

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Ball:
        """Move numbers to other places.

        Args:
            move: what to do with the tensors, without arithmetic.

        Returns:
            The ball.
        """
        return Ball(move(self.hi), None if self.lo is None else move(self.lo), move(self.err))

    def reshape(self, *shape: int) -> Ball:
        """The same numbers in another shape.

        Args:
            *shape: the shape.

        Returns:
            The ball.
        """
        return self.map(lambda part: part.reshape(shape))


class Vectors(Ball, ABC):
    """Vectors along the first axis with one radius each: the functions below leave the arithmetic to them."""

    @abstractmethod
    def add(self, other: Ball) -> Vectors:
        """Add other vectors."""

    @abstractmethod
    def negated(self) -> Vectors:
        """Change signs."""

    @abstractmethod
    def multiply(self, other: Ball) -> Vectors:
        """Multiply entry by entry with what is the same for all, or has a part for each."""

    @abstractmethod
    def divide(self, other: Ball) -> Vectors:
        """Divide entry by entry."""

    @abstractmethod
    def total(self, axes: Sequence[int], *, keep: bool) -> Vectors:
        """Sum along axes that are not the first."""

    @abstractmethod
    def matmul(self, other: Ball, *, left: bool) -> Vectors:
        """Multiply with matrices, which may stand on the left."""


def once(ball: Ball) -> Ball:
    """What is the same for all samples, one time.

    Args:
        ball: perhaps expanded along the first axis.

    Returns:
        A ball with a first axis of length 1 if nothing else is in it.
    """
    parts = [ball.hi, ball.err] if ball.lo is None else [ball.hi, ball.lo, ball.err]
    same = all(part.stride(0) == 0 for part in parts)
    return ball.map(lambda part: part[:1]) if same else ball


def _made(value: DoubleDouble | torch.Tensor, error: torch.Tensor) -> Ball:
    error = round_up(error) + UNDERFLOW
    return Ball(value.hi, value.lo, error) if isinstance(value, DoubleDouble) else Ball(value, None, error)


def add(a: Ball, b: Ball) -> Ball:
    """Add.

    Args:
        a: first summand.
        b: second summand.

    Returns:
        The sum.
    """
    if isinstance(a, Vectors):
        return a.add(b)
    error = a.err + b.err
    if a.precise and b.precise:
        total = wide.add(a.wide, b.wide)
        return _made(total, error + ROUNDING * total.hi.abs())
    value = a.hi + b.hi
    return _made(value, error + UNIT_ROUNDOFF * value.abs())


def negated(a: Ball) -> Ball:
    """Change signs, which rounds nothing.

    Args:
        a: the numbers.

    Returns:
        Their negatives.
    """
    if isinstance(a, Vectors):
        return a.negated()
    return Ball(-a.hi, None if a.lo is None else -a.lo, a.err)


def multiply(a: Ball, b: Ball) -> Ball:
    """Multiply entry by entry.

    Args:
        a: first factor.
        b: second factor.

    Returns:
        The product.
    """
    if isinstance(a, Vectors):
        return a.multiply(b)
    if isinstance(b, Vectors):
        return b.multiply(a)
    error = a.hi.abs() * (1 + 2 * UNIT_ROUNDOFF) * b.err + (b.hi.abs() * (1 + 2 * UNIT_ROUNDOFF) + b.err) * a.err
    if a.precise and b.precise:
        product = wide.multiply(a.wide, b.wide)
        return _made(product, error + ROUNDING * product.hi.abs())
    value = a.hi * b.hi
    return _made(value, error + UNIT_ROUNDOFF * value.abs())


def number(value: float, like: Ball) -> Ball:
    """A float64 number, taken as exact.

    Args:
        value: the number.
        like: of which precision.

    Returns:
        The scalar.
    """
    return Ball.exact(torch.tensor(value, dtype=torch.float64), precise=like.precise)


def scaled(a: Ball, factor: float) -> Ball:
    """Multiply with a number that is taken as exact.

    Args:
        a: the numbers.
        factor: float64.

    Returns:
        The products.
    """
    return a if factor == 1 else multiply(a, number(factor, a))


def divide(a: Ball, b: Ball) -> Ball:
    """Divide entry by entry; infinite radii where the denominator may be zero.

    Args:
        a: numerator.
        b: denominator.

    Returns:
        The quotient.
    """
    if isinstance(a, Vectors):
        return a.divide(b)
    quotient: DoubleDouble | torch.Tensor
    if a.precise and b.precise:
        quotient, unit = wide.divide(a.wide, b.wide), ROUNDING
        size = quotient.hi.abs()
    else:
        quotient, unit = a.hi / b.hi, UNIT_ROUNDOFF
        size = quotient.abs()
    least = b.hi.abs() * (1 - 4 * UNIT_ROUNDOFF) - b.err
    inherited = torch.where(least > 0, (a.err + size * (1 + 4 * UNIT_ROUNDOFF) * b.err) / least, math.inf)
    return _made(quotient, round_up(inherited) + unit * size)


def inverse_root(a: Ball) -> Ball:
    """1 / sqrt(a); infinite radii where a may be zero.

    Args:
        a: positive numbers.

    Returns:
        The inverse roots.
    """
    least = a.hi * (1 - 4 * UNIT_ROUNDOFF) - a.err
    inherited = torch.where(least > 0, a.err / (2 * least * least.abs().sqrt()), math.inf)
    if a.precise:
        one = DoubleDouble(torch.ones_like(a.hi), torch.zeros_like(a.hi))
        value = wide.divide(one, wide.square_root(a.wide))
        return _made(value, round_up(inherited) + 2 * ROUNDING * value.hi.abs())
    root = 1 / a.hi.sqrt()
    return _made(root, round_up(inherited) + 4 * UNIT_ROUNDOFF * root.abs())


def total(a: Ball, axes: Sequence[int], *, keep: bool = False) -> Ball:
    """Sum along axes.

    Args:
        a: the numbers.
        axes: which.
        keep: whether the axes stay, with length 1.

    Returns:
        The sums.
    """
    if isinstance(a, Vectors):
        return a.total(axes, keep=keep)
    axes = sorted(axis % a.hi.ndim for axis in axes)
    if not axes:
        return a
    rest = [axis for axis in range(a.hi.ndim) if axis not in axes]
    flat = a.map(lambda part: part.permute(*rest, *axes).flatten(len(rest)))
    shape = [1 if axis in axes else size for axis, size in enumerate(a.shape)] if keep else [a.shape[i] for i in rest]
    error, size = flat.err.sum(-1), flat.hi.abs().sum(-1)
    value: DoubleDouble | torch.Tensor
    if a.precise:
        value, levels = wide.total(flat.wide)
        error = error + (levels + 1) * ROUNDING * size
    else:
        value = flat.hi.sum(-1)
        error = error + gamma(flat.shape[-1]) * size
    return _made(value, error).reshape(*shape)


def matmul(a: Ball, b: Ball) -> Ball:
    """Multiply matrices.

    Args:
        a: (..., m, k).
        b: (..., k, n).

    Returns:
        The product (..., m, n).
    """
    if isinstance(a, Vectors):
        return a.matmul(b, left=False)
    if isinstance(b, Vectors):
        return b.matmul(a, left=True)
    size, other = a.hi.abs() * (1 + 2 * UNIT_ROUNDOFF), b.hi.abs() * (1 + 2 * UNIT_ROUNDOFF)
    if a.precise and b.precise:
        product, rounding = wide.matrix_product(a.wide, b.wide)
        return _made(product, size @ b.err + a.err @ (other + b.err) + rounding)
    return _made(a.hi @ b.hi, size @ (b.err + gamma(a.shape[-1] + 2) * other) + a.err @ (other + b.err))


def exponential(a: Ball) -> Ball:
    """Compute e^a.

    Args:
        a: at most 700.

    Returns:
        The values.
    """
    value = double_functions.exponential(a.wide) if a.precise else a.hi.exp()
    size, unit = (value.hi, FUNCTION_ROUNDING) if isinstance(value, DoubleDouble) else (value, LIBRARY)
    return _made(value, size * (1 + LIBRARY) * torch.expm1(a.err) * (1 + LIBRARY) + unit * size + 2.0**-900)


def smooth(a: Ball, narrow: Narrow, precise: Wide, *, lipschitz: torch.Tensor | float, rounding: float) -> Ball:
    """Apply a function entry by entry.

    Args:
        a: its arguments.
        narrow: the function on float64 tensors, within `LIBRARY` of 1 and of its value.
        precise: in double-double arithmetic.
        lipschitz: a bound of its derivative over the balls.
        rounding: of the double-double values at most, relative to 1 and to their sizes.

    Returns:
        The values.
    """
    value: DoubleDouble | torch.Tensor = precise(a.wide) if a.precise else narrow(a.hi)
    size, unit = (value.hi, rounding) if isinstance(value, DoubleDouble) else (value, LIBRARY)
    return _made(value, lipschitz * a.err + unit * (1 + size.abs()))
