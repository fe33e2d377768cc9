"""Softmax and layer normalisation along the last axis.

Softmax of a row: the derivative is `diag p - p p'`, of norm at most `min(1/2, max p)`, and p moves by at most half of
what the row moves; the second derivative, tested with a unit vector, is the third derivative of logsumexp, at most
sqrt(6)/9 and sqrt(2) times the norm of the first (theory of the cross-entropy in `losses.cross_entropy`).

Layer normalisation of a row of d numbers, `y = (x - mean) / s` with `s^2 = var + eps`: the derivative is
`(I - 1 1'/d - y y'/d) / s`, of norm at most 1/s. With a = y / sqrt d, |a| <= 1, and unit vectors without mean the
second is `-(u (a.v) + v (a.u) + a (u.v) - 3 a (a.u)(a.v)) / (s^2 sqrt d)`, a symmetric trilinear form once tested with
a third vector, so that its norm is the largest of `|3t - 3t^3|`, t = a.u: 2/sqrt 3 at t = 1/sqrt 3. Over a ball s is at
least its value at the centre less `reach / sqrt d`: `sqrt d s` is the norm of x without its mean, and of sqrt(d eps).

Normalisation by the root mean square is the same without the mean: `s^2 = ||x||^2 / d + eps`, the derivative is
`(I - y y'/d) / s`, and the second is the same trilinear form for all unit vectors, with the same norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tvgrad.bounds.program.balls import (
    Ball,
    add,
    divide,
    exponential,
    inverse_root,
    multiply,
    negated,
    number,
    once,
    total,
)
from tvgrad.bounds.program.operation import Enclosure, Operation, Second, largest, ones, reduced
from tvgrad.numerics.floats import SUM_MARGIN, round_up

SOFTMAX_THIRD = 0.272166  # sqrt(6)/9 = 0.27216552...
_NORMALISED_SECOND = 1.154701  # 2/sqrt(3) = 1.15470053...


def softmax(x: Ball, mask: torch.Tensor | None = None) -> Ball:
    """Softmax along the last axis.

    Args:
        x: the arguments.
        mask: broadcasts with them; False where an entry is left out.

    Returns:
        The probabilities.
    """
    seen = x.hi if mask is None else torch.where(mask, x.hi, -math.inf)
    shifted = add(x, Ball.exact(-seen.amax(-1, keepdim=True), precise=x.precise))
    if mask is not None:
        shifted = shifted.map(lambda part: torch.where(mask, part, 0.0))
    raised = exponential(shifted)
    if mask is not None:
        raised = raised.map(lambda part: torch.where(mask, part, 0.0))
    return divide(raised, total(raised, [-1], keep=True))


def largest_curvature(probabilities: Enclosure) -> torch.Tensor:
    """Bound `||diag p - p p'||` over a ball, row by row, where p moves by at most half its reach there.

    Args:
        probabilities: p at the centre, with the reach of the arguments.

    Returns:
        (n, ...) without the last axis.
    """
    peak = probabilities.sizes.amax(-1)
    moved = round_up(peak + probabilities.reach.reshape(-1, *[1] * (peak.ndim - 1)) / 2)
    return moved.clamp(max=0.5)


@dataclass(frozen=True)
class Softmax(Operation):
    """Softmax of every row.

    Attributes:
        mask: False where an entry is left out, of a shape that broadcasts; None for none.
    """

    by_row: ClassVar[bool] = True

    mask: torch.Tensor | None = None

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return softmax(args[0], self.mask)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        own = softmax(once(args[0]), self.mask)  # again, because the result came without its rounding
        mean = total(multiply(p, own), [-1], keep=True)
        return [multiply(own, add(p, negated(mean)))]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [largest(self._curvature(args[0], out))]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        third = round_up(math.sqrt(2) * self._curvature(args[0], out)).clamp(max=SOFTMAX_THIRD)
        return {(0, 0): largest(round_up(p.rows() * third))}

    def _curvature(self, x: Enclosure, out: Enclosure) -> torch.Tensor:
        return largest_curvature(Enclosure(out.value, out.spread, x.reach))


@dataclass(frozen=True)
class LayerNorm(Operation):
    """`w y + b` with y the normalised row; w and b may be missing.

    Attributes:
        eps: added to the variance.
        centred: whether the mean is taken off first; without it y is x over its root mean square.
    """

    by_row: ClassVar[bool] = True

    eps: float
    centred: bool = True

    def _normalised(self, x: Ball) -> tuple[Ball, Ball]:
        """Y and 1/s."""
        width = x.shape[-1]
        part = number(float(width), x)
        centred = add(x, negated(divide(total(x, [-1], keep=True), part))) if self.centred else x
        variance = divide(total(multiply(centred, centred), [-1], keep=True), part)
        inverse = inverse_root(add(variance, number(self.eps, x)))
        return multiply(centred, inverse), inverse

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        y, _ = self._normalised(args[0])
        for apply, one in zip((multiply, add), args[1:], strict=False):
            y = apply(y, _row(one, y))
        return y

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        y, inverse = self._normalised(once(args[0]))
        found: list[Ball | None] = [None] * len(args)
        if wanted[0]:
            g = multiply(p, _row(args[1], y)) if len(args) > 1 else p
            part = number(float(y.shape[-1]), y)
            lost = multiply(y, divide(total(multiply(g, y), [-1], keep=True), part))
            if self.centred:
                lost = add(divide(total(g, [-1], keep=True), part), lost)
            rest = add(g, negated(lost))
            found[0] = reduced(multiply(inverse, rest), args[0].shape)
        axes = list(range(p.hi.ndim - 1))
        if len(args) > 1 and wanted[1]:
            found[1] = total(multiply(p, y), axes).reshape(*args[1].shape)
        if len(args) > 2 and wanted[2]:
            found[2] = total(p, axes).reshape(*args[2].shape)
        return found

    def _inverse_deviations(self, x: Enclosure) -> torch.Tensor:
        """Upper bounds of 1/s at any weights of the ball, row by row."""
        width = x.value.shape[-1]
        centred = x.value - x.value.mean(-1, keepdim=True) if self.centred else x.value
        # computing the mean and the norm rounds by less than 1e-12 of the row's norm
        least: torch.Tensor = centred.norm(dim=-1) - round_up(x.spread.norm(dim=-1) + 1e-12 * x.value.norm(dim=-1))
        least = (least.clamp(min=0.0).square() + width * self.eps).sqrt() * (1 - SUM_MARGIN)
        least = least - round_up(x.reach.reshape(-1, *[1] * (least.ndim - 1)))
        floor = math.sqrt(width * self.eps) * (1 - SUM_MARGIN)
        return round_up(math.sqrt(width) / least.clamp(min=floor))

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        inverse = largest(self._inverse_deviations(args[0]))
        found: list[torch.Tensor | float] = [inverse]
        if len(args) > 1:
            found = [round_up(inverse * args[1].largest), self._columns(args[0], inverse)]
        if len(args) > 2:
            found.append(round_up(float(out.value.shape[1:-1].numel() ** 0.5)))
        return found

    def _columns(self, x: Enclosure, inverse: torch.Tensor) -> torch.Tensor:
        """Upper bounds of the norm of a column of y."""
        y, _ = self._normalised(Ball(x.value, None, x.spread))
        return Enclosure(y.hi, y.spread, round_up(inverse * x.reach)).columns()

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        inverse = self._inverse_deviations(args[0])
        size = args[1].largest.reshape(-1, *[1] * (inverse.ndim - 1)) if len(args) > 1 else 1.0
        factor = _NORMALISED_SECOND / math.sqrt(args[0].value.shape[-1])
        rows = round_up(p.rows() * size * inverse.square() * factor)
        found = {(0, 0): largest(rows)}
        if len(args) > 1:
            found[0, 1] = round_up(p.columns() * largest(inverse))
        return found

    def drift(self, args: Sequence[Ball | torch.Tensor], number: int, shape: torch.Size) -> Ball | None:
        """With the weights as the normalised row does, with the biases as they are."""
        x = args[0]
        if number == 1 and isinstance(x, Ball):
            y, _ = self._normalised(x)
            return y.reshape(-1, 1, y.shape[-1])
        return ones(shape[:-1].numel()) if number == 2 else None


def _row(one: Ball, like: Ball) -> Ball:
    """A parameter along the last axis."""
    return one.reshape(*[1] * (like.hi.ndim - 1), one.shape[-1])
