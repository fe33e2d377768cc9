"""Task singular vectors: merge matrices by their leading singular triplets, made orthogonal (arXiv 2412.00081)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.errors import TvgradError
from tvgrad.merging.method import Method, checked_share
from tvgrad.merging.stack import Stack, VectorStack


@dataclass(frozen=True)
class TsvM(Method):
    """TSV-M.

    Of each matrix every task keeps floor(min(shape) / T) singular triplets, or as many as its rank. The left vectors of
    all tasks, side by side, are replaced by the nearest orthonormal columns (Procrustes: P Q' of their singular value
    decomposition), the right ones likewise, and the result is U_perp S V_perp'. Tensors that are no matrices, and
    matrices with fewer rows or columns than there are tasks, are averaged. With `share` (at most 1/T) a task keeps
    floor(share min(shape)) triplets: task vectors that were compressed first.
    """

    share: float | None = None

    name: ClassVar[str] = "tsv_m"
    least: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.share is not None:
            object.__setattr__(self, "share", checked_share(self.share, "share"))

    @override
    def check_stack(self, stack: Stack) -> None:
        super().check_stack(stack)
        if self.share is not None:
            if self.share * stack.tasks > 1:
                raise TvgradError(
                    f"a share of {self.share:g} for each of {stack.tasks} tasks makes more singular vectors than a "
                    f"matrix has: give at most {1 / stack.tasks:.4g}"
                )
            check_ranks(stack, self.share, least=stack.tasks)

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if not _is_decomposed(rows):
            return rows.mean(dim=0)
        left, values, right = _triplets(rows, self.share)
        return (nearest_orthonormal(left) * values) @ nearest_orthonormal(right).T


def check_ranks(stack: Stack, share: float, *, least: int = 1) -> None:
    """Refuse a share of singular triplets that is none.

    Args:
        stack: the task vectors.
        share: of the triplets of each matrix.
        least: smallest number of rows and columns of the matrices that are decomposed.

    Raises:
        TvgradError: of one of these matrices nothing would remain.
    """
    for name, (shape, _) in stack.places.items():
        if len(shape) == 2 and min(shape) >= least and int(share * min(shape)) < 1:
            raise TvgradError(
                f"a share of {share:g} of the {min(shape)} singular triplets of {name!r} is none: give at least "
                f"{math.ceil(1e4 / min(shape)) / 1e4:g}"
            )


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


def _triplets(rows: torch.Tensor, share: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading left vectors (m, k), values (k) and right vectors (n, k) of all tasks, k at most r T."""
    smallest = min(rows.shape[1:])
    rank = smallest // len(rows) if share is None else int(share * smallest)
    left, values, right = [], [], []
    for row in rows:
        u, s, vt = torch.linalg.svd(row, full_matrices=False)
        # Of a task of lower rank (an adapter) the further vectors are any basis of the null space.
        kept = min(rank, int((s > s[0] * max(row.shape) * torch.finfo(s.dtype).eps).sum()))
        left.append(u[:, :kept])
        values.append(s[:kept])
        right.append(vt[:kept].T)
    return torch.cat(left, dim=1), torch.cat(values), torch.cat(right, dim=1)


def nearest_orthonormal(columns: torch.Tensor) -> torch.Tensor:
    """Find the orthonormal columns that are nearest to given ones (Procrustes).

    Args:
        columns: shape (m, k), of rank k.

    Returns:
        `P Q'` of their singular value decomposition.
    """
    p, _, qt = torch.linalg.svd(columns, full_matrices=False)
    nearest: torch.Tensor = p @ qt
    return nearest
