r"""Gradient masked averaging: the mean, smaller where the tasks' signs disagree (arXiv 2201.11986, 2411.18607)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added, checked_number


@dataclass(frozen=True)
class MaskedMean(Method):
    r"""The mean times a mask: 1 where the signs' agreement is at least `agreement`, the agreement itself elsewhere.

    It is $|\frac{1}{T} \sum_t \mathrm{sign}\, \tau_t|$, coordinate by coordinate.
    """

    agreement: float = 0.4

    name: ClassVar[str] = "masked_mean"
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "agreement", checked_number(self.agreement, "agreement", least=0, most=1))

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        agreed = added(torch.sign(rows)).abs_().div_(len(rows))
        mask = torch.where(agreed >= self.agreement, 1.0, agreed)
        return added(rows, into=rows[0]).div_(len(rows)).mul_(mask)
