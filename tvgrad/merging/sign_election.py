"""TIES: trim small entries, elect a sign for each coordinate, average the tasks that agree (arXiv 2306.01708)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from tvgrad.merging.method import Method, share

__all__ = ["Ties", "largest"]


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, merge.

    Each task keeps the largest `density` of each tensor's entries; the elected sign of a coordinate is that of the sum
    of what was kept (plus where the sum is zero); the result is the mean over the tasks whose kept entry has it.
    """

    density: float = 0.2

    name: ClassVar[str] = "ties"
    about: ClassVar[str] = "the largest entries of each tensor, averaged over the tasks that agree on the sign"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", share(self.density, "density"))

    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        """Merge one tensor.

        Args:
            rows: as in `Method.combine`.
            name: unused.
            start: unused.

        Returns:
            The mean over the tasks that agree; 0 where none has an entry left.
        """
        for row in rows:
            row.mul_(largest(row, self.density))
        positive = rows.sum(dim=0) >= 0
        total, agreeing = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for row in rows:
            agrees = torch.where(positive, row > 0, row < 0)
            total.add_(row * agrees)
            agreeing.add_(agrees)
        return total.div_(agreeing.clamp_(min=1))


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Mark the entries of largest magnitude.

    Args:
        tensor: any shape.
        density: share of the entries to mark, rounded down to a number of entries but to no less than one. Entries as
            large as the smallest of these are marked too, so that the choice never depends on the order of a sort.

    Returns:
        A boolean tensor of the same shape.
    """
    magnitudes = tensor.abs()
    count = max(1, int(density * tensor.numel()))
    if count >= tensor.numel():
        return torch.ones_like(tensor, dtype=torch.bool)
    smallest = torch.kthvalue(magnitudes.flatten(), tensor.numel() - count + 1).values
    return magnitudes >= smallest
