"""MiddleEntries: of each tensor, every task keeps its largest entries but for the very largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.magnitude_ranks import magnitudes_of_ranks, smallest_kept
from tvgrad.merging.sparsifier import Sparsifier
from tvgrad.merging.stack import Stack


@dataclass(frozen=True)
class MiddleEntries(Sparsifier):
    """Each task keeps the largest `density` of each tensor's entries, without the largest `outliers` among all."""

    density: float
    outliers: float

    def __post_init__(self) -> None:
        if not 0 <= self.outliers < self.density:
            raise TvgradError(f"outliers must be at least 0 and below the density, not {self.outliers!r}")

    @override
    def for_tensor(self, stack: Stack, name: str) -> Sparsifier:
        numel = stack.numel(name)
        kept, left_out = max(1, int(self.density * numel)), int(self.outliers * numel)
        ranks = [kept, left_out] if left_out else [kept]  # a tensor too small for one outlier has none
        found = magnitudes_of_ranks(stack, name, ranks)
        return EntriesBetween(tuple((low, high[0] if high else math.inf) for low, *high in found))

    @override
    def on(self, rows: torch.Tensor) -> Sparsifier:
        outliers = [smallest_kept(row, self.outliers) if int(self.outliers * row.numel()) else math.inf for row in rows]
        return EntriesBetween(tuple(zip((smallest_kept(row, self.density) for row in rows), outliers, strict=True)))

    @override
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        self.on(rows).apply(rows, name, start)


@dataclass(frozen=True)
class EntriesBetween(Sparsifier):
    """The same of one tensor, where each task's magnitudes are known: the least that stays, the least outlier."""

    edges: tuple[tuple[float, float], ...]

    elementwise: ClassVar[bool] = True

    @override
    def apply(self, rows: torch.Tensor, name: str, start: int) -> None:
        for row, (low, high) in zip(rows, self.edges, strict=True):
            values = row.numpy()
            outliers = None if math.isinf(high) else np.flatnonzero((values >= high) | (values <= -high))
            # hardshrink keeps what is larger, not what is as large
            torch.ops.aten.hardshrink.out(row, math.nextafter(low, 0.0), out=row)
            if outliers is not None:
                values[outliers] = 0.0
