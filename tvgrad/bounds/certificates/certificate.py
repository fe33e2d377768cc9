"""Certificates: before training, how far k epochs can take a task vector from its first-order prediction.

`certify` tries every form that applies and keeps the least upper and the largest lower bound; `Certificate.forms` says
what each of them gave, and why the others do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, Plan, plan_of
from tvgrad.bounds.certificates.expansion_point import Start
from tvgrad.bounds.certificates.forms import LOCAL_ATTEMPTS, Form, attempt, closed, remainder, without
from tvgrad.bounds.certificates.taylor_models import MODEL_STEPS, model_form
from tvgrad.bounds.certificates.tubes import TUBE_STEPS, Tube, simulated_tube, tube_along, tube_round
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.results import Result
from tvgrad.update_rules.base import Array, UpdateRule

TUBE = "tube"
_OTHER_START = "the recorded weights do not start at the problem's own: build it from the first of them"


@dataclass(frozen=True)
class Certificate(Result):
    """Bounds on `||theta_k - theta_0 - p_k||`, p_k the first-order prediction (gradient descent: `-eta k g_0`).

    They hold for the iterates of exact arithmetic, started from the weights as stored; a run in floating point adds
    its own rounding.

    Attributes:
        radius: of a ball round theta_0 that holds the iterates before the last.
        error_bound: an upper bound of the error.
        lower_bound: a lower bound of it.
        method: the form that gave the upper bound.
        closed_form_bound: what the uniform closed form gives, for comparison; infinity where it has no ball.
        rounding: for a certificate from a run, a bound on how far the recorded last-but-one weights are from exact
            ones; NaN before training.
        forms: every form with its bounds, or the reason why it gives none.
    """

    radius: float
    error_bound: float
    lower_bound: float
    method: str
    closed_form_bound: float
    rounding: float = math.nan
    forms: tuple[Form, ...] = ()

    @property
    def from_start(self) -> float:
        """The least upper bound of the forms that know theta_0 alone; infinity where none of them has a ball."""
        return min((form.upper for form in self.forms if form.name != TUBE), default=math.inf)

    def row(self) -> dict[str, Any]:
        """The numbers and words by name; the forms are left out."""
        return {name: value for name, value in super().row().items() if name != "forms"}


@dataclass(frozen=True)
class StepBound:
    """What a tube round recorded weights says of one of their steps.

    Attributes:
        error: an upper bound of `||theta_s - theta_0 - p_s||` for the exact iterate.
        stray: an upper bound of the distance between the exact iterate and the recorded weights after s steps.
    """

    error: float
    stray: float


def certify(problem: DerivativeBounds, rule: UpdateRule | float, epochs: int, simulate: bool = True) -> Certificate:
    """Bound the error of the first-order prediction before training.

    Args:
        problem: the network with its data.
        rule: a linear rule making one step an epoch, or the learning rate of gradient descent.
        epochs: k.
        simulate: also try a tube round the path that float64 takes, which costs k gradients, as much as the training;
            without it all forms use theta_0 alone.

    Returns:
        The best bounds.

    Raises:
        NoCertificate: no form gives a bound; the message says why, form by form.
    """
    plan = plan_of(rule, epochs)
    forms = [attempt("closed, uniform", lambda: _uniform(problem, plan)), *_worst_forms(problem, plan)]
    if problem.has_data:
        forms += _local_forms(problem, plan)
        if simulate and plan.steps <= TUBE_STEPS:
            forms.append(attempt(TUBE, lambda: _of_tube(TUBE, simulated_tube(problem, plan))))
        elif simulate:
            forms.append(Form(TUBE, reason=f"left out: it takes a gradient an epoch, at most {TUBE_STEPS}"))
    return _best(forms)


def certify_run(problem: DerivativeBounds, rule: UpdateRule | float, weights: Sequence[torch.Tensor]) -> Certificate:
    """Bound the same error after training, by a tube round recorded weights.

    Args:
        problem: the network with its data, at theta_0.
        rule: the rule that was followed, one step an epoch.
        weights: flat weights theta_0 .. theta_{k-1}, like `network.flat`.

    Returns:
        Bounds for the iterates of exact arithmetic, and how far the recorded ones are from them.

    Raises:
        NoCertificate: the first weights are not the problem's, or the tube grows beyond all bounds.
    """
    if not len(weights) or not torch.equal(weights[0].double(), problem.network.flat):
        raise NoCertificate(_OTHER_START)
    plan = plan_of(rule, len(weights))
    tube = tube_round(problem, plan, weights)
    form = _of_tube("a posteriori", tube)
    uniform = attempt("closed, uniform", lambda: _uniform(problem, plan))
    return Certificate(form.radius, form.upper, form.lower, form.name, uniform.upper, tube.strays[-1], (uniform, form))


def certify_steps(
    problem: DerivativeBounds, rule: UpdateRule | float, weights: Sequence[torch.Tensor]
) -> tuple[list[StepBound], str]:
    """Bound the error after each step of recorded weights, by one tube round all of them.

    Args:
        problem: the network with its data, at theta_0.
        rule: the rule that was followed, one step an epoch.
        weights: flat weights theta_0 .. theta_k, like `network.flat`.

    Returns:
        Bounds for the steps 1 .. k, or for fewer, and why there are no more.

    Raises:
        NoCertificate: the first weights are not the problem's, or the rule is not linear.
    """
    if not len(weights) or not torch.equal(weights[0].double(), problem.network.flat):
        raise NoCertificate(_OTHER_START)
    tube, strays, reason = tube_along(problem, plan_of(rule, len(weights) - 1), weights)
    found: list[StepBound] = []
    for step, stray in enumerate(strays, start=1):
        error, width = tube.error(step)
        if not math.isfinite(error.upper + width + stray):
            return found, f"the tube grows beyond all bounds at step {step}"
        found.append(StepBound(error.upper + width, stray))
    return found, reason


def _best(forms: Sequence[Form]) -> Certificate:
    found = [form for form in forms if form.exists]
    if not found:
        raise NoCertificate(without(forms))
    best = min(found, key=lambda form: form.upper)
    lower = max(form.lower for form in found)
    return Certificate(best.radius, best.upper, lower, best.name, forms[0].upper, math.nan, tuple(forms))


def _scales(problem: DerivativeBounds, plan: Plan) -> tuple[Array, Array, Array]:
    """c[k, .], S_e and ||shrunk_e theta_0||, e < k."""
    size = float(problem.network.flat.norm()) * (1 + 1e-9)
    return plan.coefficients[plan.steps], plan.totals[:-1], plan.shrunk[:-1] * size


def _with_decay(
    problem: DerivativeBounds, plan: Plan, constants: Callable[[float], tuple[float, float]]
) -> Callable[[float], tuple[float, float]]:
    """Constants of the loss with `coupled/2 ||theta||^2` added."""
    size = float(problem.network.flat.norm()) * (1 + 1e-9)

    def decayed(radius: float) -> tuple[float, float]:
        gradient, hessian = constants(radius)
        return gradient + plan.coupled * (size + radius) * (1 + 1e-12), hessian + plan.coupled

    return decayed if plan.coupled else constants


def _uniform(problem: DerivativeBounds, plan: Plan) -> Form:
    def constants(radius: float) -> tuple[float, float]:
        found = problem.closed_form(radius)
        return found.gradient_norm, found.hessian_norm

    return closed("closed, uniform", *_scales(problem, plan), _with_decay(problem, plan, constants))


def _worst_forms(problem: DerivativeBounds, plan: Plan) -> list[Form]:
    def constants(radius: float) -> tuple[float, float]:
        found = problem.worst_case(radius, third=False)
        return found.gradient_norm, found.hessian_norm

    name = "closed, worst case"
    return [attempt(name, lambda: closed(name, *_scales(problem, plan), _with_decay(problem, plan, constants)))]


def _local_forms(problem: DerivativeBounds, plan: Plan) -> list[Form]:
    start = Start(problem, plan, problem.hessian_norm())

    def constants(radius: float) -> tuple[float, float]:
        hessian = problem.hessian_norm(radius) + plan.coupled
        plain = problem.gradient_norm(radius) + plan.coupled * (float(start.theta.norm()) + radius) * (1 + 1e-9)
        return min(plain, start.gradient.upper + radius * hessian * (1 + 1e-12)), hessian

    forms = [
        attempt("closed, local", lambda: closed("closed, local", *_scales(problem, plan), constants, LOCAL_ATTEMPTS)),
        attempt("remainder", lambda: remainder("remainder", start, problem.local, layerwise=False)),
        attempt("layer-wise", lambda: remainder("layer-wise", start, problem.local, layerwise=True)),
    ]
    if plan.steps > MODEL_STEPS:
        reason = f"left out: it takes a product an epoch, at most {MODEL_STEPS}"
        return [*forms, Form("quadratic", reason=reason), Form("cubic", reason=reason)]
    forms.append(attempt("quadratic", lambda: model_form("quadratic", start, problem.local)))
    forms.append(attempt("cubic", lambda: model_form("cubic", start, problem.local, problem.third_changes)))
    return forms


def _of_tube(name: str, tube: Tube) -> Form:
    error, width = tube.error()
    return Form(name, error.upper + width, max(0.0, error.lower - width), tube.furthest)
