r"""Iso-CTS: a common and task-specific subspaces, all directions of one strength (arXiv 2502.04959)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.isotropic import Isotropic
from tvgrad.merging.method import Method, added, checked_share
from tvgrad.merging.tsv_m import nearest_orthonormal


@dataclass(frozen=True)
class IsotropicSubspaces(Method):
    r"""Iso-CTS.

    Of a matrix of r singular values, each task has $d = \mathrm{round}((r - \lfloor r c \rfloor) / T)$ directions of
    its own, c being `common`: the leading ones of $\tau_t - U U' \tau_t$, U the leading $r - dT$ left vectors of the
    sum, which all share. All of them side by side are made orthonormal (Procrustes), and their strengths become their
    mean. Where d is 0, this is Iso-C; of tensors that are no matrices, the mean.
    """

    common: float = 0.8

    name: ClassVar[str] = "isotropic_subspaces"

    def __post_init__(self) -> None:
        object.__setattr__(self, "common", checked_share(self.common, "common"))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if rows.ndim != 3 or not rows.any():
            return rows.mean(0)
        rank = min(rows.shape[1:])
        own = min(round((rank - int(rank * self.common)) / len(rows)), rank // len(rows))
        if own == 0:
            return Isotropic().combine(rows, name, start)
        u, s, vt = torch.linalg.svd(added(rows), full_matrices=False)
        shared = rank - own * len(rows)
        least = s[0] * max(rows.shape[1:]) * torch.finfo(s.dtype).eps
        lefts, values, rights = [], [], []
        for row in rows:
            task_u, task_s, task_vt = torch.linalg.svd(row - u[:, :shared] @ (u[:, :shared].T @ row))
            lefts.append(task_u[:, :own])
            values.append(task_s[:own])
            rights.append(task_vt[:own].T)
        left, strength = torch.cat([*lefts, u[:, :shared]], 1), torch.cat([*values, s[:shared]])
        right = torch.cat([*rights, vt[:shared].T], 1)
        used = strength > least  # a direction that no task uses is any vector of the null space
        made = nearest_orthonormal(left[:, used]) @ nearest_orthonormal(right[:, used]).T
        return torch.as_tensor(strength.mean() * made)
