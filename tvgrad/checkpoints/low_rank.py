"""LowRank: a change of one weight tensor that is kept as two thin matrices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LowRank:
    """The matrix `left @ right`, in the shape of a weight tensor; it is never formed as a whole.

    Attributes:
        left: (m, r), float64.
        right: (r, n), float64.
        shape: of the tensor, with m n elements.

    Example:
        >>> import torch
        >>> from tvgrad.checkpoints.low_rank import LowRank
        >>> left, right = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[3.0, 4.0]]).double()
        >>> LowRank(left, right, (2, 2)).block(1, 2).tolist()
        [4.0, 6.0]
    """

    left: torch.Tensor
    right: torch.Tensor
    shape: tuple[int, ...]

    def block(self, start: int, length: int) -> torch.Tensor:
        """Form consecutive elements of the flattened tensor.

        Args:
            start: index of the first.
            length: how many.

        Returns:
            float64, shape (length,).
        """
        width = self.right.shape[1]
        first, last = start // width, -(-(start + length) // width)
        return (self.left[first:last] @ self.right).flatten()[start - first * width :][:length]

    def inner(self, other: LowRank) -> float:
        """Inner product of two such matrices, from r_1 x r_2 matrices: `tr((L_1' L_2)' (R_1 R_2'))`.

        Args:
            other: of the same shape.

        Returns:
            The sum over all coordinates of one times the other.
        """
        return float(((self.left.T @ other.left) * (self.right @ other.right.T)).sum())


def inner_products(left: Mapping[str, LowRank], right: Mapping[str, LowRank], names: Iterable[str]) -> float:
    """Inner product of two changes of a model's weights; tensors that one of them leaves alone add nothing.

    Args:
        left: name -> change.
        right: name -> change.
        names: the tensors that are summed over.

    Returns:
        The inner product, in float64.
    """
    return math.fsum(left[name].inner(right[name]) for name in names if name in left and name in right)
