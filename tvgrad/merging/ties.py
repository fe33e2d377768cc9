"""TIES: trim small entries, elect a sign for each coordinate, average the tasks that agree (arXiv 2306.01708)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import hardshrink
from typing_extensions import override

from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.workers import workers

BLOCK = 1 << 14
"""Coordinates that are merged at once: ten tasks' share of them stays in a core's cache."""


@dataclass(frozen=True)
class Ties(Method):
    """Trim, elect sign, merge.

    Each task keeps the largest `density` of each tensor's entries; the elected sign of a coordinate is that of the sum
    of what was kept (plus where the sum is zero); the result is the mean over the tasks whose kept entry has it.
    """

    density: float = 0.2

    name: ClassVar[str] = "ties"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        flat = rows.reshape(len(rows), -1)
        edges = workers().map(lambda row: smallest_kept(row, self.density), flat)
        below = [math.nextafter(edge, 0.0) for edge in edges]  # hardshrink keeps what is larger, not what is as large
        merged = torch.empty_like(flat[0])
        for begin in range(0, flat.shape[1], BLOCK):
            block = flat[:, begin : begin + BLOCK]
            kept = torch.stack([hardshrink(row, edge) for row, edge in zip(block, below, strict=True)])
            signs = torch.where(kept.sum(dim=0) >= 0, 1.0, -1.0)
            # Turned to the elected sign, an entry is above zero where its row agrees.
            agreeing = kept.mul_(signs).clamp_(min=0)
            total = agreeing.sum(dim=0).mul_(signs)
            merged[begin : begin + BLOCK] = total.div_(agreeing.sign_().sum(dim=0).clamp_(min=1))
        return merged.reshape(rows.shape[1:])


def smallest_kept(tensor: torch.Tensor, density: float) -> float:
    """Find the magnitude from which on entries are among the largest.

    Args:
        tensor: any shape, on the CPU.
        density: share of the entries that are among them, rounded down to a number of entries but to no less than one.

    Returns:
        The smallest of their magnitudes; 0 where they are all.
    """
    count = max(1, int(density * tensor.numel()))
    if count >= tensor.numel():
        return 0.0
    magnitudes = np.abs(tensor.reshape(-1).numpy())
    place = magnitudes.size - count
    magnitudes.partition(place)  # an order of magnitude quicker than torch.kthvalue
    return float(magnitudes[place])


def largest(tensor: torch.Tensor, density: float) -> torch.Tensor:
    """Mark the entries of largest magnitude.

    Args:
        tensor: any shape.
        density: share of the entries to mark, rounded down to a number of entries but to no less than one. Entries as
            large as the smallest of these are marked too, so that the choice never depends on the order of a sort.

    Returns:
        A boolean tensor of the same shape.
    """
    return tensor.abs() >= smallest_kept(tensor, density)
