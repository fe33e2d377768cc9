r"""TATR: the sum of task vectors, without the coordinates where one task would hurt another (arXiv 2501.15065)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.method import checked_number
from tvgrad.merging.trust_region import without_conflict


@dataclass(frozen=True)
class MeasuredTrustRegion(MeasuredMethod):
    r"""The sum of the task vectors, 0 at the `share` of each tensor's coordinates where conflict is largest.

    Conflict is $\sum_{i \ne j} \mathbb{E} \lvert \nabla \ell_i \rvert \circ \lvert \tau_j \rvert$, with the mean
    magnitudes of the gradients of task i's samples at the pretrained weights. Unlike in `trust_region` a gradient
    counts in its own units: a task with a steep loss decides more.
    """

    share: float = 0.01

    name: ClassVar[str] = "measured_trust_region"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", checked_number(self.share, "share", least=0, most=1))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return without_conflict(rows, self.measurements.magnitudes(name), self.share)
