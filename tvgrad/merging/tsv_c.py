r"""TSV-C: the sum of task matrices of low rank, each compressed to its leading triplets (arXiv 2412.00081)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added, checked_share
from tvgrad.merging.stack import Stack
from tvgrad.merging.tsv_m import check_ranks


@dataclass(frozen=True)
class TsvC(Method):
    r"""Of each matrix every task keeps its floor(`share` min(shape)) leading singular triplets; these are added.

    The nearest matrix of that rank: what is lost of it has the square $\sum_{i > k} s_i^2$. Without `share`, 1/T, and
    matrices of fewer rows or columns than tasks stay whole. Tensors that are no matrices are added whole. Of one task
    it is the compressed task vector.
    """

    share: float | None = None

    name: ClassVar[str] = "tsv_c"

    def __post_init__(self) -> None:
        if self.share is not None:
            object.__setattr__(self, "share", checked_share(self.share, "share"))

    @override
    def check_stack(self, stack: Stack) -> None:
        super().check_stack(stack)
        if self.share is not None:
            check_ranks(stack, self.share)

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        smallest = min(rows.shape[1:], default=0)
        kept = smallest // len(rows) if self.share is None else int(self.share * smallest)
        if rows.ndim != 3 or kept == 0:
            return added(rows)
        u, s, vt = torch.linalg.svd(rows, full_matrices=False)
        return added((u[..., :kept] * s[:, None, :kept]) @ vt[:, :kept])
