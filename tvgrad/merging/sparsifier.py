"""Sparsifier: which entries of task vectors are left, the first half of a method like TIES or DARE."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class Sparsifier(ABC):
    """Sets entries of every task vector to zero.

    Attributes:
        share: what the merged tensor is divided by, because so small a share of the entries is left on average.
    """

    elementwise: ClassVar[bool] = False
    """Whether a coordinate is dropped or kept whatever the other coordinates are."""

    @property
    def share(self) -> float:
        """1 where what is left is not scaled."""
        return 1.0

    def for_tensor(self, stack: Stack, name: str) -> Sparsifier:
        """Look at a whole tensor.

        Args:
            stack: the task vectors.
            name: the tensor.

        Returns:
            The sparsifier of this tensor, which is elementwise.
        """
        return self

    def on(self, rows: torch.Tensor) -> Sparsifier:
        """Look at a whole tensor in memory.

        Args:
            rows: float64, shape (tasks, *tensor).

        Returns:
            The sparsifier of this tensor, which is elementwise.
        """
        return self

    @abstractmethod
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        """Set entries to zero, in place.

        Args:
            rows: float64, shape (tasks, length): a block of the flattened tensor.
            name: the tensor.
            start: where the block begins, a multiple of 64.
        """
