"""Draws: which samples a pass over a loader has drawn, so that those that came twice are known."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any


class Draws:
    """Counts samples that were drawn more than once.

    Attributes:
        again: draws of samples that had been drawn before.
    """

    def __init__(self) -> None:
        """Start before the first draw."""
        self.again = 0
        self._seen = set[Hashable]()

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
        self.again += len(numbers) - len(new) + len(new & self._seen)
        self._seen |= new


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
