"""Draws: which samples a pass over a loader has drawn, so that those that came twice are known."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

MOST_BITS = 1 << 28
"""Samples with numbers below this are kept as bits, in at most 64 MB; others as a set."""


class Draws:
    """Counts samples that were drawn more than once, in a bit for each sample: an epoch of a million takes 125 kB.

    Attributes:
        again: draws of samples that had been drawn before.
    """

    def __init__(self) -> None:
        """Start before the first draw."""
        self.again = 0
        self._bits = bytearray()
        self._others = set[Hashable]()  # names of samples, and numbers that are no place in a data set

    def add(self, drawn: Any) -> None:
        """Note what a sampler drew.

        Args:
            drawn: the number of a sample, or those of a batch; what cannot be compared is not counted.
        """
        numbers = drawn if isinstance(drawn, list) else [drawn]
        try:
            new = set(numbers)
        except TypeError:
            return
        self.again += len(numbers) - len(new) + sum(map(self._seen, new))

    def _seen(self, number: Hashable) -> bool:
        """Whether it was drawn before; it is from now on."""
        if not isinstance(number, int | np.integer) or not 0 <= number < MOST_BITS:
            known = number in self._others
            self._others.add(number)
            return known
        place, bit = int(number) >> 3, 1 << (int(number) & 7)
        if place >= len(self._bits):
            self._bits.extend(bytes(max(place + 1, 2 * len(self._bits)) - len(self._bits)))
        known = bool(self._bits[place] & bit)
        self._bits[place] |= bit
        return known


class NotedSampler:
    """A loader's sampler, whose draws are noted."""

    def __init__(self, sampler: Any, draws: Draws) -> None:
        """Wrap a sampler.

        Args:
            sampler: of samples or of batches.
            draws: notes what it draws.
        """
        self._sampler, self._draws = sampler, draws

    def __iter__(self) -> Iterator[Any]:
        """Go through what the sampler draws."""
        for drawn in self._sampler:
            self._draws.add(drawn)
            yield drawn

    def __len__(self) -> int:
        """The sampler's own length."""
        return len(self._sampler)
