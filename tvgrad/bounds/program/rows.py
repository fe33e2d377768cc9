"""Rows: many vectors at once, each with one radius, for Jacobians that are pulled back row by row.

A ball keeps a radius for each entry, which costs twice the arithmetic again. Where all that matters is the Euclidean
norm of a row's error, one number is enough. With e the radius of a row p, u the unit roundoff of float64, and b balls
that are the same for all rows or have a part for each:

    p + q:  e_p + e_q + u ||p + q||        p b:  e_p max(|b| + e_b) + ||p|| max e_b + u ||p b||
    p B:    e_p ||B + E_B||_F + ||p|| (||E_B||_F + gamma_(k+2) ||B||_F)
    p / b:  (e_p + ||p / b|| max e_b) / (min |b| - max e_b) + u ||p / b||
    sum of k entries:  sqrt(k) (e_p + gamma_k ||p||)

For B = diag(B_1, B_2, ...) the largest of their norms stands in the place of the norm. Copies of all entries c times
over multiply e by sqrt(c). Tested in `tests/bounds/program/test_rows.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from tvgrad.bounds.program.balls import Ball, Vectors
from tvgrad.numerics.double_double import UNDERFLOW
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(len(tensor), -1).amax(1)


@dataclass(frozen=True)
class Rows(Vectors):
    """Vectors along the first axis.

    Attributes:
        hi: (rows, ...), float64.
        lo: None.
        err: (rows,), Euclidean radii.
    """

    @cached_property
    def size(self) -> torch.Tensor:
        """Upper bounds of the norms of the vectors as computed, (rows,)."""
        found: torch.Tensor = torch.linalg.vector_norm(self.hi.reshape(len(self.hi), -1), dim=1)
        return round_up(found)

    @classmethod
    def of(cls, value: torch.Tensor) -> Rows:
        """Vectors without error.

        Args:
            value: (rows, ...), float64.

        Returns:
            The rows.
        """
        return cls(value, None, torch.zeros(len(value), dtype=torch.float64))

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Rows:
        """Move numbers to other places; where there are more afterwards, all are copied alike or zeros were added.

        Args:
            move: what to do with the tensor, without arithmetic; the first axis stays.

        Returns:
            The rows.
        """
        moved = move(self.hi)
        grown = round_up(math.sqrt(max(1.0, moved.numel() / max(self.hi.numel(), 1))))
        return Rows(moved, None, self.err * grown)

    def reshape(self, *shape: int) -> Rows:
        """The same numbers in another shape.

        Args:
            *shape: the shape.

        Returns:
            The rows.

        Raises:
            ValueError: the rows would be mixed.
        """
        moved = self.hi.reshape(shape)
        if len(moved) != len(self.hi):
            raise ValueError(f"rows of shape {tuple(self.hi.shape)} keep their first axis, which {shape} does not")
        return Rows(moved, None, self.err)

    @staticmethod
    def _made(value: torch.Tensor, error: torch.Tensor, unit: float = 0.0) -> Rows:
        """Numbers whose last operation rounded by a unit of their own size."""
        made = Rows(value, None, error)
        made.err.copy_(round_up(error + unit * made.size) + UNDERFLOW * value[0].numel())
        return made

    def add(self, other: Ball) -> Rows:
        """Add other rows.

        Args:
            other: rows.

        Returns:
            The sums.

        Raises:
            TypeError: the other vectors are no rows.
        """
        if not isinstance(other, Rows):
            raise TypeError("only rows are added to rows")
        return self._made(self.hi + other.hi, self.err + other.err, UNIT_ROUNDOFF)

    def negated(self) -> Rows:
        """Change signs.

        Returns:
            The negatives.
        """
        return Rows(-self.hi, None, self.err)

    def multiply(self, other: Ball) -> Rows:
        """Multiply entry by entry.

        Args:
            other: what is the same for all rows, or has a part for each.

        Returns:
            The products.
        """
        value = self.hi * other.hi
        copied = math.sqrt(max(1.0, value.numel() / self.hi.numel()))
        most, far = _largest(self._lined(other.hi.abs())), _largest(self._lined(other.spread))
        return self._made(value, copied * (self.err * (most + far) + self.size * far), UNIT_ROUNDOFF)

    def divide(self, other: Ball) -> Rows:
        """Divide entry by entry.

        Args:
            other: as in `multiply`, of the same shape or one that broadcasts to that of the rows.

        Returns:
            The quotients.
        """
        far = _largest(self._lined(other.spread))
        below = -_largest(self._lined(-other.hi.abs())) * (1 - 4 * UNIT_ROUNDOFF)
        error = torch.where(below > far, (self.err + self.size / below * far) / (below - far), math.inf)
        return self._made(self.hi / other.hi, error, UNIT_ROUNDOFF)

    def total(self, axes: Sequence[int], *, keep: bool) -> Rows:
        """Sum along axes.

        Args:
            axes: which, none of them the first.
            keep: whether they stay, with length 1.

        Returns:
            The sums.
        """
        axes = [axis % self.hi.ndim for axis in axes]
        if not axes:
            return self
        terms = math.prod(self.hi.shape[axis] for axis in axes)
        root = math.sqrt(terms)
        error = root * (self.err + gamma(terms) * self.size)
        return self._made(self.hi.sum(axes, keepdim=keep), error)

    def matmul(self, other: Ball, *, left: bool) -> Rows:
        """Multiply with matrices that are the same for all rows, or one for each.

        Args:
            other: (..., k, m) or (..., m, k).
            left: whether the other stands on the left.

        Returns:
            The products.
        """
        value = other.hi @ self.hi if left else self.hi @ other.hi
        parts = [torch.linalg.matrix_norm(self._headed(one)).flatten(1).amax(1) for one in (other.hi, other.spread)]
        most, far = (round_up(one) for one in parts)
        terms = other.hi.shape[-1] if left else other.hi.shape[-2]
        error = self.err * (most + far) + self.size * (far + gamma(terms + 2) * most)
        return self._made(value, error)

    def _own(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor has a part for each row, and not the same for all."""
        return tensor.ndim == self.hi.ndim and len(tensor) == len(self.hi) > 1

    def _lined(self, tensor: torch.Tensor) -> torch.Tensor:
        """Numbers for each row, or once."""
        return tensor.reshape(len(tensor) if self._own(tensor) else 1, -1)

    def _headed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Matrices for each row, or once: (rows or 1, matrices, k, m)."""
        return tensor.reshape(len(tensor) if self._own(tensor) else 1, -1, *tensor.shape[-2:])
