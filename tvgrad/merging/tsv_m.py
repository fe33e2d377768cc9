"""Task singular vectors: merge matrices by their leading singular triplets, made orthogonal (arXiv 2412.00081)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method
from tvgrad.merging.stack import VectorStack


@dataclass(frozen=True)
class TsvM(Method):
    """TSV-M.

    Of each matrix every task keeps floor(min(shape) / T) singular triplets, or as many as its rank. The left vectors of
    all tasks, side by side, are replaced by the nearest orthonormal columns (Procrustes: P Q' of their singular value
    decomposition), the right ones likewise, and the result is U_perp S V_perp'. Tensors that are no matrices, and
    matrices with fewer rows or columns than there are tasks, are averaged.
    """

    name: ClassVar[str] = "tsv_m"
    least: ClassVar[int] = 2

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if not _is_decomposed(rows):
            return rows.mean(dim=0)
        left, values, right = _triplets(rows)
        return (_nearest_orthonormal(left) * values) @ _nearest_orthonormal(right).T


def interference(task_vectors: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Measure how much the tasks' singular vectors overlap, matrix by matrix.

    `|| (U'U - I) S (V'V - I) ||_1`, the sum of the absolute values of the entries, with U, S, V the triplets that TSV-M
    keeps of all tasks, side by side. It is zero where the tasks use orthogonal directions. (The norm is entrywise here;
    the paper's text does not say.)

    Args:
        task_vectors: at least two, each name -> tensor.

    Returns:
        Name -> interference, of the tensors that TSV-M decomposes.

    Raises:
        TvgradError: there are fewer than two, they do not have the same tensors, or a value is not finite.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import interference
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 2.0])]
        >>> interference(vectors)  # orthogonal directions
        {'w': 0.0}
    """
    TsvM().check_tasks(len(task_vectors))
    stack = VectorStack(task_vectors)
    found = {}
    for name in stack.places:
        rows = stack.rows(name)
        if _is_decomposed(rows):
            left, values, right = _triplets(rows)
            one = torch.eye(len(values), dtype=torch.float64)
            found[name] = float(((left.T @ left - one) * values @ (right.T @ right - one)).abs().sum())
    return found


def _is_decomposed(rows: torch.Tensor) -> bool:
    return rows.ndim == 3 and min(rows.shape[1:]) >= len(rows)


def _triplets(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading left vectors (m, k), values (k) and right vectors (n, k) of all tasks, k at most r T."""
    rank = min(rows.shape[1:]) // len(rows)
    left, values, right = [], [], []
    for row in rows:
        u, s, vt = torch.linalg.svd(row, full_matrices=False)
        # Of a task of lower rank (an adapter) the further vectors are any basis of the null space.
        kept = min(rank, int((s > s[0] * max(row.shape) * torch.finfo(s.dtype).eps).sum()))
        left.append(u[:, :kept])
        values.append(s[:kept])
        right.append(vt[:kept].T)
    return torch.cat(left, dim=1), torch.cat(values), torch.cat(right, dim=1)


def _nearest_orthonormal(columns: torch.Tensor) -> torch.Tensor:
    p, _, qt = torch.linalg.svd(columns, full_matrices=False)
    nearest: torch.Tensor = p @ qt
    return nearest
