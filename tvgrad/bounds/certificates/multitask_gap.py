r"""Certificates for the gap between task arithmetic and multitask training, `theta_TA - theta_MT`, from both sides.

Task t moves by `tau_t^s = -sum_e c[s,e] g_t(theta_t^e)`, and multitask descent on `sum_t L_t` with its rate times
alpha by `tau_MT^s = -alpha sum_e c[s,e] sum_t g_t(theta_MT^e)`. Their gap is exactly

    theta_TA - theta_MT = -alpha sum_e c[k,e] sum_t ( g_t(theta_t^e) - g_t(theta_MT^e) ).

- *closed*: on a ball that holds all iterates, with d_{t,e} a bound of ||theta_t^e - theta_MT^e||,
  `d_{t,s} <= sum_e c[s,e] ( H_t d_{t,e} + ||(1 - alpha) g_t(theta_MT^e) - alpha sum_{t' != t} g_t'(theta_MT^e)|| )`
  and the gap is at most `|alpha| sum_t sum_e c[k,e] H_t d_{t,e}`.
- *quadratic*, *cubic*: with q_t the rule on a model of L_t at theta_0 and q_MT that of `alpha sum_t L_t`, whose
  first-order parts cancel in `alpha sum_t q_t - q_MT`: this vector, up to `|alpha| sum_t X_t + X_MT` (module
  model_paths).
- *tube*: one tube for each task and one for multitask descent; the gap is what float64 finds, up to the tubes' widths.

The coefficient of the second-order term, `C_k` in `theta_TA - theta_MT = -alpha eta^2 C_k + O(eta^3)`, is at most
`k (k-1)/2 sum_t H_t ( |alpha| sum_{t' != t} G_t' + |alpha - 1| G_t )` on the same ball.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, Plan, plan_of
from tvgrad.bounds.certificates.expansion_point import Start
from tvgrad.bounds.certificates.forms import (
    ATTEMPTS,
    GROWTH,
    HUGE,
    Form,
    attempt,
    lost,
    without,
)
from tvgrad.bounds.certificates.taylor_models import MODEL_STEPS, ModelPath
from tvgrad.bounds.certificates.tubes import TUBE_STEPS, Tube, simulated_tube, summed_tube
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.errors import TvgradError
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma
from tvgrad.results import Result
from tvgrad.update_rules.base import Array, UpdateRule


@dataclass(frozen=True)
class GapCertificate(Result):
    """Bounds on `||theta_TA - theta_MT||` after k epochs, for the iterates of exact arithmetic.

    Attributes:
        upper_bound: of the gap.
        lower_bound: of the gap.
        method: the form that gave the upper bound.
        radius: of a ball round theta_0 that holds all iterates before the last.
        coefficient_bound: an upper bound of ||C_k||, or NaN where the closed form has no ball or the rule is not
            gradient descent.
        forms: every form with its bounds, or the reason why it gives none.
    """

    upper_bound: float
    lower_bound: float
    method: str
    radius: float
    coefficient_bound: float
    forms: tuple[Form, ...] = ()

    def row(self) -> dict[str, object]:
        """The numbers and words by name; the forms are left out."""
        return {name: value for name, value in super().row().items() if name != "forms"}


def multitask_gap(
    problems: Sequence[DerivativeBounds], rule: UpdateRule | float, epochs: int, alpha: float, simulate: bool = True
) -> GapCertificate:
    """Bound the gap between task arithmetic and multitask training, before training.

    Args:
        problems: one for each task, all at the same weights.
        rule: a linear rule without weight decay, or the learning rate of gradient descent.
        epochs: k.
        alpha: the merging coefficient.
        simulate: also simulate all runs in float64 and bound what rounding can have changed; without it all forms use
            theta_0 alone.

    Returns:
        The best bounds.

    Raises:
        TvgradError: there are no tasks, their weights differ, or alpha is not a finite number.
        NoCertificate: no form gives a bound; the message says why.
    """
    if not problems:
        raise TvgradError("there are no tasks: give one FeedForward for each")
    if not math.isfinite(alpha):
        raise TvgradError(f"alpha must be a finite number, not {alpha!r}")
    first = problems[0].network
    for other in problems[1:]:
        same = other.network.parts == first.parts and torch.equal(other.network.flat, first.flat)
        if not same:
            raise TvgradError("the tasks start from different weights: give all the same pretrained model")
    plan = plan_of(rule, epochs)
    if plan.coupled or plan.shrunk.any():
        raise NoCertificate(
            "with weight decay, merged task vectors and multitask training shrink the weights by different amounts, "
            "and there is no certificate for their gap: leave weight decay out"
        )
    forms: list[Form] = []
    coefficient = math.nan
    try:
        form, coefficient = _closed(problems, plan, alpha)
        forms.append(form)
    except NoCertificate as reason:
        forms.append(Form("closed", reason=str(reason)))
    if all(problem.has_data for problem in problems):
        if plan.steps <= MODEL_STEPS:
            forms.append(attempt("quadratic", lambda: _of_models("quadratic", problems, plan, alpha)))
            forms.append(attempt("cubic", lambda: _of_models("cubic", problems, plan, alpha)))
        if simulate and plan.steps <= TUBE_STEPS:
            forms.append(attempt("tube", lambda: _tubes(problems, plan, alpha)))
    found = [form for form in forms if form.exists]
    if not found:
        raise NoCertificate(without(forms))
    best = min(found, key=lambda form: form.upper)
    lower = max(form.lower for form in found)
    return GapCertificate(best.upper, lower, best.name, best.radius, coefficient, tuple(forms))


def _closed(problems: Sequence[DerivativeBounds], plan: Plan, alpha: float) -> tuple[Form, float]:
    """The closed form, and the bound of C_k on its ball."""
    size, steps = abs(alpha), plan.steps
    furthest = float(plan.totals[:-1].max())
    radius = 0.0
    for _ in range(ATTEMPTS):
        gradients: Array = np.array([problem.gradient_norm(radius) for problem in problems])
        if not gradients.max() < HUGE:
            break
        reached = furthest * max(float(gradients.max()), size * float(gradients.sum())) * (1 + 1e-9)
        if reached > radius:
            radius = GROWTH * reached
            continue
        hessians: Array = np.array([problem.hessian_norm(radius) for problem in problems])
        pulls = size * (gradients.sum() - gradients) + abs(1 - alpha) * gradients
        left = np.zeros((steps, len(problems)))
        total = 0.0
        for step in range(steps):
            apart = plan.coefficients[step, :step] @ left[:step]
            left[step] = hessians * apart + pulls
            total += float(plan.coefficients[steps, step]) * float(hessians @ apart)
        # only for constant rates is the sum over the steps that of the text
        plain = bool(np.allclose(plan.coefficients[steps], plan.coefficients[steps, 0], rtol=1e-14, atol=0.0))
        coefficient = steps * (steps - 1) / 2 * float(hessians @ pulls) * (1 + 1e-9) if plain else math.nan
        return Form("closed", size * total * (1 + 1e-9), 0.0, radius), coefficient
    raise NoCertificate(lost(radius))


class _Summed:
    """`alpha sum_t L_t` at theta_0, as far as a quadratic form asks for it."""

    def __init__(self, problems: Sequence[DerivativeBounds], alpha: float) -> None:
        self.problems, self.alpha = problems, alpha
        self.network = problems[0].network
        self.gradient = self._sum([problem.gradient for problem in problems])

    def products(self, directions: list[torch.Tensor]) -> list[BoundedVector]:
        each = [problem.products(directions) for problem in self.problems]
        return [self._sum(list(parts)) for parts in zip(*each, strict=True)]

    def hessian_norm(self) -> float:
        return abs(self.alpha) * sum(problem.hessian_norm() for problem in self.problems) * (1 + 1e-12)

    def twice_along(self, direction: torch.Tensor) -> BoundedVector:
        return self._sum([problem.twice_along(direction) for problem in self.problems])

    def local(self, radius: float) -> LayerBounds:
        return self._bounds([problem.local(radius) for problem in self.problems])

    def third_changes(self, radius: float) -> LayerBounds:
        return self._bounds([problem.third_changes(radius) for problem in self.problems])

    def _bounds(self, each: list[LayerBounds]) -> LayerBounds:
        size = abs(self.alpha)
        third = sum((one.thirds for one in each), torch.zeros_like(each[0].thirds))
        margin = max(one.margin for one in each) + gamma(len(each) + 4)
        return LayerBounds(
            size * torch.stack([one.gradient for one in each]).sum(0),
            size * torch.stack([one.hessian for one in each]).sum(0),
            size * third,
            margin,
        )

    def _sum(self, parts: list[BoundedVector]) -> BoundedVector:
        value = self.alpha * torch.stack([one.value for one in parts]).sum(0)
        sizes = sum(one.norm for one in parts)
        error = sum(one.error for one in parts) + gamma(len(parts) + 8) * sizes
        return BoundedVector(value, abs(self.alpha) * error * (1 + 1e-9))


def _of_models(name: str, problems: Sequence[DerivativeBounds], plan: Plan, alpha: float) -> Form:
    together = _Summed(problems, alpha)
    total = torch.zeros_like(problems[0].network.flat)
    error = size = rest = furthest = 0.0
    losses: list[tuple[DerivativeBounds | _Summed, float]] = [(problem, alpha) for problem in problems]
    for problem, weight in [*losses, (together, -1.0)]:
        cubic = name == "cubic"
        path = ModelPath(Start(problem, plan, problem.hessian_norm()), cubic)
        radius, apart = path.verified(problem.local, problem.third_changes if cubic else None)
        bent = path.error(plan.steps)
        total.add_(bent.value, alpha=weight)
        error += abs(weight) * bent.error
        size += abs(weight) * bent.norm
        rest += abs(weight) * apart
        furthest = max(furthest, radius)
    gap = BoundedVector(total, (error + gamma(len(problems) + 8) * size) * (1 + 1e-9))
    rest *= 1 + 1e-9
    return Form(name, gap.upper + rest, max(0.0, gap.lower - rest), furthest)


def _tubes(problems: Sequence[DerivativeBounds], plan: Plan, alpha: float) -> Form:
    tasks = [simulated_tube(problem, plan) for problem in problems]
    together, parts = summed_tube(problems, plan, alpha)
    total = torch.zeros_like(problems[0].network.flat)
    error = width = 0.0
    for tube, (gradients, hessians) in zip(tasks, parts, strict=True):
        found, wide = _difference(tube, gradients, hessians, together, plan)
        total += found.value
        error += found.error
        width += wide
    error += gamma(len(problems) + 4) * float(total.norm()) + 4 * UNIT_ROUNDOFF * error
    scaled = BoundedVector(
        alpha * total, (abs(alpha) * error + 4 * UNIT_ROUNDOFF * float((alpha * total).norm())) * (1 + 1e-9)
    )
    width *= abs(alpha) * (1 + 1e-9)
    furthest = max(tube.furthest for tube in [*tasks, together])
    return Form("tube", scaled.upper + width, max(0.0, scaled.lower - width), furthest)


def _difference(
    tube: Tube, gradients: list[BoundedVector], hessians: list[float], together: Tube, plan: Plan
) -> tuple[BoundedVector, float]:
    """`-sum_e c[k,e] (g_t(theta_t^e) - g_t(theta_MT^e))`: what float64 finds, its rounding, and the tubes' widths."""
    steps = plan.coefficients[plan.steps]
    total = torch.zeros_like(gradients[0].value)
    error = width = size = 0.0
    for e, weight in enumerate(map(float, steps)):
        if e == 0:
            continue  # both start at theta_0, where the gradients are the same
        difference = tube.gradients[e].value - gradients[e].value
        norm = float(difference.norm()) * (1 + 1e-9)
        total.add_(difference, alpha=-weight)
        size += weight * norm
        error += weight * (tube.gradients[e].error + gradients[e].error + 2 * UNIT_ROUNDOFF * norm)
        width += weight * (tube.hessian_norms[e] * tube.strays[e] + hessians[e] * together.strays[e])
    error += (plan.rounding + gamma(plan.steps + 4)) * size
    return BoundedVector(total, error * (1 + 1e-9)), width * (1 + 1e-9)
