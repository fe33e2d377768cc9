"""Model breadcrumbs: leave out each tensor's largest and smallest entries, and add (arXiv 2312.06795)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from tvgrad.merging.combination import Combination
from tvgrad.merging.method import checked_share
from tvgrad.merging.middle_entries import MiddleEntries
from tvgrad.merging.sparsifier import Sparsifier


@dataclass(frozen=True)
class Breadcrumbs(Combination):
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
        self.sparsifier()

    @override
    def sparsifier(self) -> Sparsifier:
        return MiddleEntries(self.density, self.outliers)


@dataclass(frozen=True)
class BreadcrumbsTies(Breadcrumbs):
    """The entries of breadcrumbs with TIES' election of signs."""

    name: ClassVar[str] = "breadcrumbs_ties"
    least: ClassVar[int] = 2
    elected: ClassVar[bool] = True
