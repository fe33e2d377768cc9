r"""RegMean: the linear layer whose outputs are nearest to those of every task's layer (arXiv 2212.09849)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.measured import MeasuredMethod
from tvgrad.merging.method import added, checked_share


@dataclass(frozen=True)
class RegMean(MeasuredMethod):
    r"""$W' = (\sum_t G_t)^{-1} \sum_t G_t W_t'$ for linear layers and convolutions, G the Gram matrices of inputs.

    Entries of G off the diagonal are multiplied with `kept`, as published. Where the sum of the G is singular, the
    solution nearest to the mean. Tensors that are no such layer's weight are averaged. G is a mean over samples, so
    that every task counts alike however much data it has.
    """

    name: ClassVar[str] = "regmean"
    kept: float = 0.9

    def __post_init__(self) -> None:
        checked_share(self.kept, "the share of off-diagonal entries that is kept")

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        grams, mean = self.measurements.grams(name), rows.mean(0)
        if grams is None:
            return mean
        by_group = grams if grams.ndim == 4 else grams.unsqueeze(1)
        damped = self.kept * by_group + (1 - self.kept) * torch.diag_embed(by_group.diagonal(dim1=-2, dim2=-1))
        groups, inputs = by_group.shape[1], by_group.shape[-1]
        # Each group's outputs, one column an output: (tasks, groups, inputs, outputs).
        columns = rows.reshape(len(rows), groups, -1, inputs).transpose(2, 3)
        middle = mean.reshape(groups, -1, inputs).transpose(1, 2)
        missing = added(damped @ (columns - middle))
        # The pseudo-inverse adds nothing along directions that no task's inputs have.
        found = middle + torch.linalg.pinv(added(damped), hermitian=True) @ missing
        return torch.as_tensor(found.transpose(1, 2).reshape(mean.shape))
