"""LazyCombination: a linear combination of weight vectors that is formed one tensor at a time, when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch

from tvgrad.vectors.algebra import combination

Coefficients: TypeAlias = float | Mapping[str, float]


class LazyCombination(Mapping[str, torch.Tensor]):
    """A sum of vectors with coefficients, of which nothing is kept: vectors larger than the memory are combined so."""

    def __init__(self, *terms: tuple[Coefficients, Mapping[str, torch.Tensor]]) -> None:
        """Remember what to combine.

        Args:
            terms: (coefficient, vector) pairs, as for `combination`; the vectors may be lazy too.
        """
        self._terms = terms

    def __getitem__(self, name: str) -> torch.Tensor:
        """Form one tensor.

        Args:
            name: of the parameter.

        Returns:
            A new float64 tensor, on the first vector's device.
        """
        return combination(*((scale, {name: vector[name]}) for scale, vector in self._terms))[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._terms[0][1])

    def __len__(self) -> int:
        return len(self._terms[0][1])
