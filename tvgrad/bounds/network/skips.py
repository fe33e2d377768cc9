"""Wiring: what each layer of a network reads, and what is added to what it computes.

`h_0` is the input and `h_k` what the k-th layer gives. A chain reads h_0, h_1, ... one after the other; a residual
block adds an earlier h to what its last layer computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Wiring:
    """The order of the layers, counted from 0; layer l makes h_(l+1).

    Attributes:
        reads: for each layer l the k <= l of the h_k that it reads.
        adds: for each layer l the k <= l of the h_k that are added to its z.
    """

    reads: tuple[int, ...]
    adds: tuple[tuple[int, ...], ...]

    @classmethod
    def chain(cls, depth: int) -> Wiring:
        """Layers one after the other.

        Args:
            depth: how many.

        Returns:
            The wiring without any skip.
        """
        return cls(tuple(range(depth)), ((),) * depth)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each k the layers that read h_k."""
        return self._by_source([(k, layer) for layer, k in enumerate(self.reads)])

    @cached_property
    def adders(self) -> tuple[tuple[int, ...], ...]:
        """For each k the layers to whose z h_k is added, one as often as it is added there."""
        return self._by_source([(k, layer) for layer, added in enumerate(self.adds) for k in added])

    @cached_property
    def extra(self) -> int:
        """How many sums of two terms are taken at one place at most, going forward or backward: 0 for a chain."""
        forward = max((len(added) for added in self.adds), default=0)
        both = zip(self.readers, self.adders, strict=True)
        return max([forward, *(len(readers) + len(adders) - 1 for readers, adders in both)])

    def _by_source(self, pairs: list[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(layer for source, layer in pairs if source == k) for k in range(len(self.reads)))
