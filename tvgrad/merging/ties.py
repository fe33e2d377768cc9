"""TIES: trim small entries, elect a sign for each coordinate, average the tasks that agree (arXiv 2306.01708)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.merging.combination import Combination
from tvgrad.merging.largest_entries import LargestEntries
from tvgrad.merging.method import checked_share
from tvgrad.merging.sparsifier import Sparsifier


@dataclass(frozen=True)
class Ties(Combination):
    """Trim, elect sign, merge.

    Each task keeps the largest `density` of each tensor's entries; the elected sign of a coordinate is that of the sum
    of what was kept (plus where the sum is zero); the result is the mean over the tasks whose kept entry has it.
    """

    density: float = 0.2

    name: ClassVar[str] = "ties"
    least: ClassVar[int] = 2
    elected: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))

    @override
    def sparsifier(self) -> Sparsifier:
        return LargestEntries(self.density)
