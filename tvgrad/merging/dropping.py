"""DARE: drop entries at random and rescale those that stay (arXiv 2311.03099)."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import torch

from tvgrad.merging.method import Method, share

__all__ = ["Dare"]

DRAWS = 2**32


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, min(4, torch.get_num_threads())))


@dataclass(frozen=True)
class Dare(Method):
    """The sum of task vectors whose entries are each kept with probability `density` and divided by it.

    Which entries are kept depends on the seed, the task's place, the tensor's name and the entry's place in it, and on
    nothing else: not on how the tensor is cut into blocks, nor on threads.
    """

    density: float = 0.5
    seed: int = 0

    name: ClassVar[str] = "dare"
    about: ClassVar[str] = "the sum of task vectors whose entries are dropped at random and rescaled"
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", share(self.density, "density"))

    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        """Drop, add and rescale.

        Args:
            rows: as in `Method.combine`.
            name: chooses the random numbers.
            start: an even place in the tensor.

        Returns:
            The sum of what was kept, over the density.
        """
        total = torch.zeros_like(rows[0])
        # Drawing takes longer than all the rest, and numpy lets go of the interpreter's lock while it draws.
        masks = _pool().map(lambda task: self.kept(task, name, start, rows[0].numel()), range(len(rows)))
        for row, mask in zip(rows, masks, strict=True):
            total.add_(row.mul_(torch.from_numpy(mask).view(row.shape)))
        return total.div_(self.density)

    def kept(self, task: int, name: str, start: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Draw which entries of a task's tensor are kept.

        Args:
            task: the task's place in the list.
            name: the tensor's name.
            start: the first entry, an even number: each 64 random bits serve two entries.
            length: how many entries.

        Returns:
            True where an entry is kept.
        """
        bits = np.random.PCG64((self.seed, task, zlib.crc32(name.encode())))
        bits.advance(start // 2)
        draws = bits.random_raw(-(-length // 2)).astype("<u8", copy=False).view("<u4")[:length]
        kept: np.ndarray[tuple[int], np.dtype[np.bool_]] = draws <= np.uint32(max(1, round(self.density * DRAWS)) - 1)
        return kept
