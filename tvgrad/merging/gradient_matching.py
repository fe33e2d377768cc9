r"""Gradient matching: each task's curvature weighs its vector, so that gradients cancel (arXiv 2310.12808)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.method import added, checked_number


@dataclass(frozen=True)
class GradientMatching(MeasuredMethod):
    r"""$\sum_t (H_0 + \sum_s H_s)^{-1} (H_0 + H_t) \tau_t$, with diagonals: H_t the Fisher diagonal of task t.

    H_0 belongs to the pretraining, whose data nobody has: it is `prior` times the mean of the tasks' diagonals over the
    tensor. A large prior makes task arithmetic of it, none makes Fisher merging.
    """

    name: ClassVar[str] = "gradient_matching"
    prior: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "prior", checked_number(self.prior, "the prior", least=0))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        curvatures = self.measurements.diagonals(name)
        prior = self.prior * float(curvatures.mean()) if curvatures.numel() else 0.0
        total = prior + added(curvatures)
        weighed = added(rows * (prior + curvatures))
        return torch.where(total > 0, weighed / total, rows.mean(0))
