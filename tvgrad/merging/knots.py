r"""KnOTS: task matrices in one basis of singular vectors, merged there by TIES (arXiv 2410.19735)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.ties import Ties


@dataclass(frozen=True)
class Knots(Method):
    r"""With $U S [V_1' \dots V_T']$ the decomposition of $[\tau_1 \dots \tau_T]$: $U S$ times TIES of the $V_t'$.

    (The mean or the sum of the $V_t'$ would give that of the task vectors.) Of tensors that are no matrices, the mean.
    """

    density: float = 0.2

    name: ClassVar[str] = "knots"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", checked_share(self.density, "density"))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if rows.ndim != 3 or not rows.any():
            return rows.mean(0)
        tasks, outputs, inputs = rows.shape
        u, s, vt = torch.linalg.svd(rows.transpose(0, 1).reshape(outputs, tasks * inputs), full_matrices=False)
        used = s > s[:1] * max(outputs, tasks * inputs) * torch.finfo(s.dtype).eps
        parts = vt[used].unflatten(1, (tasks, inputs)).transpose(0, 1).contiguous()
        return torch.as_tensor((u[:, used] * s[used]) @ Ties(self.density).combine(parts, name, 0))
