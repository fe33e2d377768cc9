"""Smooth functions of a program, applied entry by entry.

With `b1, b2` bounds of s' and s'' anywhere (`activations.smooth`), |s'| within e of x is at most
`min(b1, |s'(x)| + b2 e)`. The first derivative has the norm `max |s'|`, the second tested with P `max |P| b2`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tvgrad.bounds.activations.registry import activation_of
from tvgrad.bounds.activations.smooth import Activation
from tvgrad.bounds.program.balls import (
    Ball,
    add,
    divide,
    inverse_root,
    multiply,
    negated,
    number,
    once,
    scaled,
    smooth,
)
from tvgrad.bounds.program.operation import Enclosure, Operation, Second, UnsupportedProgram, largest
from tvgrad.numerics import double_double as wide
from tvgrad.numerics.double_double import DoubleDouble
from tvgrad.numerics.double_functions import constant, exponential, logarithm, normal_cdf, normal_density
from tvgrad.numerics.floats import round_up

# quotients and sums of values within FUNCTION_ROUNDING = 2^-98 of the exact ones
_QUOTIENT_ROUNDING = 2.0**-95
_DENSITY_SLOPE = 0.241971  # the largest |phi'|: 1/sqrt(2 pi e) = 0.24197072...
_NORMAL_SLOPE = 0.398943  # the largest phi: 1/sqrt(2 pi) = 0.39894228...


def _decay(x: DoubleDouble, factor: float) -> DoubleDouble:
    """e^(-factor |x|), factor 1 or 2."""
    sign = -factor * torch.where(x.hi < 0, -1.0, 1.0)
    return exponential(DoubleDouble(sign * x.hi, sign * x.lo))


def _wide_tanh(x: DoubleDouble) -> DoubleDouble:
    t = _decay(x, 2.0)
    size = wide.divide(wide.add(constant(1.0), DoubleDouble(-t.hi, -t.lo)), wide.add(constant(1.0), t))
    sign = torch.where(x.hi < 0, -1.0, 1.0)
    return DoubleDouble(sign * size.hi, sign * size.lo)


def _wide_sigmoid(x: DoubleDouble) -> DoubleDouble:
    t = _decay(x, 1.0)
    above = torch.where(x.hi < 0, t.hi, 1.0), torch.where(x.hi < 0, t.lo, 0.0)
    return wide.divide(DoubleDouble(*above), wide.add(constant(1.0), t))


def _wide_softplus(x: DoubleDouble) -> DoubleDouble:
    small = logarithm(wide.add(constant(1.0), _decay(x, 1.0)))
    positive = DoubleDouble(torch.where(x.hi < 0, 0.0, x.hi), torch.where(x.hi < 0, 0.0, x.lo))
    return wide.add(positive, small)


def _narrow_normal(x: torch.Tensor) -> torch.Tensor:
    return torch.erfc(-x / math.sqrt(2)) / 2


def _narrow_density(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tanh(x: Ball) -> Ball:
    """Hyperbolic tangent.

    Args:
        x: its arguments.

    Returns:
        The values.
    """
    known = activation_of("tanh")
    return smooth(x, torch.tanh, _wide_tanh, lipschitz=_slope(known, x.hi, x.spread), rounding=_QUOTIENT_ROUNDING)


def sigmoid(x: Ball) -> Ball:
    """Logistic function.

    Args:
        x: its arguments.

    Returns:
        The values.
    """
    known = activation_of("sigmoid")
    return smooth(x, torch.sigmoid, _wide_sigmoid, lipschitz=_slope(known, x.hi, x.spread), rounding=_QUOTIENT_ROUNDING)


def _normal(x: Ball) -> Ball:
    return smooth(x, _narrow_normal, normal_cdf, lipschitz=_NORMAL_SLOPE, rounding=_QUOTIENT_ROUNDING)


def _density(x: Ball) -> Ball:
    # the error of e^(-x^2/2) grows with x^2, and with it the value falls: x^2 e^(-x^2/2) < 1
    return smooth(x, _narrow_density, normal_density, lipschitz=_DENSITY_SLOPE, rounding=_QUOTIENT_ROUNDING)


def _slope(activation: Activation, value: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
    """Upper bounds of |s'| within a distance of a value."""
    here = activation.d1(value).abs() * (1 + 1e-12) + 1e-12
    return round_up(here + activation.b2 * distance).clamp(max=activation.b1)


def _product(x: Ball, factor: Ball) -> Ball:
    return multiply(x, factor)


def _one_minus(x: Ball) -> Ball:
    return add(number(1.0, x), negated(x))


def _logistic_slope(x: Ball) -> Ball:
    s = sigmoid(x)
    return multiply(s, _one_minus(s))


_GELU_SLOPE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_inner(x: Ball) -> tuple[Ball, Ball]:
    """`u = sqrt(2/pi) (x + c x^3)` and u'; the root is taken as the program does, in float64."""
    cubic = scaled(multiply(x, x), _GELU_CUBIC)
    inner = scaled(multiply(x, add(number(1.0, x), cubic)), _GELU_SLOPE)
    return inner, scaled(add(number(1.0, x), scaled(cubic, 3.0)), _GELU_SLOPE)


def _gelu_tanh(x: Ball) -> Ball:
    inner, _ = _gelu_inner(x)
    return multiply(scaled(x, 0.5), add(number(1.0, x), tanh(inner)))


def _gelu_tanh_slope(x: Ball) -> Ball:
    inner, slope = _gelu_inner(x)
    t = tanh(inner)
    bell = multiply(_one_minus(multiply(t, t)), slope)
    return scaled(add(add(number(1.0, x), t), multiply(x, bell)), 0.5)


Function = Callable[[Ball], Ball]


def _softplus(x: Ball) -> Ball:
    # the value's error is relative to 1 + |value|, and log(1 + e^-|x|) is below 1
    return smooth(
        x,
        lambda part: torch.logaddexp(part, torch.zeros_like(part)),
        _wide_softplus,
        lipschitz=1.0,
        rounding=_QUOTIENT_ROUNDING,
    )


FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "tanh": (tanh, lambda x: _one_minus(multiply(tanh(x), tanh(x)))),
    "sigmoid": (sigmoid, _logistic_slope),
    "gelu": (lambda x: multiply(x, _normal(x)), lambda x: add(_normal(x), multiply(x, _density(x)))),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "silu": (
        lambda x: multiply(x, sigmoid(x)),
        lambda x: add(sigmoid(x), multiply(x, _logistic_slope(x))),
    ),
    "softplus": (_softplus, sigmoid),
}
"""Values and first derivatives on balls, by the names of `activation_of`."""


class Elementwise(Operation):
    """One function of each entry.

    Attributes:
        by_row: it is.
    """

    by_row: ClassVar[bool] = True

    @abstractmethod
    def derivative(self, x: Ball) -> Ball:
        """Compute s'.

        Args:
            x: the arguments.

        Returns:
            Its values.
        """

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        return [multiply(p, self.derivative(once(args[0])))]


@dataclass(frozen=True)
class Smooth(Elementwise):
    """An activation with constants.

    Attributes:
        name: in `FUNCTIONS`.
        limit: the function is another one for larger arguments.
        where: the line of the program, for messages.
    """

    name: str
    limit: float = math.inf
    where: str = ""

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        self._check(args[0].hi + args[0].spread)
        return FUNCTIONS[self.name][0](args[0])

    def derivative(self, x: Ball) -> Ball:
        """Compute the derivative."""
        return FUNCTIONS[self.name][1](x)

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        x = args[0]
        reach = x.reach.reshape(-1, *[1] * (x.value.ndim - 1))
        self._check(x.value + x.spread + reach)
        return [largest(_slope(activation_of(self.name), x.value, x.spread + reach))]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        known, x = activation_of(self.name), args[0]
        reach = x.spread + x.reach.reshape(-1, *[1] * (x.value.ndim - 1))
        bend = round_up(known.d2(x.value).abs() * (1 + 1e-12) + 1e-12 + known.b3 * reach).clamp(max=known.b2)
        at_centre = largest(p.sizes * bend)
        return {(0, 0): round_up(at_centre + p.reach * known.b2)}

    def _check(self, largest: torch.Tensor) -> None:
        if math.isfinite(self.limit) and not bool((largest <= self.limit).all()):
            raise UnsupportedProgram(
                f"{self.name} ({self.where}) is replaced by a line beyond {self.limit:g}, where it jumps, and its "
                "arguments may reach that far; give the softplus a larger threshold"
            )


@dataclass(frozen=True)
class Square(Elementwise):
    """x^2."""

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return multiply(args[0], args[0])

    def derivative(self, x: Ball) -> Ball:
        """Compute the derivative."""
        return scaled(x, 2.0)

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [round_up(2 * args[0].largest)]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        return {(0, 0): round_up(2 * p.largest)}


@dataclass(frozen=True)
class InverseRoot(Elementwise):
    """1 / sqrt(x) of positive numbers: `|s'| = x^(-3/2) / 2` and `|s''| = 3 x^(-5/2) / 4` fall: the least x counts."""

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return inverse_root(args[0])

    def derivative(self, x: Ball) -> Ball:
        """Compute the derivative."""
        root = inverse_root(x)
        return scaled(multiply(root, multiply(root, root)), -0.5)

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [round_up(0.5 * self._power(args[0], 1.5))]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        return {(0, 0): round_up(0.75 * p.largest * self._power(args[0], 2.5))}

    def _power(self, x: Enclosure, power: float) -> torch.Tensor:
        """The largest x^-power of the ball; infinite where an x may not be positive."""
        least = -largest(x.spread - x.value) - round_up(x.reach)
        return torch.where(least > 0, least.clamp(min=1e-300) ** -power * (1 + 1e-12), math.inf)


@dataclass(frozen=True)
class Quotient(Operation):
    """A tensor divided by a constant one, broadcast; the denominator must not depend on the parameters."""

    by_row: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return divide(args[0], args[1])

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        return [divide(p, args[1]), None]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        least = -largest(args[1].spread - args[1].value.abs())
        return [torch.where(least > 0, round_up(1 / least), math.inf), 0.0]
