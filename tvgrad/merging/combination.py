"""Combination: a sparsifier, and a consensus over what it leaves: TIES, DARE, breadcrumbs and their mixtures."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import override

from tvgrad.merging.method import Method, added
from tvgrad.merging.sign_election import elect_signs
from tvgrad.merging.sparsifier import Sparsifier
from tvgrad.merging.stack import Stack

IN_CACHE, LEAST_BLOCK = 1 << 19, 1 << 13
"""Numbers of all tasks that are merged at once: the processor's cache holds some times so many. Fewer coordinates would
leave more time to the calls than to the work."""
ALIGNED = 64
"""Random numbers of 64 bits serve so many coordinates: blocks begin at multiples."""


@dataclass(frozen=True)
class Combination(Method):
    """Base of methods that drop entries first, and then add what is left or elect signs over it."""

    elected: ClassVar[bool] = False
    """Whether signs are elected; else what is left is added."""

    @abstractmethod
    def sparsifier(self) -> Sparsifier:
        """Say which entries are left.

        Returns:
            The sparsifier with this method's options.
        """

    @override
    def for_tensor(self, stack: Stack, name: str) -> Method:
        return SparseTensor(self.sparsifier().for_tensor(stack, name), self.elected)

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        return SparseTensor(self.sparsifier().on(rows), self.elected).combine(rows, name, start)


@dataclass(frozen=True)
class SparseTensor(Method):
    """A combination of one tensor, whose sparsifier knows what it has to of the whole."""

    sparsifier: Sparsifier
    elected: bool

    name: ClassVar[str] = "combination"
    elementwise: ClassVar[bool] = True

    @override
    def combine(self, rows: torch.Tensor, name: str, start: int) -> torch.Tensor:
        flat = rows.reshape(len(rows), -1)
        if self.elected:
            size = max(LEAST_BLOCK, IN_CACHE // len(flat) // ALIGNED * ALIGNED)
            for begin in range(0, flat.shape[1], size):
                block = flat[:, begin : begin + size]
                self.sparsifier.apply(block, name, start + begin)
                elect_signs(block)
            total = flat[0]
        else:
            self.sparsifier.apply(flat, name, start)
            # In the memory that is there: new memory for each block costs more than the sum. A dropped entry is +0.
            total = added([flat[0].add_(0.0), *flat[1:]], into=flat[0])
        if self.sparsifier.share != 1:
            total.div_(self.sparsifier.share)
        return total.reshape(rows.shape[1:])
