"""The loss of multitask training, as far as the models of a certificate ask for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvgrad.bounds.certificates.vector_sums import scaled_sum
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import gamma, round_up


class SummedLoss:
    """`alpha sum_t L_t` at theta_0.

    Attributes:
        network: where the parameters are.
        gradient: at theta_0.
    """

    def __init__(self, problems: Sequence[DerivativeBounds], alpha: float) -> None:
        """Sum the gradients.

        Args:
            problems: the losses.
            alpha: the factor.
        """
        self._problems, self._alpha = problems, alpha
        self.network = problems[0].network
        self.gradient = self._sum([problem.gradient for problem in problems])

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        """Multiply the Hessian with vectors.

        Args:
            directions: vectors like theta_0.

        Returns:
            The products.
        """
        each = [problem.products(directions) for problem in self._problems]
        return [self._sum(parts) for parts in zip(*each, strict=True)]

    def twice_along(self, direction: torch.Tensor) -> BoundedVector:
        """The third derivative with a vector in two slots.

        Args:
            direction: a vector like theta_0.

        Returns:
            The vector.
        """
        return self._sum([problem.twice_along(direction) for problem in self._problems])

    def hessian_norm(self) -> float:
        """An upper bound of the Hessian's norm."""
        return round_up(abs(self._alpha) * sum(problem.hessian_norm() for problem in self._problems), 1e-12)

    def local(self, radius: float) -> LayerBounds:
        """Bounds of the third derivative on a ball.

        Args:
            radius: of the ball.

        Returns:
            The bounds.
        """
        return self._bounds([problem.local(radius) for problem in self._problems])

    def third_changes(self, radius: float) -> LayerBounds:
        """Bounds of the change of the third derivative over a ball.

        Args:
            radius: of the ball.

        Returns:
            The bounds.
        """
        return self._bounds([problem.third_changes(radius) for problem in self._problems])

    def _bounds(self, each: list[LayerBounds]) -> LayerBounds:
        size = abs(self._alpha)
        third = sum((one.thirds for one in each), torch.zeros_like(each[0].thirds))
        margin = max(one.margin for one in each) + gamma(len(each) + 4)
        return LayerBounds(
            size * torch.stack([one.gradient for one in each]).sum(0),
            size * torch.stack([one.hessian for one in each]).sum(0),
            size * third,
            margin,
        )

    def _sum(self, parts: Sequence[BoundedVector]) -> BoundedVector:
        return scaled_sum(parts, self._alpha, roundings=8)
