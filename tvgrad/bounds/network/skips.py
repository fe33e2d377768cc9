"""Skips: what each layer of a network reads, and what is added to what it computes.

`h_0` is the input and `h_k` what the k-th layer gives. A chain reads h_0, h_1, ... one after the other; a residual
block adds an earlier h to what its last layer computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Skips:
    """The order of the layers, counted from 0; layer l makes h_(l+1).

    Attributes:
        reads: for each layer l the k <= l of the h_k that it reads.
        adds: for each layer l the k <= l of the h_k that are added to its z, with multiplicity.
    """

    reads: tuple[int, ...]
    adds: tuple[tuple[int, ...], ...]

    @cached_property
    def users(self) -> tuple[tuple[tuple[int, bool], ...], ...]:
        """For each h_k the layers that use it, the last one first: (l, True) reads it, (l, False) adds it to its z."""
        found: list[list[tuple[int, bool]]] = [[] for _ in self.reads]
        for layer in reversed(range(len(self.reads))):
            found[self.reads[layer]].append((layer, True))
            for k in self.adds[layer]:
                found[k].append((layer, False))
        return tuple(map(tuple, found))

    def collect(self, k: int, read: Callable[[int], T], added: Callable[[int], T], end: int | None = None) -> list[T]:
        """Collect what the layers that use h_k contribute to a derivative in it.

        Args:
            k: which h.
            read: the contribution of a layer that reads it.
            added: the contribution of a layer to whose z it is added.
            end: leave out the layers behind this one.

        Returns:
            The contributions, that of the last layer first.
        """
        users = [user for user in self.users[k] if end is None or user[0] <= end]
        return [read(layer) if reads else added(layer) for layer, reads in users]

    @cached_property
    def extra(self) -> int:
        """How many sums of two terms are taken at one place at most, going forward or backward: 0 for a chain."""
        return max([*map(len, self.adds), *(len(users) - 1 for users in self.users)])
