r"""Certificates for the gap between task arithmetic and multitask training, `theta_TA - theta_MT`, from both sides.

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

The coefficient of the second-order term, `C_k` in `theta_TA - theta_MT = -alpha eta^2 C_k + O(eta^3)`, is at most
`k (k-1)/2 sum_t H_t ( |alpha| sum_{t' != t} G_t' + |alpha - 1| G_t )` on the ball of the closed form.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients, coefficients_of
from tvgrad.bounds.certificates.expansion_point import ExpansionPoint, SummedLoss
from tvgrad.bounds.certificates.form import CertificateForm, Form, ResultOfForms, attempt_all, best_of
from tvgrad.bounds.certificates.taylor_models import MODEL_STEPS, TaylorPath
from tvgrad.bounds.certificates.tubes import TUBE_STEPS, Tube
from tvgrad.bounds.certificates.verified_ball import ATTEMPTS, GROWTH, HUGE, verified_ball
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma, round_up
from tvgrad.update_rules.base import Array, UpdateRule


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
                return None, math.inf
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
        tasks = [Tube([problem], case.coefficients).follow() for problem in case.problems]
        multitask = Tube(case.problems, case.coefficients, case.alpha).follow()
        total = torch.zeros_like(case.problems[0].network.flat)
        error = width = size_of_terms = 0.0
        for task, tube in enumerate(tasks):
            found, wide = _difference(tube, multitask, task)
            size_of_terms += found.norm
            total += found.value
            error += found.error
            width += wide
        error += gamma(len(tasks) + 4) * size_of_terms + 4 * UNIT_ROUNDOFF * error
        gap = case.alpha * total
        scaled = BoundedVector(gap, round_up(size * error + 4 * UNIT_ROUNDOFF * float(gap.norm())))
        furthest = max(tube.furthest for tube in [*tasks, multitask])
        return Form.of_error(self.name, scaled, width * round_up(size), radius=furthest)


def _difference(alone: Tube, multitask: Tube, task: int) -> tuple[BoundedVector, float]:
    """`-sum_e c[k,e] (g_t(theta_t^e) - g_t(theta_MT^e))`: what float64 finds, its rounding, and the tubes' widths."""
    rule = alone.coefficients
    total = torch.zeros_like(alone.gradients[0].value)
    error = width = size = 0.0
    for e in range(1, rule.steps):  # both start at theta_0, where the gradients are the same
        weight = float(rule.matrix[rule.steps, e])
        gradient, (other, other_hessian_norm) = alone.gradients[e], multitask.parts[e][task]
        difference = gradient.value - other.value
        norm = round_up(float(difference.norm()))
        total.add_(difference, alpha=-weight)
        size += weight * norm
        error += weight * (gradient.error + other.error + 2 * UNIT_ROUNDOFF * norm)
        width += weight * (alone.hessian_norms[e] * alone.deviations[e] + other_hessian_norm * multitask.deviations[e])
    error += (rule.rounding + gamma(rule.steps + 4)) * size
    return BoundedVector(total, round_up(error)), round_up(width)


GAP_FORMS: tuple[CertificateForm[Gap], ...] = (
    GapClosedForm("closed"),
    GapTaylorForm("quadratic", cubic=False),
    GapTaylorForm("cubic", cubic=True),
    GapTubeForm("tube"),
)


@dataclass(frozen=True, repr=False)
class GapCertificate(ResultOfForms):
    """Bounds on `||theta_TA - theta_MT||` after k epochs, for the iterates of exact arithmetic.

    Attributes:
        upper_bound: of the gap.
        lower_bound: of the gap.
        method: the form that gave the upper bound.
        radius: of a ball round theta_0 that holds all iterates before the last.
        coefficient_bound: an upper bound of ||C_k||, or NaN where the closed form has no ball or the rule is not
            gradient descent.
        forms: every form with its bounds, or the reason why it gives none.

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward, multitask_gap_bound
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> tasks = [FeedForward(model, inputs, targets), FeedForward(model, -inputs, targets)]
        >>> gap = multitask_gap_bound(tasks, 0.01, epochs=2, alpha=0.4)
        >>> gap.upper_bound == min(form.upper for form in gap.forms)
        True
    """

    upper_bound: float
    lower_bound: float
    method: str
    radius: float
    coefficient_bound: float
    forms: tuple[Form, ...] = ()


def multitask_gap_bound(
    problems: Sequence[DerivativeBounds], rule: UpdateRule | float, epochs: int, *, alpha: float, simulate: bool = True
) -> GapCertificate:
    """Bound the gap between task arithmetic and multitask training, before training.

    Args:
        problems: one for each task, all at the same weights.
        rule: a linear rule without weight decay, or the learning rate of gradient descent.
        epochs: k.
        alpha: the merging coefficient.
        simulate: also simulate all runs in float64 and bound what rounding can have changed; without it all forms use
            the pretrained weights alone.

    Returns:
        The best bounds.

    Raises:
        TvgradError: there are no tasks, their weights differ, or alpha is not a finite number.
        NoCertificate: no form gives a bound; the message says why.

    Examples:
        >>> import torch
        >>> from tvgrad.bounds import FeedForward, multitask_gap_bound
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)).double()
        >>> inputs, targets = torch.eye(4, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        >>> tasks = [FeedForward(model, inputs, targets), FeedForward(model, -inputs, targets)]
        >>> gap = multitask_gap_bound(tasks, 0.01, epochs=5, alpha=0.4)
        >>> 0 < gap.lower_bound <= gap.upper_bound < 1.001 * gap.lower_bound
        True
    """
    if not problems:
        raise TvgradError("there are no tasks: give one FeedForward for each")
    if not math.isfinite(alpha):
        raise TvgradError(f"alpha must be a finite number, not {alpha!r}")
    first = problems[0].network
    for other in problems[1:]:
        if other.network.parts != first.parts or not torch.equal(other.network.flat, first.flat):
            raise TvgradError("the tasks start from different weights: give all the same pretrained model")
    rule_coefficients = coefficients_of(rule, epochs)
    if rule_coefficients.coupled or rule_coefficients.shrunk.any():
        raise NoCertificate(
            "with weight decay, merged task vectors and multitask training shrink the weights by different amounts, "
            "and there is no certificate for their gap: leave weight decay out"
        )
    gap = Gap(problems, rule_coefficients, alpha)
    has_data = all(problem.has_data for problem in problems)
    scale = round_up(abs(alpha) * float(rule_coefficients.totals[-1]) * sum(one.gradient_norm() for one in problems))
    forms = attempt_all(
        GAP_FORMS, gap, totals=rule_coefficients.totals, has_data=has_data, simulate=simulate, scale=scale
    )
    best, lower = best_of(forms)
    return GapCertificate(best.upper, lower, best.name, best.radius, _coefficient_bound(gap, forms[0]), forms)


def _coefficient_bound(gap: Gap, closed: Form) -> float:
    rule = gap.coefficients
    last = rule.matrix[rule.steps]
    # only for constant rates is the sum over the steps that of the text
    if not closed.exists or not np.allclose(last, last[0], rtol=1e-14, atol=0.0):
        return math.nan
    total = float(gap.hessian_norms(closed.radius) @ gap.pulls(closed.radius))
    return round_up(rule.steps * (rule.steps - 1) / 2 * total)


def multitask_gap(
    problems: Sequence[DerivativeBounds], rule: UpdateRule | float, epochs: int, alpha: float, simulate: bool = True
) -> GapCertificate:
    """The former name of `multitask_gap_bound`, to be removed in the release after 0.1.

    Args:
        problems: as there.
        rule: as there.
        epochs: as there.
        alpha: as there.
        simulate: as there.

    Returns:
        The best bounds.
    """
    message = "tvgrad.bounds.multitask_gap is now multitask_gap_bound: call that, with alpha as a keyword"
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return multitask_gap_bound(problems, rule, epochs, alpha=alpha, simulate=simulate)
