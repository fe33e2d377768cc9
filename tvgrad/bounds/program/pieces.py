"""Functions of lines that meet at kinks, applied entry by entry: ReLU, ReLU6, leaky ReLU, hardtanh, clamp.

Away from its kinks such a function is a line: its second derivative is 0, and a ball in which no argument can reach a
kink is as good as one of a smooth function. Where an argument can reach one the derivative jumps, and the bound is
infinite. So the tube, which is some 1e-14 wide, has certificates of networks of ReLUs, and what has to hold round
theta_0 as far as a training goes has none.

The derivative at a kink itself is PyTorch's, a convention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tvgrad.bounds.program.balls import Ball, add, number, scaled
from tvgrad.bounds.program.elementwise import Elementwise
from tvgrad.bounds.program.operation import Enclosure, Second, largest
from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up


@dataclass(frozen=True)
class Kink:
    """Where two lines meet.

    Attributes:
        at: the argument.
        upper: whether the derivative at the kink itself is that of the line above it.
    """

    at: float
    upper: bool = False


@dataclass(frozen=True)
class Pieces(Elementwise):
    """Lines from left to right, with kinks between them.

    Attributes:
        name: of the function, for messages.
        lines: (slope, value at 0) of each.
        kinks: one fewer, ascending.
        where: the line of the program, for messages.
    """

    name: str
    lines: tuple[tuple[float, float], ...]
    kinks: tuple[Kink, ...]
    where: str = ""

    @cached_property
    def steepest(self) -> float:
        """The largest slope in size."""
        return max(abs(slope) for slope, _ in self.lines)

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        (x,) = args
        found = _chosen([self._line(x, *line) for line in self.lines], self._piece(x))
        # an argument that may lie on another line as well: none is steeper
        err = torch.maximum(found.err, round_up(self.steepest * x.err))
        return Ball(torch.where(x.hi.isnan(), x.hi, found.hi), found.lo, err)

    def derivative(self, x: Ball) -> Ball:
        """Compute the derivative; where an argument may lie on two lines, the slopes of all are enclosed."""
        slopes = torch.tensor([slope for slope, _ in self.lines], dtype=torch.float64)
        found = slopes[self._piece(x)]
        spread = float(slopes.max() - slopes.min())
        zero = torch.zeros((), dtype=torch.float64)
        err = torch.where((x.err > 0) & self.touched(x.hi, x.spread), spread, zero)
        return Ball(found, torch.zeros_like(found) if x.precise else None, err)

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [self.steepest]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Zero, or infinite for samples of which an argument may reach a kink."""
        return {(0, 0): torch.where(self._touched(args[0]), math.inf, 0.0)}

    def at_kink(self, x: Enclosure) -> bool:
        """Tell whether an argument may reach a kink, and is known well enough to say so.

        Args:
            x: the arguments.

        Returns:
            Whether one may.
        """
        return bool((self._touched(x) & torch.isfinite(x.reach)).any())

    def _touched(self, x: Enclosure) -> torch.Tensor:
        """Of each sample, whether an argument may reach a kink."""
        reach = x.spread + x.reach.reshape(-1, *[1] * (x.value.ndim - 1))
        return largest(self.touched(x.value, reach).to(torch.uint8)) > 0

    def touched(self, value: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
        """Find arguments that may reach a kink.

        Args:
            value: float64 centres.
            reach: how far each may be from them; NaN is any distance.

        Returns:
            Whether each may.
        """
        found = torch.zeros_like(value, dtype=torch.bool)
        for kink in self.kinks:
            found = found | ~((value - kink.at).abs() * (1 - 4 * UNIT_ROUNDOFF) > reach)
        return found

    def _line(self, x: Ball, slope: float, offset: float) -> Ball:
        if not slope:
            return Ball.exact(torch.full_like(x.hi, offset), precise=x.precise)
        return scaled(x, slope) if not offset else add(scaled(x, slope), number(offset, x))

    def _piece(self, x: Ball) -> torch.Tensor:
        """The number of the line of each argument."""
        found = torch.zeros_like(x.hi, dtype=torch.long)
        for kink in self.kinks:
            # exact near the kink, and of the right sign elsewhere
            above = (x.hi - kink.at) + (0.0 if x.lo is None else x.lo)
            found = found + ((above >= 0) if kink.upper else (above > 0))
        return found


def _chosen(parts: Sequence[Ball], piece: torch.Tensor) -> Ball:
    """Entry by entry one of several balls."""

    def select(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(tensors)).gather(0, piece[None])[0]

    lo = None
    if parts[0].lo is not None:
        lo = select([torch.zeros_like(one.hi) if one.lo is None else one.lo for one in parts])
    return Ball(select([one.hi for one in parts]), lo, select([one.err for one in parts]))
