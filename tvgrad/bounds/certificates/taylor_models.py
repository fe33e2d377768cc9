r"""Forms of a certificate that follow the rule on a polynomial model of the loss at theta_0.

With d = theta - theta_0, the *quadratic* model has the gradient `m(d) = g_0 + H_0 d`, the *cubic* one
`m(d) = g_0 + H_0 d + 1/2 D3_0[., d, d]`: vectors in which the samples cancel as they do in training, computed with
their rounding. Let q_e be the rule run on the model, `tau_e = q_e + s_e` what it does on the loss, `||s_e|| <= X_e`.
With the coefficients of the rule, `s_s = -sum_e c[s,e] ( g(theta_e) - m(q_e) )`, and by Taylor's theorem

- quadratic: `g(theta_e) - m(q_e) = H_0 s_e + r_e`, r_e as in module ball_forms;
- cubic: `g(theta_e) - m(q_e) = H_0 s_e + D3_0[., q_e, s_e] + 1/2 D3_0[., s_e, s_e] + w_e`,
  `w_e = int_0^1 (1 - t) ( D3(theta_0 + t tau_e) - D3_0 )[., tau_e, tau_e] dt`.

Let W be the bound of the change of D3 over the ball of radius R and delta the one at radius 0, which is rounding
(`third_changes` of the loss). The bound is convex in the radius, so that at t tau_e the change is at most
`2 delta + t lambda W`, lambda = ||tau_e|| / R <= 1, and `w_e <= (delta + lambda/6 W)[., tau_e, tau_e]`. Hence
`X_s = sum_e c[s,e] ( h_0 X_e + (what is left) )`, all of it layer by layer along q_e. The error vector is
`-sum_e c[k,e] ( m(q_e) - g_0 )` up to X_k, from both sides, on the ball with `max_{e<k} ||q_e|| + X_e <= R`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from tvgrad.bounds.certificates.expansion_point import ExpansionPoint, TaskExpansion
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.vector_sums import weighted
from tvgrad.bounds.certificates.verified_ball import HUGE, NoBall, ThirdDerivative, deviation_on_ball
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF, round_up

MODEL_STEPS = 100  # a product with the Hessian each, and for the cubic model one more of the third derivative


@dataclass(frozen=True)
class TaylorForm(CertificateForm[TaskExpansion]):
    """The two-sided form round the path that the rule takes on a model.

    Attributes:
        cubic: whether the model knows the third derivative.
    """

    cubic: bool

    cost: ClassVar[str] = "a product"
    most_steps: ClassVar[float] = MODEL_STEPS

    def attempt(self, case: TaskExpansion) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds, from both sides.
        """
        path = TaylorPath(case, cubic=self.cubic)
        rest, radius = path.deviation()
        return Form.of_error(self.name, path.error(case.coefficients.steps), rest, radius=radius)


class TaylorPath:
    """The rule run on a model of the loss at theta_0, with all rounding errors.

    Attributes:
        start: what is known at theta_0.
        cubic: whether the model knows the third derivative.
        points: q_e for e < k.
        changes: `m(q_e) - g_0` for e < k.
    """

    def __init__(self, start: ExpansionPoint[Any], *, cubic: bool) -> None:
        """Run the rule.

        Args:
            start: what is known at theta_0.
            cubic: whether the model knows the third derivative.

        Raises:
            NoBall: the path runs away.
        """
        self.start = start
        self.cubic = cubic
        self.points: list[BoundedVector] = []
        self.changes: list[BoundedVector] = []
        for step in range(start.coefficients.steps):
            first, error = start.first_order(step), self.error(step)
            value = first.value + error.value
            if not float(value.norm()) < HUGE:
                raise NoBall(math.inf)
            # the computed point is the centre of the tube: its distance from the exact rule goes into X
            rounding = 2 * UNIT_ROUNDOFF * (first.norm + error.norm)
            self.points.append(BoundedVector(value, first.error + error.error + rounding))
            self.changes.append(self._change(value))

    def _change(self, point: torch.Tensor) -> BoundedVector:
        """`m(q) - g_0`."""
        if not bool(point.any()):  # at theta_0 itself
            return BoundedVector(torch.zeros_like(point), 0.0)
        (change,) = self.start.products([point])
        if not self.cubic:
            return change
        twice = self.start.problem.twice_along(point)
        rounding = 2 * UNIT_ROUNDOFF * (change.norm + twice.norm)
        return BoundedVector(change.value + 0.5 * twice.value, round_up(change.error + 0.5 * twice.error + rounding))

    def error(self, step: int) -> BoundedVector:
        """The model's error of the first-order prediction, `-sum_e c[s,e] ( m(q_e) - g_0 )`.

        Args:
            step: s.

        Returns:
            The vector.
        """
        rule = self.start.coefficients
        if step == 0:
            return BoundedVector(torch.zeros_like(self.start.theta), 0.0)
        total = weighted(rule.matrix[step, :step], self.changes[:step], rule.rounding)
        return BoundedVector(-total.value, total.error)

    def deviation(self) -> tuple[float, float]:
        """Bound how far the iterates are from the path.

        Returns:
            X_k without the rounding of the path's own vectors, and the radius of the ball.
        """
        exact = [BoundedVector(point.value, 0.0) for point in self.points]
        norms, layers = np.array([point.upper for point in exact]), self.start.layer_norms(exact)

        def along(bounds: LayerBounds) -> ThirdDerivative:
            return ThirdDerivative(bounds, norms, layers)

        own = np.array([point.error for point in self.points])
        problem = self.start.problem
        if not self.cubic:
            return deviation_on_ball(self.start, norms, own, higher_order=lambda r: along(problem.local(r)).twice)
        here, rounding = along(problem.local(0.0)), along(problem.third_changes(0.0))

        def cubic(radius: float) -> Callable[[int, float], float]:
            changed = along(problem.third_changes(radius))

            def rest(step: int, deviation: float) -> float:
                reach = float(norms[step]) + deviation
                if not 0 < reach < HUGE:
                    return math.inf if reach else 0.0
                share = 1.0 if reach >= radius else round_up(reach / radius)
                grown = share / 3 * changed.twice(step, deviation) + 2 * rounding.twice(step, deviation)
                return here.beside(step, deviation) + grown

            return rest

        return deviation_on_ball(self.start, norms, own, higher_order=cubic)
