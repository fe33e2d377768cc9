"""Sums, products and matrix products of a program.

A product A B has the derivative `dA B + A dB`, of norm `||B||_2` in A and `||A||_2` in B, and the second derivative
`dA dB' + dA' dB`; with P the derivative of the loss, `<P, dA dB> <= ||P||_2 ||dA||_F ||dB||_F`. Entry by entry the
largest entries stand in the place of the spectral norms. Linear layers are products with a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from tvgrad.bounds.program.balls import Ball, add, matmul, multiply, scaled, total
from tvgrad.bounds.program.operation import Enclosure, Operation, Second, copies, ones, reduced
from tvgrad.numerics.floats import round_up


def _aligned(a: Ball, ndim: int) -> Ball:
    """Axes of length 1 after the samples, as broadcasting puts them."""
    return a.reshape(a.shape[0], *[1] * (ndim - a.hi.ndim), *a.shape[1:])


@dataclass(frozen=True)
class Sum(Operation):
    """`a + factor b`, broadcast.

    Attributes:
        factor: of the second.
    """

    by_row: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    factor: float = 1.0

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        ndim = max(one.hi.ndim for one in args)
        a, b = (_aligned(one, ndim) for one in args)
        return add(a, scaled(b, self.factor))

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        first = reduced(p, _aligned(args[0], p.hi.ndim).shape).reshape(*args[0].shape) if wanted[0] else None
        if not wanted[1]:
            return [first, None]
        second = reduced(scaled(p, self.factor), _aligned(args[1], p.hi.ndim).shape)
        return [first, second.reshape(*args[1].shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        gains = [copies(one.value.shape, out.value.shape) for one in args]
        return [gains[0], round_up(abs(self.factor) * gains[1])]

    def drift(self, args: Sequence[Ball | torch.Tensor], number: int, shape: torch.Size) -> Ball | None:
        """Every number of the result moves with its own, or with that of its channel."""
        given, factor = args[number].shape[1:], self.factor if number else 1.0
        tokens = shape[:-1].numel()
        if given == shape:
            return Ball.exact(factor * torch.eye(tokens, dtype=torch.float64)[..., None], precise=False)
        if shape and given.numel() == given[-1:].numel() == shape[-1]:
            return Ball.exact(torch.full((tokens, 1, 1), factor, dtype=torch.float64), precise=False)
        return None


@dataclass(frozen=True)
class Multiple(Operation):
    """A number times a tensor.

    Attributes:
        factor: the number.
    """

    by_row: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    factor: float

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return scaled(args[0], self.factor)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        return [scaled(p, self.factor)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [abs(self.factor)]


@dataclass(frozen=True)
class Product(Operation):
    """Entry by entry, broadcast."""

    by_row: ClassVar[bool] = True

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        ndim = max(one.hi.ndim for one in args)
        a, b = (_aligned(one, ndim) for one in args)
        return multiply(a, b)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        a, b = (_aligned(one, p.hi.ndim) for one in args)
        return [
            reduced(multiply(p, other), mine.shape).reshape(*arg.shape) if want else None
            for mine, other, arg, want in zip((a, b), (b, a), args, wanted, strict=True)
        ]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        gains = [copies(one.value.shape, out.value.shape) for one in args]
        return [round_up(gains[0] * args[1].largest), round_up(gains[1] * args[0].largest)]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        gain = copies(args[0].value.shape, out.value.shape) * copies(args[1].value.shape, out.value.shape)
        return {(0, 1): round_up(gain * p.largest)}


@dataclass(frozen=True)
class MatrixProduct(Operation):
    """A B, matrix by matrix.

    Attributes:
        transposed: whether the second factor is transposed first.
    """

    transposed: bool = False

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        a, b = args
        return matmul(a, b.map(_transpose) if self.transposed else b)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        a, b = args
        first = reduced(matmul(p, b if self.transposed else b.map(_transpose)), a.shape) if wanted[0] else None
        if not wanted[1]:
            return [first, None]
        second = matmul(p.map(_transpose), a) if self.transposed else matmul(a.map(_transpose), p)
        return [first, reduced(second, b.shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [args[1].spectral(), args[0].spectral()]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        return {(0, 1): p.spectral()}


def _transpose(part: torch.Tensor) -> torch.Tensor:
    return part.mT


@dataclass(frozen=True)
class Linear(Operation):
    """`x W' + b` for vectors along the last axis; W and b are the same for all samples.

    A step of b is added to each of r rows: its norm grows by sqrt r.
    """

    by_row: ClassVar[bool] = True

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        x, weight = args[:2]
        flat = x.reshape(-1, x.shape[-1])
        out = matmul(flat, weight.map(lambda part: part[0].mT))
        if len(args) > 2:
            out = add(out, args[2])
        return out.reshape(*x.shape[:-1], weight.shape[1])

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        x, weight = args[:2]
        found: list[Ball | None] = [None] * len(args)
        if wanted[0]:
            found[0] = reduced(matmul(p, weight.map(lambda part: part[0])), x.shape)
        if not any(wanted[1:]):
            return found
        flat = p.reshape(-1, p.shape[-1])
        if wanted[1]:
            found[1] = matmul(flat.map(_transpose), x.reshape(-1, x.shape[-1])).reshape(*weight.shape)
        if len(args) > 2 and wanted[2]:
            found[2] = total(flat, [0], keep=True)
        return found

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        rows = round_up(float(out.value.shape[1:-1].numel() ** 0.5))
        found: list[torch.Tensor | float] = [args[1].spectral(), args[0].spectral(rows=True), rows]
        return found[: len(args)]

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivatives, tested with p."""
        return {(0, 1): p.spectral(rows=True)}

    def drift(self, args: Sequence[Ball | torch.Tensor], number: int, shape: torch.Size) -> Ball | None:
        """With the weights as the argument says, with the biases as they are."""
        x = args[0]
        if number == 1 and isinstance(x, Ball):
            return Ball.exact(x.hi[0].reshape(-1, x.shape[-1])[..., None], precise=False)
        return ones(shape[:-1].numel()) if number == 2 else None
