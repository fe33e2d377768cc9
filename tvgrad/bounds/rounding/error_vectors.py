"""Error vectors: a computed batch of vectors with bounds on their distance to what exact arithmetic would have given.

The distance is Euclidean, one for each sample. The rules, with u the unit roundoff and d the number of terms:

- product with a matrix: the incoming error grows by ||W||_2, and each inner product adds at most
  `gamma_d sum |w||h|`, so that the vector of them adds `gamma_d ||W||_F ||h||`;
- a function, entry by entry: the incoming error grows by its Lipschitz constant, and its evaluation adds 64 u times
  its bound (PyTorch's are within a few u) and 64 u of its argument's size. A folded BatchNorm, `scale s + shift`, may
  cancel: `|scale s|` is at most the value's size and |shift|, so that its bound is twice the terms of the shift;
- a sum: both errors, and one rounding of the terms' sizes;
- an entrywise product: `|a|_inf err_b + |b|_inf err_a + err_a err_b`, and one rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from tvgrad.bounds.activations.smooth import Elementwise
from tvgrad.numerics.floats import TINY, UNIT_ROUNDOFF, gamma, upper_norm


@dataclass(frozen=True)
class ErrorVectors:
    """A batch of vectors and their errors.

    Attributes:
        value: as computed, (n, d).
        error: bounds on the distances to the exact ones, (n,).
    """

    value: torch.Tensor
    error: torch.Tensor

    @cached_property
    def size(self) -> torch.Tensor:
        """An upper bound of the computed norms; with the error, of the exact ones."""
        return upper_norm(self.value)

    @cached_property
    def largest(self) -> torch.Tensor:
        """The largest entries in size."""
        return self.value.abs().amax(1)

    def through(self, matrix: torch.Tensor, spectral: float, frobenius: float) -> ErrorVectors:
        """Multiply with a matrix.

        Args:
            matrix: W, (outputs, d).
            spectral: an upper bound of ||W||_2.
            frobenius: of its Frobenius norm.

        Returns:
            W times each vector, (n, outputs).
        """
        error = spectral * self.error + gamma(matrix.shape[1] + 24) * frobenius * self.size + TINY
        return ErrorVectors(self.value @ matrix.T, error)

    def doubled(self) -> ErrorVectors:
        """Twice the vectors, which rounds nothing."""
        return ErrorVectors(2 * self.value, 2 * self.error)

    def plus(self, other: ErrorVectors) -> ErrorVectors:
        """Add.

        Args:
            other: vectors of the same shape.

        Returns:
            The sums.
        """
        total = self.value + other.value
        return ErrorVectors(total, self.error + other.error + 2 * UNIT_ROUNDOFF * (self.size + other.size))

    def times(self, other: ErrorVectors) -> ErrorVectors:
        """Multiply entry by entry.

        Args:
            other: vectors of the same shape.

        Returns:
            The products.
        """
        product = self.value * other.value
        error = self.largest * other.error + other.largest * self.error + self.error * other.error
        return _measured(product, lambda size: error + 2 * UNIT_ROUNDOFF * size + TINY)


def applied(function: Elementwise, z: ErrorVectors, lipschitz: float, bound: float) -> ErrorVectors:
    """Apply a function entry by entry.

    Args:
        function: of float64 tensors.
        z: its arguments.
        lipschitz: a bound of its derivative.
        bound: of the function, or 0 where its size is that of its values.

    Returns:
        The values.
    """
    value = function(z.value)
    fixed = bound * value.shape[1] ** 0.5 + lipschitz * z.size
    return _measured(value, lambda size: lipschitz * z.error + 64 * UNIT_ROUNDOFF * (fixed + size) + TINY)


def _measured(value: torch.Tensor, error_of: Callable[[torch.Tensor], torch.Tensor]) -> ErrorVectors:
    """Vectors whose error grows with their own size, which is measured once."""
    size = upper_norm(value)
    found = ErrorVectors(value, error_of(size))
    found.__dict__["size"] = size
    return found


def nothing_like(like: ErrorVectors) -> ErrorVectors:
    """Zeros.

    Args:
        like: of which shape.

    Returns:
        Exact zeros.
    """
    return ErrorVectors(torch.zeros_like(like.value), torch.zeros_like(like.error))


def total_of(terms: list[ErrorVectors]) -> ErrorVectors:
    """Add several.

    Args:
        terms: at least one.

    Returns:
        The sums.
    """
    first, *rest = terms
    for one in rest:
        first = first.plus(one)
    return first
