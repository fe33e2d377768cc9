"""Operations that move numbers to other places, copy them, or add them up. All are linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from tvgrad.bounds.program.balls import Ball, divide, matmul, number, total
from tvgrad.bounds.program.operation import Enclosure, Operation, copies, reduced
from tvgrad.numerics.floats import round_up


@dataclass(frozen=True)
class Rearrangement(Operation):
    """Every entry of the result is an entry of the argument or zero, and none stands twice: norms do not grow.

    Attributes:
        move: of the tensor of one sample.
    """

    linear: ClassVar[bool] = True
    move: Callable[[torch.Tensor], torch.Tensor]

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return args[0].map(torch.vmap(self.move))

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        like = torch.zeros(p.shape[0], *args[0].shape[1:], dtype=p.hi.dtype)
        back: Callable[[torch.Tensor], tuple[torch.Tensor]] = torch.func.vjp(torch.vmap(self.move), like)[1]
        return [reduced(p.map(lambda part: back(part)[0]), args[0].shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [1.0]


@dataclass(frozen=True)
class Broadcast(Operation):
    """Copies along axes of length 1.

    Attributes:
        shape: of the result for one sample.
    """

    linear: ClassVar[bool] = True
    shape: tuple[int, ...]

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        x = args[0]
        lined = x.reshape(x.shape[0], *[1] * (len(self.shape) + 1 - x.hi.ndim), *x.shape[1:])
        return lined.map(lambda part: part.expand(x.shape[0], *self.shape))

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        x = args[0]
        lined = torch.Size([x.shape[0], *[1] * (len(self.shape) + 1 - x.hi.ndim), *x.shape[1:]])
        return [reduced(p, lined).reshape(*x.shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [copies(args[0].value.shape, out.value.shape)]


@dataclass(frozen=True)
class Concatenation(Operation):
    """Tensors one after the other.

    Attributes:
        axis: of one sample's tensors.
    """

    linear: ClassVar[bool] = True
    axis: int

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        samples = max(one.shape[0] for one in args)
        wide = [one.map(lambda part: part.expand(samples, *part.shape[1:])) for one in args]
        lows = [one.wide.lo for one in wide] if all(one.precise for one in wide) else []
        at = self.axis + 1
        return Ball(
            torch.cat([one.hi for one in wide], at),
            torch.cat(lows, at) if lows else None,
            torch.cat([one.err for one in wide], at),
        )

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        found, start, at = list[Ball | None](), 0, self.axis + 1
        for one, want in zip(args, wanted, strict=True):
            part = p.map(partial(torch.narrow, dim=at, start=start, length=one.shape[at]))
            found.append(reduced(part, one.shape) if want else None)
            start += one.shape[at]
        return found

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [1.0] * len(args)


@dataclass(frozen=True)
class Total(Operation):
    """The sum or the mean along axes.

    Attributes:
        axes: of one sample's tensor, counted from 0.
        keep: whether they stay, with length 1.
        mean: whether the sum is divided by the number of terms.
    """

    linear: ClassVar[bool] = True
    axes: tuple[int, ...]
    keep: bool
    mean: bool

    def _divisor(self, shape: torch.Size) -> float:
        return float(math.prod(shape[axis + 1] for axis in self.axes)) if self.mean else 1.0

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        x = args[0]
        found = total(x, [axis + 1 for axis in self.axes], keep=self.keep)
        return divide(found, number(self._divisor(x.shape), x)) if self.mean else found

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        shape = args[0].shape
        kept = [1 if axis - 1 in self.axes else size for axis, size in enumerate(shape)][1:]
        each = divide(p, number(self._divisor(shape), p)) if self.mean else p
        spread = each.reshape(p.shape[0], *kept).map(lambda part: part.expand(p.shape[0], *shape[1:]))
        return [reduced(spread, shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        shape = args[0].value.shape
        terms = math.prod(shape[axis + 1] for axis in self.axes)
        return [round_up(math.sqrt(terms) / self._divisor(shape))]


@dataclass(frozen=True)
class Real(Operation):
    """Whole numbers as real ones."""

    linear: ClassVar[bool] = True

    def value(self, *args: Ball | torch.Tensor) -> Ball:
        """Compute the result."""
        (whole,) = args
        if isinstance(whole, Ball):
            return whole
        return Ball.exact(whole.double(), precise=True)

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Whole numbers depend on no parameter."""
        return [None]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Whole numbers do not move."""
        return [0.0]


@dataclass(frozen=True)
class Embedding(Operation):
    """Rows of a matrix that is the same for all samples, by their numbers.

    A step of the matrix moves the result by at most the root of how often a sample takes one row.
    """

    linear: ClassVar[bool] = True
    by_row: ClassVar[bool] = True

    def value(self, *args: Ball | torch.Tensor) -> Ball:
        """Compute the result."""
        table, index = _table(args)
        return table.map(lambda part: part[0][index])

    def pull(
        self, args: Sequence[Ball | torch.Tensor], out: Ball, p: Ball, wanted: Sequence[bool]
    ) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        table, index = _table(args)
        taken = torch.nn.functional.one_hot(index.flatten(), table.shape[1]).double().T
        found = matmul(Ball.exact(taken, precise=p.precise), p.reshape(-1, p.shape[-1]))
        return [found.reshape(*table.shape), None]

    def first(self, args: Sequence[Enclosure | torch.Tensor], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        table, index = args
        assert isinstance(table, Enclosure) and isinstance(index, torch.Tensor)  # noqa: S101, PT018 - for the types
        counts = torch.nn.functional.one_hot(index.flatten(1), table.value.shape[1]).sum(1).amax(1)
        return [round_up(counts.double().sqrt()), 0.0]

    def drift(self, args: Sequence[Ball | torch.Tensor], number: int, shape: torch.Size) -> Ball | None:
        """Every token moves with the row that it takes."""
        table, index = _table(args)
        hot = torch.nn.functional.one_hot(index.flatten(), table.shape[1])
        return Ball.exact(hot.double()[..., None], precise=False)


def _table(args: Sequence[Ball | torch.Tensor]) -> tuple[Ball, torch.Tensor]:
    table, index = args
    if not isinstance(table, Ball) or not isinstance(index, torch.Tensor):
        raise TypeError("an embedding takes a table of numbers and whole numbers")
    return table, index
