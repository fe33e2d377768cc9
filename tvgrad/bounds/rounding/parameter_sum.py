"""Parameter sums: a vector in parameter space with a bound on its error, and how such vectors are summed over samples.

A sum over the samples is one of outer products `p h'`: their errors follow the product rule, and adding up n of them
rounds by at most gamma_n of the sum of their norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tvgrad.bounds.network.network import Network
from tvgrad.bounds.rounding.error_vectors import ErrorVectors
from tvgrad.numerics.floats import TINY, UNIT_ROUNDOFF, gamma, round_up


@dataclass(frozen=True)
class BoundedVector:
    """A vector in parameter space and how far it can be from the exact one.

    Attributes:
        value: like `Network.flat`.
        error: a bound on the Euclidean distance.
    """

    value: torch.Tensor
    error: float

    @property
    def norm(self) -> float:
        """The computed norm, and what underflow can take from it."""
        norm = float(self.value.norm())
        # one that is not zero needs no second look
        return norm + TINY * (norm > 0 or bool(self.value.any()))

    @property
    def upper(self) -> float:
        """An upper bound of the exact vector's norm."""
        return (self.norm * (1 + gamma(len(self.value) + 4)) + self.error) * (1 + 4 * UNIT_ROUNDOFF)

    @property
    def lower(self) -> float:
        """A lower bound of the exact vector's norm."""
        return max(
            0.0, ((self.norm - 2 * TINY) * (1 - gamma(len(self.value) + 4)) - self.error) * (1 - 4 * UNIT_ROUNDOFF)
        )


class ParameterSum:
    """A sum over samples in parameter space, with its error."""

    def __init__(self, network: Network) -> None:
        """Begin with zero.

        Args:
            network: says where the parameters are.
        """
        self.network = network
        self.value = torch.zeros(network.parameters, dtype=torch.float64)
        self.errors = torch.zeros(len(network.parts), dtype=torch.float64)
        self._sizes, self._terms = torch.zeros_like(self.errors), 0

    def add(self, index: int, p: ErrorVectors, h: ErrorVectors | None, rounding: float) -> None:
        """Add the sum of `p h'` (or of p) to the part of one parameter.

        Args:
            index: its layer.
            p: what multiplies the change of z, (n, outputs).
            h: what multiplies that of the weight, (n, inputs); None for a bias.
            rounding: relative error of a sum over the samples.
        """
        self._terms += 1
        for number, (layer, weight, where) in enumerate(self.network.parts):
            if (layer, weight) != (index, h is not None):
                continue
            g = self.network.layers[index]
            share, gain = g.shared, g.gain
            value = p.value if g.gains is None else p.value * g.gains
            if share is not None:  # a sum over positions, whose norm is at most that of the adjoint
                gain *= share.bias_gain
                rounding += gamma(share.positions + 8)
            if h is None:
                total = value.sum(0)
                self.value[where] += total if share is None else share.collect_offset(total)
                size = p.size
                error = p.error + rounding * size
            else:
                total = value.T @ h.value
                self.value[where] += total.flatten() if share is None else share.collect(total)
                size = p.size * h.size
                error = p.error * (h.size + h.error) + p.size * h.error + rounding * size
            self.errors[number] += gain * float(error.sum())
            self._sizes[number] += gain * float(size.sum())

    def mean(self, divisor: float, samples: int) -> BoundedVector:
        """Divide by the divisor, which carries a relative error of n u at most.

        Args:
            divisor: of the mean.
            samples: n.

        Returns:
            The mean.
        """
        value = self.value / divisor
        # each addition rounds a partial sum, which is at most the sum of all sizes
        errors = self.errors + gamma(samples + self._terms + 8) * self._sizes
        error = round_up((float(errors.norm()) + TINY * bool(errors.any())) / divisor)
        return BoundedVector(value, error)
