r"""Isotropic merging: all singular values of the summed matrix become their mean (Iso-C, arXiv 2502.04959)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added


@dataclass(frozen=True)
class Isotropic(Method):
    r"""Iso-C: with $U S V'$ the singular value decomposition of the sum of the task vectors, $\bar{S} U V'$.

    Of tensors that are no matrices, the mean. A direction that no task uses (a singular value of 0) is a choice of the
    decomposition, and is left out.
    """

    name: ClassVar[str] = "isotropic"

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if rows.ndim != 3:
            return rows.mean(0)
        u, s, vt = torch.linalg.svd(added(rows), full_matrices=False)
        used = s > s[:1] * max(rows.shape[1:]) * torch.finfo(s.dtype).eps
        return torch.as_tensor(s.mean() * (u[:, used] @ vt[used]))
