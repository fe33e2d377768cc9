"""Model breadcrumbs: leave out each tensor's largest and smallest entries, and add (arXiv 2312.06795)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.ties import largest


@dataclass(frozen=True)
class Breadcrumbs(Method):
    """The sum of task vectors without outliers and without small entries.

    Of each tensor, each task keeps the largest `density` of the entries, without the largest `outliers` among all, so
    that a share of `density - outliers` remains. In mergekit, `density` is the share that remains (and `gamma` the
    outliers): its density 0.19 with gamma 0.01 is the density 0.2 here.
    """

    density: float = 0.2
    outliers: float = 0.01

    name: ClassVar[str] = "breadcrumbs"

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))
        if not 0 <= self.outliers < self.density:
            raise TvgradError(f"outliers must be at least 0 and below the density, not {self.outliers!r}")

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        total = torch.zeros_like(rows[0])
        for row in rows:
            kept = largest(row, self.density)
            if int(self.outliers * row.numel()) >= 1:  # a tensor too small for one outlier has none
                kept &= ~largest(row, self.outliers)
            total.add_(row * kept)
        return total
