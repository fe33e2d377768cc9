"""The closed forms of a certificate: bounds of gradient and Hessian on a ball that holds the iterates.

With D_e a bound of ||theta_e - theta_0|| and R the radius of the ball, `D_e = ||shrunk_e theta_0|| + S_e G(R)`. If
`max_{e<k} D_e <= R`, then by induction all iterates before the last lie in the ball, and the error of the first-order
prediction is at most `H(R) sum_e c[k,e] D_e` (mean value theorem). G and H bound the gradient and the Hessian on the
ball; three forms take them from different arguments.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from tvgrad.bounds.certificates.expansion_point import ExpansionPoint
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.verified_ball import ATTEMPTS, HUGE, LOCAL_ATTEMPTS, verified_ball
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds, UniformBounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.numerics.floats import round_up

Start = ExpansionPoint[DerivativeBounds]


class ClosedForm(CertificateForm[Start]):
    """A closed form.

    Attributes:
        attempts: how often the ball is enlarged before it is given up.
    """

    attempts: ClassVar[int] = ATTEMPTS

    @abstractmethod
    def constants(self, case: Start, radius: float) -> tuple[float, float]:
        """Bound gradient and Hessian, decay included.

        Args:
            case: what is known at theta_0.
            radius: of the ball.

        Returns:
            G and H.
        """

    def attempt(self, case: Start) -> Form:
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

    def constants(self, case: Start, radius: float) -> tuple[float, float]:
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

    def constants(self, case: Start, radius: float) -> tuple[float, float]:
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

    def constants(self, case: Start, radius: float) -> tuple[float, float]:
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
        return min(plain, case.gradient.upper + round_up(radius * hessian, 1e-12)), hessian


def _with_decay(case: Start, radius: float, bounds: UniformBounds | LayerBounds) -> tuple[float, float]:
    """Bounds of the loss with `coupled/2 ||theta||^2` added."""
    coupled = case.coefficients.coupled
    pull = coupled * (round_up(float(case.theta.norm())) + radius)
    return bounds.gradient_norm + round_up(pull, 1e-12), bounds.hessian_norm + coupled
