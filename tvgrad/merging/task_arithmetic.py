"""Task arithmetic: sums of task vectors, their mean, negation and analogy (arXiv 2212.04089)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added


@dataclass(frozen=True)
class TaskArithmetic(Method):
    """The sum of the task vectors: theta_0 + alpha (tau_1 + ... + tau_T)."""

    name: ClassVar[str] = "task_arithmetic"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return added(rows, into=rows[0])


@dataclass(frozen=True)
class Mean(TaskArithmetic):
    """The mean of the task vectors: task arithmetic with alpha / T."""

    name: ClassVar[str] = "mean"

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return super().combine(rows, name, start).div_(len(rows))


@dataclass(frozen=True)
class Negation(TaskArithmetic):
    """Unlearning: theta_0 - alpha (tau_1 + ... + tau_T), usually of one task."""

    name: ClassVar[str] = "negation"

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return super().combine(rows, name, start).neg_()


@dataclass(frozen=True)
class Analogy(Method):
    """A is to B as C is to the result: tau_C + (tau_B - tau_A), for the three tasks A, B, C in this order."""

    name: ClassVar[str] = "analogy"
    least: ClassVar[int] = 3
    most: ClassVar[int | None] = 3
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return (rows[1] - rows[0]).add_(rows[2])
