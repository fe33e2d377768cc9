"""Weighted: a sum of task vectors with a number for each, what many methods come to once they have seen them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method


@dataclass(frozen=True)
class Weighted(Method):
    """The sum of the task vectors, each times its number."""

    weights: tuple[float, ...]

    name: ClassVar[str] = "weighted"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        total = rows[0].mul_(self.weights[0])
        for row, weight in zip(rows[1:], self.weights[1:], strict=True):
            total.add_(row, alpha=weight)
        return total
