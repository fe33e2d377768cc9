"""What is known at theta_0 when a certificate is made: gradient and products there, decay included, with errors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Generic, TypeVar

import torch

from tvgrad.bounds.certificates.coefficients import StepCoefficients
from tvgrad.bounds.certificates.vector_sums import decayed, scaled_sum
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, UNIT_ROUNDOFF, gamma, round_up


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
        return round_up(
            abs(self._alpha) * sum(problem.hessian_norm() for problem in self._problems), FEW_OPERATIONS_MARGIN
        )

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


Loss = TypeVar("Loss", bound=DerivativeBounds | SummedLoss)


class ExpansionPoint(Generic[Loss]):
    """One loss at theta_0 and one rule, with coupled decay folded into gradient, Hessian and products.

    Attributes:
        problem: the loss, for a single task the network with its data.
        coefficients: of the rule's steps.
        theta: theta_0, flat.
    """

    def __init__(self, problem: Loss, coefficients: StepCoefficients) -> None:
        """Join a loss and the step coefficients of a rule.

        Args:
            problem: the loss.
            coefficients: of the rule's steps.
        """
        self.problem = problem
        self.coefficients = coefficients
        self.theta = problem.network.flat

    @cached_property
    def gradient(self) -> BoundedVector:
        """The gradient at theta_0, `g_0 + lambda theta_0`."""
        return decayed(self.problem.gradient, self.theta, self.coefficients.coupled)

    @property
    def theta_norm(self) -> float:
        """An upper bound of `||theta_0||`."""
        return round_up(float(self.theta.norm()))

    @cached_property
    def hessian_norm(self) -> float:
        """An upper bound of `||H_0 + lambda I||`."""
        return self.problem.hessian_norm() + self.coefficients.coupled

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        """Multiply the Hessian (decay included) with vectors.

        Args:
            directions: vectors like theta_0.

        Returns:
            The products.
        """
        found = self.problem.products(directions)
        coupled = self.coefficients.coupled
        return [decayed(one, vector, coupled) for one, vector in zip(found, directions, strict=True)]

    def first_order(self, step: int) -> BoundedVector:
        """The first-order displacement `-shrunk theta_0 - S g_0` after some steps.

        Args:
            step: s.

        Returns:
            p_s.
        """
        shrunk, total = float(self.coefficients.shrunk[step]), float(self.coefficients.totals[step])
        value = -shrunk * self.theta - total * self.gradient.value
        sizes = shrunk * float(self.theta.norm()) + total * self.gradient.norm
        rounding = round_up((self.coefficients.rounding + 4 * UNIT_ROUNDOFF) * sizes)
        return BoundedVector(value, total * self.gradient.error + rounding)

    @cached_property
    def second_orders(self) -> list[BoundedVector]:
        """`-H_0 sum_e c[s,e] p_e` for s = 0 .. k: two products, of the gradient and of theta_0, serve all."""
        rule = self.coefficients
        decays = bool(rule.shrunk.any())
        first, *rest = self.products([self.gradient.value, self.theta] if decays else [self.gradient.value])
        # the exact gradient differs from the computed one by its error, which the Hessian stretches by h_0 at most
        first = BoundedVector(first.value, first.error + self.hessian_norm * self.gradient.error)
        found = []
        for row in rule.matrix:
            shares = [float(row @ rule.totals[:-1]), float(row @ rule.shrunk[:-1])]
            terms = list(zip(shares, [first, *rest], strict=False))
            value = sum((share * one.value for share, one in terms), torch.zeros_like(self.theta))
            size = sum(share * one.norm for share, one in terms)
            error = sum(share * one.error for share, one in terms)
            found.append(BoundedVector(value, round_up(error + (2 * rule.rounding + 4 * UNIT_ROUNDOFF) * size)))
        return found

    def layer_norms(self, vectors: list[BoundedVector]) -> torch.Tensor:
        """Upper bounds of the norms of vectors' parts in each layer.

        Args:
            vectors: vectors with errors.

        Returns:
            (number of vectors, L).
        """
        trainable = (self.problem.network.layer_norms(torch.ones_like(self.theta)) > 0).double()
        return torch.stack([self.problem.network.layer_norms(one.value) + one.error * trainable for one in vectors])


TaskExpansion = ExpansionPoint[DerivativeBounds]
