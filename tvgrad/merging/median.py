"""The coordinate-wise median of task vectors, as in robust federated aggregation (arXiv 2411.18607)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method


@dataclass(frozen=True)
class Median(Method):
    """The lower median: of an even number of tasks, the smaller of the two in the middle."""

    name: ClassVar[str] = "median"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        lines = list(rows.unbind())  # a sorting network takes whole rows at a time
        spare = torch.empty_like(lines[0])
        for low, high in median_network(len(lines)):
            torch.minimum(lines[low], lines[high], out=spare)
            torch.maximum(lines[low], lines[high], out=lines[high])
            lines[low], spare = spare, lines[low]
        return lines[(len(lines) - 1) // 2].clone()


@cache
def median_network(count: int) -> tuple[tuple[int, int], ...]:
    """Make the comparisons that bring the lower median of so many values to its place.

    Batcher's odd-even merge sort, without the comparisons on which the middle does not depend.

    Args:
        count: number of values.

    Returns:
        Pairs (low, high): the smaller value goes to `low`, the larger to `high`.
    """
    pairs = []
    size = 1
    while size < count:
        step = size
        while step >= 1:
            for first in range(step % size, count - step, 2 * step):
                for low in range(first, min(first + step, count - step)):
                    if low // (2 * size) == (low + step) // (2 * size):
                        pairs.append((low, low + step))
            step //= 2
        size *= 2
    needed, kept = {(count - 1) // 2}, []
    for low, high in reversed(pairs):
        if low in needed or high in needed:
            needed |= {low, high}
            kept.append((low, high))
    return tuple(reversed(kept))
