"""LargestEntries: of each tensor, every task keeps its entries of largest magnitude."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.magnitude_ranks import magnitudes_of_ranks, smallest_kept
from tvgrad.merging.sparsifier import Sparsifier
from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class LargestEntries(Sparsifier):
    """Each task keeps the largest `density` of each tensor's entries."""

    density: float

    @override
    def for_tensor(self, stack: Stack, name: str) -> Sparsifier:
        kept = max(1, int(self.density * stack.numel(name)))
        return EntriesFrom(tuple(edge for (edge,) in magnitudes_of_ranks(stack, name, [kept])))

    @override
    def on(self, rows: torch.Tensor) -> Sparsifier:
        return EntriesFrom(tuple(smallest_kept(row, self.density) for row in rows))

    @override
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        self.on(rows).apply(rows, name, start)


@dataclass(frozen=True)
class EntriesFrom(Sparsifier):
    """The largest entries of one tensor, where it is known from which magnitude on each task keeps them."""

    edges: tuple[float, ...]

    elementwise: ClassVar[bool] = True

    @override
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        for row, edge in zip(rows, self.edges, strict=True):
            # hardshrink keeps what is larger, not what is as large
            torch.ops.aten.hardshrink.out(row, math.nextafter(edge, 0.0), out=row)
