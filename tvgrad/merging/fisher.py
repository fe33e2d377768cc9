r"""Fisher merging: a mean in which every task weighs a coordinate by its Fisher information (arXiv 2111.09832)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.method import added


@dataclass(frozen=True)
class Fisher(MeasuredMethod):
    r"""$\sum_t F_t \tau_t / \sum_t F_t$, coordinate by coordinate, with F the diagonals of the Fisher matrices.

    Where no task has any information, the mean. The public codes square the gradients of batches; here F is the mean
    over samples of squares.
    """

    name: ClassVar[str] = "fisher"

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        weights = self.measurements.diagonals(name)
        total = added(weights)
        weighed = added(rows * weights)
        return torch.where(total > 0, weighed / total, rows.mean(0))
