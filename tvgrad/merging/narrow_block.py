"""NarrowBlock: a block of task vectors in float32, whose few interesting entries can be had in float64."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class NarrowBlock:
    """Weights as float32 holds them, and their differences to the pretrained ones, rounded once.

    Rounding keeps the order of numbers: what is larger than another in float32 is larger in float64. Only where two
    are the same number in float32 may they differ in float64.

    Attributes:
        values: float32, shape (tasks, length).
        base: float32, shape (length,): what is subtracted from them.
        changes: rows from which nothing is subtracted.
        scratch: float32, shape (length,), to write to.
    """

    values: torch.Tensor
    base: torch.Tensor
    changes: Collection[int]
    scratch: torch.Tensor

    def magnitudes(self, task: int) -> NDArray[np.float32]:
        """Magnitudes of one task's entries.

        Args:
            task: which.

        Returns:
            Shape (length,), each rounded once; the next call overwrites it.
        """
        if task in self.changes:
            torch.abs(self.values[task], out=self.scratch)
        else:
            torch.sub(self.values[task], self.base, out=self.scratch).abs_()
        rounded: NDArray[np.float32] = self.scratch.numpy()
        return rounded

    def exact(self, task: int, places: NDArray[np.intp]) -> NDArray[np.float64]:
        """Magnitudes of some entries, formed in float64.

        Args:
            task: which.
            places: of the entries in the block.

        Returns:
            One for each place.
        """
        chosen = self.values[task].numpy().take(places)
        less = 0 if task in self.changes else self.base.numpy().take(places)
        magnitudes: NDArray[np.float64] = np.subtract(chosen, less, dtype=np.float64)
        return np.abs(magnitudes, out=magnitudes)
