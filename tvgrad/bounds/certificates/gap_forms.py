r"""The forms of a certificate for the gap between task arithmetic and multitask training, `theta_TA - theta_MT`.

Task t moves by `tau_t^s = -sum_e c[s,e] g_t(theta_t^e)`, and multitask descent on `sum_t L_t` with its rate times
alpha by `tau_MT^s = -alpha sum_e c[s,e] sum_t g_t(theta_MT^e)`. Their gap is exactly

    theta_TA - theta_MT = -alpha sum_e c[k,e] sum_t ( g_t(theta_t^e) - g_t(theta_MT^e) ).

- *closed*: on a ball that holds all iterates, with d_{t,e} a bound of ||theta_t^e - theta_MT^e||,
  `d_{t,s} <= sum_e c[s,e] ( H_t d_{t,e} + ||(1 - alpha) g_t(theta_MT^e) - alpha sum_{t' != t} g_t'(theta_MT^e)|| )`
  and the gap is at most `|alpha| sum_t sum_e c[k,e] H_t d_{t,e}`.
- *quadratic*, *cubic*: with q_t the rule on a model of L_t at theta_0 and q_MT that of `alpha sum_t L_t`, whose
  first-order parts cancel in `alpha sum_t q_t - q_MT`: this vector, up to `|alpha| sum_t X_t + X_MT` (module
  taylor_models).
- *tube*: one tube for each task and one for multitask descent; the gap is what float64 finds, up to the tubes' widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import StepCoefficients
from tvgrad.bounds.certificates.expansion_point import ExpansionPoint
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.summed_loss import SummedLoss
from tvgrad.bounds.certificates.taylor_models import MODEL_STEPS, TaylorPath
from tvgrad.bounds.certificates.tubes import TUBE_STEPS, Tube, TubeBuilder
from tvgrad.bounds.certificates.verified_ball import ATTEMPTS, GROWTH, HUGE, verified_ball
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up
from tvgrad.update_rules.base import Array


@dataclass(frozen=True)
class Gap:
    """The tasks whose gap is bounded.

    Attributes:
        problems: one for each task, all at theta_0.
        coefficients: of the rule's steps.
        alpha: the merging coefficient.
    """

    problems: Sequence[DerivativeBounds]
    coefficients: StepCoefficients
    alpha: float

    def gradient_norms(self, radius: float) -> Array:
        """G_t.

        Args:
            radius: of the ball.

        Returns:
            For every task an upper bound on the ball.
        """
        return np.array([problem.gradient_norm(radius) for problem in self.problems])

    def hessian_norms(self, radius: float) -> Array:
        """H_t.

        Args:
            radius: of the ball.

        Returns:
            For every task an upper bound on the ball.
        """
        return np.array([problem.hessian_norm(radius) for problem in self.problems])

    def pulls(self, radius: float) -> Array:
        """Bounds of `||(1 - alpha) g_t - alpha sum_{t' != t} g_t'||`.

        Args:
            radius: of the ball.

        Returns:
            For every task an upper bound on the ball.
        """
        gradients = self.gradient_norms(radius)
        others: Array = abs(self.alpha) * (gradients.sum() - gradients)
        return others + abs(1 - self.alpha) * gradients


class GapClosedForm(CertificateForm[Gap]):
    """The closed form."""

    needs_data: ClassVar[bool] = False

    def attempt(self, case: Gap) -> Form:
        """Find the bounds.

        Args:
            case: the tasks.

        Returns:
            The bounds.
        """
        rule, size = case.coefficients, abs(case.alpha)
        furthest = float(rule.totals[:-1].max())

        def reach(radius: float) -> tuple[None, float]:
            gradients = case.gradient_norms(radius)
            if not gradients.max() < HUGE:
                return None, float("inf")
            return None, round_up(furthest * max(float(gradients.max()), size * float(gradients.sum())))

        _, radius = verified_ball(reach, attempts=ATTEMPTS, enlarge=lambda reached: GROWTH * reached)
        hessians, pulls = case.hessian_norms(radius), case.pulls(radius)
        left = np.zeros((rule.steps, len(case.problems)))
        total = 0.0
        for step in range(rule.steps):
            apart = rule.matrix[step, :step] @ left[:step]
            left[step] = hessians * apart + pulls
            total += float(rule.matrix[rule.steps, step]) * float(hessians @ apart)
        return Form(self.name, round_up(size * total), 0.0, radius)


@dataclass(frozen=True)
class GapTaylorForm(CertificateForm[Gap]):
    """The two-sided form round the paths on models of the losses.

    Attributes:
        cubic: whether the models know the third derivative.
    """

    cubic: bool

    cost: ClassVar[str] = "a product"
    most_steps: ClassVar[float] = MODEL_STEPS

    def attempt(self, case: Gap) -> Form:
        """Find the bounds.

        Args:
            case: the tasks.

        Returns:
            The bounds, from both sides.
        """
        total = torch.zeros_like(case.problems[0].network.flat)
        error = size = rest = furthest = 0.0
        losses: list[tuple[DerivativeBounds | SummedLoss, float]] = [(one, case.alpha) for one in case.problems]
        for loss, weight in [*losses, (SummedLoss(case.problems, case.alpha), -1.0)]:
            path = TaylorPath(ExpansionPoint(loss, case.coefficients), cubic=self.cubic)
            deviation, radius = path.deviation()
            part = path.error(case.coefficients.steps)
            total.add_(part.value, alpha=weight)
            error += abs(weight) * part.error
            size += abs(weight) * part.norm
            rest += abs(weight) * deviation
            furthest = max(furthest, radius)
        gap = BoundedVector(total, round_up(error + gamma(len(case.problems) + 8) * size))
        return Form.of_error(self.name, gap, round_up(rest), radius=furthest)


class GapTubeForm(CertificateForm[Gap]):
    """The two-sided form round the paths that float64 takes."""

    simulates: ClassVar[bool] = True
    cost: ClassVar[str] = "a gradient"
    most_steps: ClassVar[float] = TUBE_STEPS

    def attempt(self, case: Gap) -> Form:
        """Find the bounds.

        Args:
            case: the tasks.

        Returns:
            The bounds, from both sides.
        """
        size = abs(case.alpha)
        tasks = [TubeBuilder([problem], case.coefficients).build() for problem in case.problems]
        multitask = TubeBuilder(case.problems, case.coefficients, case.alpha)
        together = multitask.build()
        total = torch.zeros_like(multitask.theta)
        error = width = 0.0
        for tube, gradients, hessians in zip(tasks, multitask.gradients, multitask.hessian_norms, strict=True):
            found, wide = _difference(tube, gradients, hessians, together)
            total += found.value
            error += found.error
            width += wide
        error += gamma(len(tasks) + 4) * float(total.norm()) + 4 * UNIT_ROUNDOFF * error
        gap = case.alpha * total
        scaled = BoundedVector(gap, round_up(size * error + 4 * UNIT_ROUNDOFF * float(gap.norm())))
        furthest = max(tube.furthest for tube in [*tasks, together])
        return Form.of_error(self.name, scaled, width * round_up(size), radius=furthest)


def _difference(
    tube: Tube, gradients: list[BoundedVector], hessian_norms: list[float], together: Tube
) -> tuple[BoundedVector, float]:
    """`-sum_e c[k,e] (g_t(theta_t^e) - g_t(theta_MT^e))`: what float64 finds, its rounding, and the tubes' widths."""
    rule = tube.coefficients
    total = torch.zeros_like(gradients[0].value)
    error = width = size = 0.0
    for e in range(1, rule.steps):  # both start at theta_0, where the gradients are the same
        weight = float(rule.matrix[rule.steps, e])
        difference = tube.gradients[e].value - gradients[e].value
        norm = round_up(float(difference.norm()))
        total.add_(difference, alpha=-weight)
        size += weight * norm
        error += weight * (tube.gradients[e].error + gradients[e].error + 2 * UNIT_ROUNDOFF * norm)
        width += weight * (tube.hessian_norms[e] * tube.deviations[e] + hessian_norms[e] * together.deviations[e])
    error += (rule.rounding + gamma(rule.steps + 4)) * size
    return BoundedVector(total, round_up(error)), round_up(width)
