r"""TATR without data: the sum of task vectors, without the coordinates where tasks conflict (arXiv 2501.15065)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.magnitude_ranks import smallest_kept
from tvgrad.merging.method import Method, added, checked_number


@dataclass(frozen=True)
class TrustRegion(Method):
    r"""The sum of the task vectors, 0 at the `share` of each tensor's coordinates where conflict is largest.

    Conflict is $\sum_{i \ne j} |g_i| \circ |\tau_j|$, with the vector itself in the place of the gradient: a task
    vector is a gradient, up to its length. (With gradients of data: `measured_trust_region`.)
    """

    share: float = 0.01

    name: ClassVar[str] = "trust_region"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", checked_number(self.share, "share", least=0, most=1))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        sizes = rows.abs()
        return without_conflict(rows, sizes, self.share)


def without_conflict(rows: torch.Tensor, gradients: torch.Tensor, share: float) -> torch.Tensor:
    r"""Add task vectors where tasks do not conflict.

    Args:
        rows: of one tensor, shape (tasks, *tensor).
        gradients: mean magnitudes of each task's gradient, of the same shape.
        share: of the coordinates that are left out, rounded down; more where several conflict alike, none that does
            not conflict.

    Returns:
        Their sum, 0 where $\sum_{i \ne j} |g_i| |\tau_j|$ is largest.
    """
    sizes = rows.abs()
    conflict = added(gradients) * added(sizes) - added(gradients * sizes)
    total = added(rows)
    if int(share * total.numel()) < 1:
        return total
    left_out = (conflict >= smallest_kept(conflict, share)) & (conflict > 0)
    return total.masked_fill_(left_out, 0.0)
