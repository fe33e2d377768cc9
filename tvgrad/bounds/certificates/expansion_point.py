"""What is known at theta_0 when a certificate is made: gradient and products there, decay included, with errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import torch

from tvgrad.bounds.certificates.coefficients import Plan
from tvgrad.bounds.network.network import Network
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma
from tvgrad.update_rules.base import Array


class Differentiable(Protocol):
    """A loss at theta_0: one task's, or a sum of several."""

    @property
    def network(self) -> Network:
        """Where its parameters are."""

    @property
    def gradient(self) -> BoundedVector:
        """Its gradient."""

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        """Its Hessian times vectors.

        Args:
            directions: vectors like theta_0.
        """

    def twice_along(self, direction: torch.Tensor) -> BoundedVector:
        """Its third derivative with a vector in two slots.

        Args:
            direction: a vector like theta_0.
        """


class Start:
    """One problem and one plan, with coupled decay folded into gradient, Hessian and products.

    Attributes:
        problem: the network with its data.
        plan: the rule's coefficients.
        gradient: at theta_0, `g_0 + lambda theta_0`.
        hessian_norm: an upper bound of `||H_0 + lambda I||`.
    """

    def __init__(self, problem: Differentiable, plan: Plan, hessian_norm: float) -> None:
        """Evaluate the gradient.

        Args:
            problem: the network with its data.
            plan: the rule's coefficients.
            hessian_norm: an upper bound of ||H_0||, without decay.
        """
        self.problem = problem
        self.plan = plan
        self.theta = problem.network.flat
        self.gradient = decayed(problem.gradient, self.theta, plan.coupled)
        self.hessian_norm = hessian_norm + plan.coupled

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        """Multiply the Hessian (decay included) with vectors.

        Args:
            directions: vectors like theta_0.

        Returns:
            The products.
        """
        found = self.problem.products(directions)
        return [decayed(one, vector, self.plan.coupled) for one, vector in zip(found, directions, strict=True)]

    def first_order(self, step: int) -> BoundedVector:
        """The first-order displacement `-shrunk theta_0 - S g_0` after some steps.

        Args:
            step: s.

        Returns:
            p_s.
        """
        shrunk, total = float(self.plan.shrunk[step]), float(self.plan.totals[step])
        value = -shrunk * self.theta - total * self.gradient.value
        sizes = shrunk * float(self.theta.norm()) + total * self.gradient.norm
        return BoundedVector(
            value, total * self.gradient.error + (self.plan.rounding + 4 * UNIT_ROUNDOFF) * sizes * (1 + 1e-9)
        )

    @cached_property
    def second_orders(self) -> list[BoundedVector]:
        """`-H_0 sum_e c[s,e] p_e` for s = 0 .. k: two products, of the gradient and of theta_0, serve all."""
        plan, steps = self.plan, self.plan.steps
        decays = bool(plan.shrunk.any())
        first, *rest = self.products([self.gradient.value, self.theta] if decays else [self.gradient.value])
        # the exact gradient differs from the computed one by its error, which the Hessian stretches by h_0 at most
        first = BoundedVector(first.value, first.error + self.hessian_norm * self.gradient.error)
        found = []
        for row in plan.coefficients:
            shares = [float(row @ plan.totals[:steps]), float(row @ plan.shrunk[:steps])]
            terms = list(zip(shares, [first, *rest], strict=False))
            value = sum((share * one.value for share, one in terms), torch.zeros_like(self.theta))
            size = sum(share * one.norm for share, one in terms)
            error = sum(share * one.error for share, one in terms)
            found.append(BoundedVector(value, (error + (2 * plan.rounding + 4 * UNIT_ROUNDOFF) * size) * (1 + 1e-9)))
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


def decayed(vector: BoundedVector, at: torch.Tensor, coupled: float) -> BoundedVector:
    """Add `lambda at`.

    Args:
        vector: a gradient, or a product with the Hessian.
        at: the weights, or the direction.
        coupled: lambda.

    Returns:
        The sum with its rounding.
    """
    if not coupled:
        return vector
    extra = coupled * at
    value = vector.value + extra
    return BoundedVector(
        value, vector.error + 2 * UNIT_ROUNDOFF * float(extra.norm() + value.norm()) * (1 + gamma(len(at)))
    )


def weighted(
    coefficients: Array, vectors: Callable[[int], torch.Tensor], errors: Array, norms: Array, rounding: float
) -> BoundedVector:
    """Sum vectors with nonnegative coefficients.

    Args:
        coefficients: (k,).
        vectors: vector number e.
        errors: (k,) of the vectors.
        norms: (k,) of the computed vectors.
        rounding: relative error of the coefficients.

    Returns:
        The sum, with the errors of vectors, coefficients and summation.
    """
    total = torch.zeros_like(vectors(0))
    for index, coefficient in enumerate(coefficients):
        if coefficient:
            total.add_(vectors(index), alpha=float(coefficient))
    size = float(coefficients @ norms)
    return BoundedVector(
        total, float(coefficients @ errors) + (rounding + gamma(len(coefficients) + 4)) * size * (1 + 1e-9)
    )
