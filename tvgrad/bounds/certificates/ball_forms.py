"""Forms of a certificate on a ball that holds the iterates, made of bounds of derivatives alone.

*Closed*: let D_e be a bound of ||theta_e - theta_0||, R the radius of the ball, G and H bounds of the gradient and the
Hessian on it. With `D_e = ||shrunk_e theta_0|| + S_e G(R)` and `max_{e<k} D_e <= R`, by induction all iterates before
the last lie in the ball, and the error of the first-order prediction is at most `H(R) sum_e c[k,e] D_e` (mean value
theorem). Three forms take G and H from different arguments.

*Remainder*: `g_e - g_0 = H_0 tau_e + r_e` with `||r_e|| <= rho/2 ||tau_e||^2` (the integral of `(1-t) D3[tau, tau]`),
and `tau_e = p_e - sum_j c[e,j] (g_j - g_0)`, so that the error vector is `-H_0 sum_e c[k,e] p_e` up to
`sum_e c[k,e] (h_0 E_e + r_e)`. The path is p_e; the known part of the deviation is `||H_0 sum_j c[e,j] p_j||`.
*Layer-wise*, with d the layer norms of p_e and D3 the layers' third-derivative constants,
`r_e <= 1/2 ( ||D3[., d, d]|| + 2 ||D3[., ., d]||_2 E_e + rho E_e^2 )`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tvgrad.bounds.certificates.expansion_point import TaskExpansion
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.verified_ball import (
    ATTEMPTS,
    HUGE,
    LOCAL_ATTEMPTS,
    ThirdDerivative,
    deviation_on_ball,
    verified_ball,
)
from tvgrad.bounds.derivatives.uniform_bounds import UniformBounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, round_up


class ClosedForm(CertificateForm[TaskExpansion]):
    """A closed form.

    Attributes:
        attempts: how often the ball is enlarged before it is given up.
    """

    attempts: ClassVar[int] = ATTEMPTS

    @abstractmethod
    def constants(self, case: TaskExpansion, radius: float) -> tuple[float, float]:
        """Bound gradient and Hessian, decay included.

        Args:
            case: what is known at theta_0.
            radius: of the ball.

        Returns:
            G and H.
        """

    def attempt(self, case: TaskExpansion) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds.
        """
        rule = case.coefficients
        decay = rule.shrunk[:-1] * round_up(float(case.theta.norm()))

        def evaluate(radius: float) -> tuple[float, float]:
            gradient, hessian = self.constants(case, radius)
            if not gradient < HUGE:
                return math.inf, math.inf
            distances = round_up(decay + rule.totals[:-1] * gradient)
            return round_up(hessian * float(rule.matrix[rule.steps] @ distances)), float(distances.max())

        upper, radius = verified_ball(evaluate, attempts=self.attempts)
        return Form(self.name, upper, 0.0, radius)


class UniformForm(ClosedForm):
    """The closed form whose constants use the largest input norm alone."""

    needs_data: ClassVar[bool] = False

    def constants(self, case: TaskExpansion, radius: float) -> tuple[float, float]:
        """Bound gradient and Hessian for any inputs.

        Args:
            case: what is known at theta_0.
            radius: of the ball.

        Returns:
            G and H.
        """
        return _with_decay(case, radius, case.problem.closed_form(radius))


class WorstCaseForm(ClosedForm):
    """The closed form whose constants use the norms of all inputs."""

    needs_data: ClassVar[bool] = False

    def constants(self, case: TaskExpansion, radius: float) -> tuple[float, float]:
        """Bound gradient and Hessian for inputs of these norms.

        Args:
            case: what is known at theta_0.
            radius: of the ball.

        Returns:
            G and H.
        """
        return _with_decay(case, radius, case.problem.worst_case(radius, third=False))


class LocalForm(ClosedForm):
    """The closed form whose constants are those of the samples."""

    attempts: ClassVar[int] = LOCAL_ATTEMPTS

    def constants(self, case: TaskExpansion, radius: float) -> tuple[float, float]:
        """Bound gradient and Hessian by what is known of the samples.

        Args:
            case: what is known at theta_0.
            radius: of the ball.

        Returns:
            G and H.
        """
        coupled = case.coefficients.coupled
        hessian = case.problem.hessian_norm(radius) + coupled
        plain = case.problem.gradient_norm(radius) + round_up(coupled * (float(case.theta.norm()) + radius))
        return min(plain, case.gradient.upper + round_up(radius * hessian, FEW_OPERATIONS_MARGIN)), hessian


def _with_decay(case: TaskExpansion, radius: float, bounds: UniformBounds | LayerBounds) -> tuple[float, float]:
    """Bounds of the loss with `coupled/2 ||theta||^2` added."""
    coupled = case.coefficients.coupled
    pull = coupled * (round_up(float(case.theta.norm())) + radius)
    return bounds.gradient_norm + round_up(pull, FEW_OPERATIONS_MARGIN), bounds.hessian_norm + coupled


@dataclass(frozen=True)
class RemainderForm(CertificateForm[TaskExpansion]):
    """The asymptotically exact form, with third derivatives as one number or layer by layer.

    Attributes:
        layerwise: whether to use them layer by layer.
    """

    layerwise: bool

    def attempt(self, case: TaskExpansion) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds, from both sides.
        """
        path = [case.first_order(step) for step in range(case.coefficients.steps)]
        *earlier, error = case.second_orders
        norms = np.array([one.upper for one in path])
        layers = case.layer_norms(path) if self.layerwise else None
        rest, radius = deviation_on_ball(
            case,
            norms,
            np.array([one.upper for one in earlier]),
            higher_order=lambda radius: ThirdDerivative(case.problem.local(radius), norms, layers).twice,
        )
        return Form.of_error(self.name, error, rest, radius=radius)
