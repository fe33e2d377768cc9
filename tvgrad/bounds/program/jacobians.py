"""Jacobian: the derivative of one cut of a program in another, for each sample: a matrix, or one block for each token.

Where every step between the two works on each vector along the last axis alone, the Jacobian has one block for each
such vector, and one row of the identity serves all of them at once: with 16 tokens of 48 numbers there are 48 rows in
the place of 768.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from tvgrad.bounds.network.spectral_norm import spectral_norms
from tvgrad.bounds.program.operation import norm
from tvgrad.numerics.floats import gamma, round_up

SQUARINGS = 4
SQUARINGS_OF_MANY = 1
FEW_ROWS = 256  # of a matrix whose spectral norm costs little


@dataclass(frozen=True)
class Jacobian:
    """Computed Jacobians of some samples.

    Attributes:
        matrix: (n, rows, columns), or (n, tokens, rows, columns), the diagonal blocks.
        error: upper bounds of the Frobenius distance to the exact one, anywhere in the ball, (n,).
    """

    matrix: torch.Tensor
    error: torch.Tensor

    @property
    def blocks(self) -> bool:
        """Whether there are diagonal blocks alone."""
        return self.matrix.ndim == 4

    @property
    def numbers(self) -> int:
        """How many numbers the larger of the two cuts has."""
        rows, columns = self.matrix.shape[-2:]
        return max(rows, columns) * (self.matrix.shape[1] if self.blocks else 1)

    @cached_property
    def norms(self) -> torch.Tensor:
        """Upper bounds of the spectral norms, anywhere in the ball, (n,)."""
        if not bool(torch.isfinite(self.frobenius()).all()):
            return torch.full((len(self.matrix),), torch.inf, dtype=torch.float64)
        many = not self.blocks and min(self.matrix.shape[-2:]) > FEW_ROWS
        found = spectral_norms(self.matrix, SQUARINGS_OF_MANY if many else SQUARINGS)
        return round_up((found.amax(1) if self.blocks else found) + self.error)

    def frobenius(self) -> torch.Tensor:
        """Upper bounds of the Frobenius norms, of the largest block where there are blocks.

        Returns:
            (n,).
        """
        found = self.matrix.flatten(2).norm(dim=2).amax(1) if self.blocks else norm(self.matrix)
        return round_up(found + self.error)

    def after(self, before: Jacobian) -> Jacobian:
        """Multiply with the Jacobian of what comes before.

        Args:
            before: of the earlier stretch.

        Returns:
            The product.
        """
        mine, other = self.matrix, before.matrix
        if self.blocks and not before.blocks:
            parts = other.reshape(len(other), mine.shape[1], mine.shape[3], -1)
            product = (mine @ parts).reshape(len(other), -1, other.shape[-1])
        elif before.blocks and not self.blocks:
            tokens, size = other.shape[1:3]
            parts = mine.reshape(len(mine), -1, tokens, size).transpose(1, 2)
            product = (parts @ other).transpose(1, 2).reshape(len(mine), mine.shape[1], -1)
        else:
            product = mine @ other
        rounding = gamma(mine.shape[-1] + 2) * norm(mine) * norm(other)
        return Jacobian(product, round_up(self.norms * before.error + self.error * before.norms + rounding))
