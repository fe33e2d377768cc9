"""RandomEntries: every task keeps each entry with one probability, whatever it is."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from tvgrad.merging.sparsifier import Sparsifier
from tvgrad.merging.workers import workers

SHORT, LONG = 2**16, 2**48
HALF = LONG // 2


@lru_cache(maxsize=256)
def _sequence(key: tuple[int, ...]) -> np.random.SeedSequence:
    """The start of a key's random numbers, kept: the blocks of a tensor ask for the same one again and again."""
    return np.random.SeedSequence(key)


@dataclass(frozen=True)
class RandomEntries(Sparsifier):
    """Each entry is kept with probability `density`, and what is merged is divided by it.

    Which entries are kept depends on the seed, the task's place, the tensor's name and the entry's place in it, and on
    nothing else: not on how the tensor is cut into blocks, nor on threads.
    """

    density: float
    seed: int

    elementwise: ClassVar[bool] = True

    @property
    @override
    def share(self) -> float:
        return self.density

    @override
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        # Drawing takes longer than all the rest, and numpy lets go of the interpreter's lock while it draws.
        # Single bits are drawn faster than a thread is woken.
        over = map if self._threshold() == HALF else workers().map
        masks = over(lambda task: self.kept(task, name, start, length=rows[0].numel()), range(len(rows)))
        for row, mask in zip(rows, masks, strict=True):
            entries = row.numpy()
            np.multiply(entries, mask, out=entries)  # faster with a mask of truth values than PyTorch's product

    def kept(self, task: int, name: str, start: int, *, length: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Draw which entries of a task's tensor are kept.

        An entry's 16 random bits decide, except where they are equal to the leading 16 bits of the density (one entry
        in 65,536): there 32 more are drawn. So the probability is the density to 48 bits at the price of 16. For a
        density of one half a single bit decides.

        Args:
            task: the task's place in the list.
            name: the tensor's name.
            start: the first entry, a multiple of 64: a random number of 64 bits serves 4 or 64 entries.
            length: how many entries.

        Returns:
            True where an entry is kept.
        """
        whole = self._threshold()
        leading, rest = divmod(whole, LONG // SHORT)
        if leading == SHORT:
            return np.ones(length, dtype=np.bool_)
        key = (self.seed, task, zlib.crc32(name.encode()))
        bits = np.random.PCG64(_sequence(key))
        if whole == HALF:
            bits.advance(start // 64)
            words = bits.random_raw(-(-length // 64)).astype("<u8", copy=False).view(np.uint8)
            half: np.ndarray[tuple[int], np.dtype[np.uint8]] = np.unpackbits(words, count=length, bitorder="little")
            return half.view(np.bool_)
        bits.advance(start // 4)
        draws = bits.random_raw(-(-length // 4)).astype("<u8", copy=False).view("<u2")[:length]
        kept: np.ndarray[tuple[int], np.dtype[np.bool_]] = draws < np.uint16(leading)
        if rest:
            for place in np.flatnonzero(draws == np.uint16(leading)):
                more = np.random.PCG64(_sequence((*key, 1)))
                more.advance(start + int(place))
                kept[place] = int(more.random_raw()) >> 32 < rest
        return kept

    def _threshold(self) -> int:
        """The density as a number of 48 bits."""
        return max(1, round(self.density * LONG))
