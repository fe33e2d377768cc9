r"""WUDI: the merged matrix that interferes least with every task's own rows (arXiv 2503.08099), in closed form.

For each matrix it minimises $\sum_i \|(m - \tau_i) \tau_i'\|_F^2 / \|\tau_i\|_F^2$. With
$A_i = \tau_i' \tau_i / \|\tau_i\|_F^2$ the gradient by m is $2 \sum_i (m - \tau_i) A_i$, which is zero at

    m = m_0 + (sum tau_i A_i - m_0 sum A_i) (sum A_i)^+,

the minimiser nearest to any m_0. A gradient step on a linear layer has rows in the span of its inputs, so that A_i
stands for the Gram matrix of the layer's inputs: RegMean without data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added, unit
from tvgrad.merging.stack import VectorStack

STEPS, RATE = 300, 1e-5
"""The published iteration: Adam at this rate, so many steps, from the sum of the task vectors."""


@dataclass(frozen=True)
class Wudi(Method):
    """WUDI's minimiser that is nearest to the sum of the task vectors; of tensors that are no matrices, the mean."""

    name: ClassVar[str] = "wudi"

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        if rows.ndim != 3:
            return rows.mean(0)
        grams = torch.stack([one.T @ one for one in (unit(row).view_as(row) for row in rows)])
        begin, total = added(rows), added(grams)
        missing = added(rows @ grams) - begin @ total
        return torch.as_tensor(begin + missing @ torch.linalg.pinv(total, hermitian=True))


def wudi_objective(
    task_vectors: Sequence[Mapping[str, torch.Tensor]], merged: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    r"""Evaluate what WUDI minimises, matrix by matrix.

    Args:
        task_vectors: each name -> tensor.
        merged: name -> tensor.

    Returns:
        Name -> $\sum_i \|(m - \tau_i) \tau_i'\|_F^2 / \|\tau_i\|_F^2$, of the matrices.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import wudi, wudi_objective
        >>> vectors = [{"w": torch.diag(torch.tensor(row))} for row in ([3.0, 0.0], [0.0, 2.0])]
        >>> wudi_objective(vectors, wudi(vectors))
        {'w': 0.0}
    """
    stack = VectorStack(task_vectors)
    return {
        name: float(_value(stack.rows(name), merged[name].double()))
        for name, (shape, _) in stack.places.items()
        if len(shape) == 2
    }


def wudi_iterated(rows: torch.Tensor, steps: int = STEPS, rate: float = RATE) -> torch.Tensor:
    """Minimise the same objective as it was published: Adam from the sum of the task vectors.

    Args:
        rows: float64, shape (tasks, m, n).
        steps: of Adam.
        rate: of Adam.

    Returns:
        Where it stops.
    """
    merged = added(rows).requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        _value(rows, merged).backward()
        optimizer.step()
    return merged.detach()


def _value(rows: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
    squares = rows.square().sum((1, 2))
    products = ((merged - rows) @ rows.transpose(1, 2)).square().sum((1, 2))
    return (products / torch.where(squares > 0, squares, 1.0)).sum()  # of a task vector that is zero both are
