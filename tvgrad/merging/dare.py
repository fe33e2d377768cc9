"""DARE: drop entries at random and rescale those that stay (arXiv 2311.03099)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.merging.combination import Combination
from tvgrad.merging.method import checked_share, checked_whole
from tvgrad.merging.random_entries import RandomEntries


@dataclass(frozen=True)
class Dare(Combination):
    """The sum of task vectors whose entries are each kept with probability `density` and divided by it."""

    density: float = 0.5
    seed: int = 0

    name: ClassVar[str] = "dare"
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))
        object.__setattr__(self, "seed", checked_whole(self.seed, "seed", least=0))

    @override
    def sparsifier(self) -> RandomEntries:
        return RandomEntries(self.density, self.seed)


@dataclass(frozen=True)
class DareTies(Dare):
    """DARE's entries with TIES' election: the mean over the tasks that have the elected sign, over `density`."""

    name: ClassVar[str] = "dare_ties"
    least: ClassVar[int] = 2
    elected: ClassVar[bool] = True
