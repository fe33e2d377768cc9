"""What an operation of a program must know: its value, its pullback, and norms of its first two derivatives.

All tensors have the samples along their first axis; of what is the same for all samples, parameters for example, that
axis has length 1. Norms are Euclidean over all other axes, one for each sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.program.balls import Ball, add, total
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import round_up


class UnsupportedProgram(TvgradError):
    """The program has a part whose derivatives are not bounded, or for which no bounds are known.

    Example:
        >>> from tvgrad.bounds import UnsupportedProgram
        >>> issubclass(UnsupportedProgram, Exception)
        True
    """


@dataclass(frozen=True)
class Enclosure:
    """Where a tensor can be for any weights of a ball.

    Attributes:
        value: float64 centres, (n or 1, ...).
        spread: how far each entry of the exact tensor at the centre of the ball can be from `value`.
        reach: how far, in Euclidean norm, the tensor can move over the ball, (n or 1,).
    """

    value: torch.Tensor
    spread: torch.Tensor
    reach: torch.Tensor

    @classmethod
    def of(cls, ball: Ball, reach: torch.Tensor) -> Enclosure:
        """Put a computed tensor and its reach together.

        Args:
            ball: at the centre.
            reach: over the ball of weights.

        Returns:
            The enclosure.
        """
        return cls(ball.hi, ball.spread, reach)

    @cached_property
    def sizes(self) -> torch.Tensor:
        """Upper bounds of the entries in size, at the centre of the ball."""
        return self.value.abs() + self.spread

    @cached_property
    def radius(self) -> torch.Tensor:
        """Upper bounds of the distance between the exact tensor and `value`, (n or 1,)."""
        return round_up(norm(self.spread) + self.reach)

    @cached_property
    def norm(self) -> torch.Tensor:
        """Upper bounds of the norms."""
        return round_up(norm(self.sizes) + self.reach)

    @cached_property
    def largest(self) -> torch.Tensor:
        """Upper bounds of the largest entry."""
        return round_up(largest(self.sizes) + self.reach)

    def spectral(self, *, rows: bool = False) -> torch.Tensor:
        """Upper bounds of the spectral norm of the matrices in the last two axes, the largest of each sample.

        Args:
            rows: all axes but the last count the rows of a single matrix.

        Returns:
            (n or 1,).
        """
        flat = (
            self.value.flatten(1, -2)[:, None]
            if rows
            else self.value.reshape(len(self.value), -1, *self.value.shape[-2:])
        )
        if not bool(torch.isfinite(flat).all()):
            return torch.full((len(flat),), torch.inf, dtype=torch.float64)
        found = spectral_norms(flat, SQUARINGS).amax(1)
        return round_up(found + self.radius)

    def columns(self) -> torch.Tensor:
        """Upper bounds of the norm of a column, where the last axis counts the columns.

        Returns:
            (n or 1,).
        """
        found: torch.Tensor = self.sizes.flatten(1, -2).norm(dim=1)
        return round_up(found.amax(1) + self.reach)

    def rows(self) -> torch.Tensor:
        """Upper bounds of the norms of the rows, the last axis, at any weights of the ball.

        Returns:
            (n or 1, ...) without the last axis.
        """
        found: torch.Tensor = self.sizes.norm(dim=-1)
        return round_up(found + self.reach.reshape(-1, *[1] * (found.ndim - 1)))


SQUARINGS = 3  # of Gram matrices: within 3 % of the norm of a matrix of rank 16, less where singular values differ


def norm(tensor: torch.Tensor) -> torch.Tensor:
    """Norms over all axes but the first.

    Args:
        tensor: (n, ...).

    Returns:
        (n,).
    """
    found: torch.Tensor = tensor.reshape(len(tensor), -1).norm(dim=1)
    return found


def largest(tensor: torch.Tensor) -> torch.Tensor:
    """Largest entries over all axes but the first.

    Args:
        tensor: (n, ...).

    Returns:
        (n,).
    """
    return tensor.reshape(len(tensor), -1).amax(1)


Second = dict[tuple[int, int], torch.Tensor]


class Operation(ABC):
    """A step of a program.

    Attributes:
        linear: whether second derivatives are zero.
        by_row: whether each vector along the last axis of the result depends on those in the same place alone.
    """

    linear: ClassVar[bool] = False
    by_row: ClassVar[bool] = False

    @abstractmethod
    def value(self, *args: Ball) -> Ball:
        """Compute the result.

        Args:
            *args: the arguments.

        Returns:
            The result, enclosed.
        """

    @abstractmethod
    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivative with a vector.

        Args:
            args: the arguments.
            out: the result.
            p: the derivative of the loss in the result.
            wanted: for each argument, whether its part is wanted.

        Returns:
            The derivative of the loss in each argument, None where it is not wanted.
        """

    @abstractmethod
    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norm of the derivative in each argument, anywhere in the enclosures.

        Args:
            args: the arguments.
            out: the result; its reach is not known yet, and is that of the centre.

        Returns:
            (n or 1,) each.
        """

    def second(self, args: Sequence[Enclosure], out: Enclosure, p: Enclosure) -> Second:
        """Bound the second derivative, multiplied with the derivative of the loss.

        Args:
            args: the arguments.
            out: the result.
            p: the derivative of the loss in the result.

        Returns:
            For pairs i <= j of arguments W with `|<p, D^2 f [u_i, v_j]>| <= W ||u_i|| ||v_j||`; zero where not named.
        """
        return {}

    def drift(self, args: Sequence[Ball | torch.Tensor], number: int, shape: torch.Size) -> Ball | None:
        """How the result of one sample moves with an argument that is the same for all samples.

        Args:
            args: of one sample, with a first axis of length 1.
            number: of the argument.
            shape: of the result of one sample.

        Returns:
            D with `dy[t, i] = sum_a D[t, a, i] dw[a, i]`, (tokens, a, i) or (tokens, a, 1), and its rounding.
            i counts the last axis of the result and t all others. None where it is not of this form.
        """
        return None


def reduced(ball: Ball, shape: torch.Size) -> Ball:
    """Sum what was broadcast from a shape.

    Args:
        ball: the derivative of the loss in the broadcast tensor.
        shape: of the tensor before.

    Returns:
        The derivative in the tensor before.
    """
    extra = ball.hi.ndim - len(shape)
    axes = [axis for axis in range(ball.hi.ndim) if axis < extra or (shape[axis - extra] == 1 != ball.shape[axis])]
    return total(ball, axes, keep=True).reshape(*shape)


def ones(tokens: int) -> Ball:
    """The drift with a bias: each channel of every token moves with its own.

    Args:
        tokens: how many.

    Returns:
        D, (tokens, 1, 1).
    """
    return Ball.exact(torch.ones(tokens, 1, 1, dtype=torch.float64), precise=False)


def copies(inner: torch.Size, outer: torch.Size) -> float:
    """The norm of broadcasting, for one sample.

    Args:
        inner: shape of the tensor.
        outer: of what it is broadcast to.

    Returns:
        The root of how often an entry stands in the result.
    """
    return round_up(float((outer[1:].numel() / inner[1:].numel()) ** 0.5))


def added(before: Ball | None, more: Ball) -> Ball:
    """Accumulate derivatives of the loss.

    Args:
        before: what there is, or None.
        more: what is added.

    Returns:
        The sum.
    """
    return more if before is None else add(before, more)
