"""Batch norm with frozen statistics: `y = (x - m) r w + b` with numbers m, r, w, b for each channel, r and m constant.

A channel that is always 0 has a tiny variance, and r is then as large as 1 / sqrt(eps); the trained w that goes with it
is as small. So r w is bounded together, channel by channel: with P positions in a channel, and || ||_c the norm over
those of channel c,

    by x:  max_c |r_c| |w_c|        by w:  max_c |r_c| ||x - m||_c        by b:  sqrt(P)
    tested with p, by x and w:  max_c |r_c| ||p||_c        by x and r:  max_c |w_c| ||p||_c
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tvgrad.bounds.program.balls import Ball, add, multiply, negated, once
from tvgrad.bounds.program.operation import Enclosure, Operation, Second, reduced
from tvgrad.numerics.floats import round_up

_X, _INVERSE, _WEIGHT = 0, 2, 3


@dataclass(frozen=True)
class FrozenNorm(Operation):
    """Of x, m, r, w and perhaps b.

    Attributes:
        axes: of positions, behind that of the channels.
    """

    axes: int

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        x, mean, inverse, weight, *bias = args
        found = multiply(self._normalised(x, mean, inverse), self._as(weight, x))
        return add(found, self._as(bias[0], x)) if bias else found

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        x, mean, inverse, weight, *bias = args
        found: list[Ball | None] = [None] * len(args)
        if wanted[_X]:
            found[_X] = multiply(p, multiply(self._as(inverse, x), self._as(weight, x)))
        if wanted[_WEIGHT]:
            scaled = multiply(p, self._normalised(once(x), mean, inverse))
            found[_WEIGHT] = reduced(scaled, self._as(weight, x).shape).reshape(*weight.shape)
        if bias and wanted[-1]:
            found[-1] = reduced(p, self._as(bias[0], x).shape).reshape(*bias[0].shape)
        return found

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives; those in the constants are not needed."""
        x, mean, inverse, weight, *bias = args
        by_x = inverse.sizes * round_up(weight.sizes + weight.reach[:, None])
        far = (x.value - self._spaced(mean.value, x.value)).abs() * (1 + 1e-15)
        far = far + x.spread + self._spaced(mean.spread, x.value)
        by_weight = inverse.sizes * round_up(self._channels(far).norm(dim=2) + x.reach[:, None])
        positions = out.value[0].numel() / inverse.value.numel()
        by_bias = [round_up(math.sqrt(positions))] if bias else []
        return [round_up(by_x.amax(1)), 0.0, 0.0, round_up(by_weight.amax(1)), *by_bias]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        sizes = round_up(self._channels(p.sizes).norm(dim=2) + p.reach[:, None])
        weight = round_up(args[_WEIGHT].sizes + args[_WEIGHT].reach[:, None])
        # r is rounded: what the derivative by x can be from the computed one
        pairs = {(_X, _INVERSE): weight, (_X, _WEIGHT): args[_INVERSE].sizes}
        return {pair: round_up((factor * sizes).amax(1)) for pair, factor in pairs.items()}

    def _normalised(self, x: Ball, mean: Ball, inverse: Ball) -> Ball:
        return multiply(add(x, negated(self._as(mean, x))), self._as(inverse, x))

    def _as(self, numbers: Ball, x: Ball) -> Ball:
        return numbers.map(lambda part: self._spaced(part, x.hi))

    def _spaced(self, numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """(1, C) as it broadcasts to x."""
        return numbers.reshape(*[1] * (like.ndim - self.axes - 1), -1, *[1] * self.axes)

    def _channels(self, tensor: torch.Tensor) -> torch.Tensor:
        """(n, ...) as (n, C, P)."""
        return tensor.movedim(-self.axes - 1, 1).flatten(2)
