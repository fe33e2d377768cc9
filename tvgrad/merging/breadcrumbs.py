"""Model breadcrumbs: leave out each tensor's largest and smallest entries, and add (arXiv 2312.06795)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.stack import Stack
from tvgrad.merging.ties import IN_TURN, magnitudes_of_ranks, smallest_kept
from tvgrad.merging.workers import in_order


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
    def for_tensor(self, stack: Stack, name: str) -> Method:
        numel = stack.numel(name)
        kept, left_out = max(1, int(self.density * numel)), int(self.outliers * numel)

        def edges(task: int, mapped: Callable[..., Iterable[Any]] = map) -> tuple[float, float]:
            ranks = [kept, left_out] if left_out else [kept]  # a tensor too small for one outlier has none
            low, *high = magnitudes_of_ranks(stack, task, name, ranks, mapped)
            return low, high[0] if high else math.inf

        if numel >= IN_TURN:  # the magnitudes of one task at a time
            return TrimmedBreadcrumbs(tuple(edges(task, in_order) for task in range(stack.tasks)))
        return TrimmedBreadcrumbs(tuple(in_order(edges, range(stack.tasks))))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        outliers = [smallest_kept(row, self.outliers) if int(self.outliers * row.numel()) else math.inf for row in rows]
        edges = zip((smallest_kept(row, self.density) for row in rows), outliers, strict=True)
        return TrimmedBreadcrumbs(tuple(edges)).combine(rows, name, start)


@dataclass(frozen=True)
class TrimmedBreadcrumbs(Method):
    """Breadcrumbs of one tensor, where each task's magnitudes are known: the least that stays, the least outlier."""

    edges: tuple[tuple[float, float], ...]

    name: ClassVar[str] = "breadcrumbs"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        total = torch.zeros_like(rows[0])
        for row, (low, high) in zip(rows, self.edges, strict=True):
            # hardshrink keeps what is larger, not what is as large
            outliers = None if math.isinf(high) else torch.ops.aten.hardshrink(row, math.nextafter(high, 0.0))
            kept = torch.ops.aten.hardshrink.out(row, math.nextafter(low, 0.0), out=row)
            total.add_(kept if outliers is None else kept.sub_(outliers))
        return total
