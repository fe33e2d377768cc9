"""Cross-entropy of a program: the mean over the rows of one sample.

With p the softmax of a row and q its target, the derivative of the loss in the row is `p - q`, and the second
`diag p - p p'`. p - q moves by at most half of what the row moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.bounds.program.balls import Ball, add, divide, exponential, multiply, negated, number, smooth, total
from tvgrad.bounds.program.normalisation import largest_curvature, softmax
from tvgrad.bounds.program.operation import Enclosure, Operation, Second, norm
from tvgrad.numerics import double_functions
from tvgrad.numerics.floats import round_up


@dataclass(frozen=True)
class RowsCrossEntropy(Operation):
    """Mean cross-entropy of the rows of a sample with their labels.

    Attributes:
        smoothing: the share of the target that all classes have alike.
    """

    smoothing: float

    def value(self, *args: Ball | torch.Tensor) -> Ball:
        """Compute the result."""
        z, labels = _rows(args)
        peak = Ball.exact(z.hi.amax(-1, keepdim=True), precise=z.precise)
        exps = exponential(add(z, negated(peak)))
        summed = total(exps, [-1])
        # the sum is at least 1 - radius, and its logarithm moves by no more than radius / (1 - radius)
        least = (summed.hi - summed.err).clamp(min=1e-300)
        log = smooth(
            summed, torch.log, double_functions.logarithm, lipschitz=1 / least * (1 + 1e-12), rounding=2.0**-95
        )
        target = self._target(z, labels)
        chosen = total(multiply(add(z, negated(peak)), target), [-1])
        each = add(log, negated(chosen))
        return divide(total(each, [-1]), number(float(each.shape[-1]), each))

    def _target(self, z: Ball, labels: torch.Tensor) -> Ball:
        classes = z.shape[-1]
        hot = Ball.exact(torch.nn.functional.one_hot(labels, classes).double(), precise=z.precise)
        if not self.smoothing:
            return hot
        share = divide(number(self.smoothing, z), number(float(classes), z))
        return add(multiply(hot, add(number(1.0, z), number(-self.smoothing, z))), share)

    def _residual(self, z: Ball, labels: torch.Tensor) -> tuple[Ball, Ball]:
        p = softmax(z)
        return add(p, negated(self._target(z, labels))), p

    def pull(
        self, args: Sequence[Ball | torch.Tensor], out: Ball, p: Ball, wanted: Sequence[bool]
    ) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        z, labels = _rows(args)
        residual, _ = self._residual(z, labels)
        rows = z.shape[1]
        weight = divide(p, number(float(rows), p)).reshape(-1, 1, 1)
        logits = args[0]
        assert isinstance(logits, Ball)  # noqa: S101 - for the types
        return [_back(multiply(residual, weight), logits.shape), None]

    def first(self, args: Sequence[Enclosure | torch.Tensor], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        z, labels, reach = _enclosed(args)
        residual, _ = self._residual(z, labels)
        size = norm(residual.hi.abs() + residual.spread)
        return [round_up(round_up(size + reach / 2) / z.shape[1]), 0.0]

    def second(self, args: Sequence[Enclosure | torch.Tensor], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        z, _, reach = _enclosed(args)
        probabilities = softmax(z)
        curvature = largest_curvature(Enclosure(probabilities.hi, probabilities.spread, reach)).amax(1)
        return {(0, 0): round_up(p.largest * curvature / z.shape[1])}


def _flat(part: torch.Tensor) -> torch.Tensor:
    """(n, 1, C) or (n, 1, C, ...) to rows (n, r, C)."""
    return part.movedim(2, -1).reshape(len(part), -1, part.shape[2])


def _back(rows: Ball, shape: torch.Size) -> Ball:
    moved = [*shape[:2], *shape[3:], shape[2]]
    return rows.map(lambda part: part.reshape(len(part), *moved[1:]).movedim(-1, 2))


def _rows(args: Sequence[Ball | torch.Tensor]) -> tuple[Ball, torch.Tensor]:
    z, labels = args
    if not isinstance(z, Ball) or not isinstance(labels, torch.Tensor):
        raise TypeError("a cross-entropy takes logits and labels")
    return z.map(_flat), labels.reshape(len(labels), -1)


def _enclosed(args: Sequence[Enclosure | torch.Tensor]) -> tuple[Ball, torch.Tensor, torch.Tensor]:
    z, labels = args
    if not isinstance(z, Enclosure) or not isinstance(labels, torch.Tensor):
        raise TypeError("a cross-entropy takes logits and labels")
    return Ball(_flat(z.value), None, _flat(z.spread)), labels.reshape(len(labels), -1), z.reach
