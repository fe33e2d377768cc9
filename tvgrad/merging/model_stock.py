r"""Model stock: how far the mean is to be trusted, told by the angle between task vectors (arXiv 2403.19522)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, unit

SINGULAR = 1e-6


@dataclass(frozen=True)
class ModelStock(Method):
    r"""$t$ times the mean of the task vectors, $t = T \cos / (1 + (T - 1) \cos)$, tensor by tensor.

    The cosine is the mean over all pairs of tasks. Vectors that are fine-tuned alike but for chance share an angle; the
    nearer it is to a right one, the less of them is common. Below 0 the formula goes the other way, as published;
    where its denominator is 0 (two opposed vectors) the result is.
    """

    name: ClassVar[str] = "model_stock"
    least: ClassVar[int] = 2

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        units = [unit(row) for row in rows]
        cosines = [float(one @ other) for one, other in itertools.combinations(units, 2)]
        cosine = sum(cosines) / len(cosines)
        below = 1 + (len(rows) - 1) * cosine
        return rows.mean(0) * (len(rows) * cosine / below if abs(below) > SINGULAR else 0.0)
