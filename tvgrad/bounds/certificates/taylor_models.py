r"""Forms of a certificate that follow the rule on a polynomial model of the loss at theta_0.

With d = theta - theta_0, the *quadratic* model has the gradient `m(d) = g_0 + H_0 d`, the *cubic* one
`m(d) = g_0 + H_0 d + 1/2 D3_0[., d, d]`: vectors in which the samples cancel as they do in training, computed with
their rounding. Let q_e be the rule run on the model, `tau_e = q_e + s_e` what it does on the loss, `||s_e|| <= X_e`. By
the plan's coefficients `s_s = -sum_e c[s,e] ( g(theta_e) - m(q_e) )`, and by Taylor's theorem

- quadratic: `g(theta_e) - m(q_e) = H_0 s_e + r_e`, r_e as in module forms;
- cubic: `g(theta_e) - m(q_e) = H_0 s_e + D3_0[., q_e, s_e] + 1/2 D3_0[., s_e, s_e] + w_e`,
  `w_e = int_0^1 (1 - t) ( D3(theta_0 + t tau_e) - D3_0 )[., tau_e, tau_e] dt`.

Let W be the bound of the change of D3 over the ball of radius R and delta the one at radius 0, which is rounding
(`local_constants.third_changes`). The bound is convex in the radius, so that at t tau_e the change is at most
`2 delta + t lambda W`, lambda = ||tau_e|| / R <= 1, and `w_e <= (delta + lambda/6 W)[., tau_e, tau_e]`. Hence
`X_s = sum_e c[s,e] ( h_0 X_e + (what is left) )`, all of it layer by layer along q_e. The error vector is
`-sum_e c[k,e] ( m(q_e) - g_0 )` up to X_k, from both sides, on the ball with `max_{e<k} ||q_e|| + X_e <= R`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.certificates.expansion_point import Start, weighted
from tvgrad.bounds.certificates.forms import HUGE, Along, Form, along_all, fixed_point, lost, third_order
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF
from tvgrad.update_rules.base import Array

MODEL_STEPS = 100  # a product with the Hessian each, and for the cubic model one more of the third derivative

Constants = Callable[[float], LayerBounds]


def model_form(name: str, start: Start, constants: Constants, changes: Constants | None = None) -> Form:
    """The two-sided form round the path of a model.

    Args:
        name: of the form.
        start: what is known at theta_0.
        constants: the third derivative's bounds on a ball, layer by layer.
        changes: those of its change over a ball, for the cubic model; None for the quadratic one.

    Returns:
        The bound, from both sides.

    Raises:
        NoCertificate: no ball was found.
    """  # noqa: DOC502 - raised by fixed_point
    path = ModelPath(start, cubic=changes is not None)
    radius, rest = path.verified(constants, changes)
    error = path.error(start.plan.steps)
    return Form(name, error.upper + rest, max(0.0, error.lower - rest), radius)


class ModelPath:
    """The rule run on a model of the loss at theta_0, with all rounding errors.

    Attributes:
        start: what is known at theta_0.
        points: q_e for e < k.
        changes: `m(q_e) - g_0` for e < k.
    """

    def __init__(self, start: Start, cubic: bool = False) -> None:
        """Run the rule.

        Args:
            start: what is known at theta_0.
            cubic: whether the model knows the third derivative.

        Raises:
            NoCertificate: the path runs away.
        """
        self.start = start
        self.points: list[BoundedVector] = []
        self.changes: list[BoundedVector] = []
        for step in range(start.plan.steps):
            first, bent = start.first_order(step), self.error(step)
            value = first.value + bent.value
            if not float(value.norm()) < HUGE:
                raise NoCertificate(lost(math.inf))
            # the computed point is the centre of the tube: its distance from the exact rule goes into X
            self.points.append(
                BoundedVector(value, first.error + bent.error + 2 * UNIT_ROUNDOFF * (first.norm + bent.norm))
            )
            if not bool(value.any()):  # at theta_0 itself
                self.changes.append(BoundedVector(torch.zeros_like(value), 0.0))
                continue
            (change,) = start.products([value])
            if cubic:
                twice = start.problem.twice_along(value)
                total = change.value + 0.5 * twice.value
                rounding = 2 * UNIT_ROUNDOFF * (change.norm + twice.norm)
                change = BoundedVector(total, (change.error + 0.5 * twice.error + rounding) * (1 + 1e-9))
            self.changes.append(change)

    def error(self, step: int) -> BoundedVector:
        """The model's error of the first-order prediction, `-sum_e c[s,e] ( m(q_e) - g_0 )`.

        Args:
            step: s.

        Returns:
            The vector.
        """
        plan = self.start.plan
        if step == 0:
            return BoundedVector(torch.zeros_like(self.start.theta), 0.0)
        errors = np.array([one.error for one in self.changes[:step]])
        norms = np.array([one.norm for one in self.changes[:step]])
        total = weighted(plan.coefficients[step, :step], lambda e: self.changes[e].value, errors, norms, plan.rounding)
        return BoundedVector(-total.value, total.error)

    def verified(self, constants: Constants, changes: Constants | None = None) -> tuple[float, float]:
        """Bound how far the iterates stray from the path.

        Args:
            constants: the third derivative's bounds on a ball, layer by layer.
            changes: those of its change over a ball, for the cubic model.

        Returns:
            The ball's radius, and X_k without the rounding of the path's own vectors.
        """
        start, plan = self.start, self.start.plan
        exact = [BoundedVector(p.value, 0.0) for p in self.points]
        layers = start.layer_norms(exact)
        norms = np.array([p.upper for p in exact])
        own = np.array([p.error for p in self.points])

        def run(left_over: Callable[[int, float], float]) -> tuple[float, Array]:
            strays, left = np.zeros(plan.steps), np.zeros(plan.steps)
            for step in range(plan.steps):
                strays[step] = own[step] + float(plan.coefficients[step, :step] @ left[:step])
                left[step] = start.hessian_norm * strays[step] + left_over(step, strays[step])
            return float(plan.coefficients[plan.steps] @ left) * (1 + 1e-9), (norms + strays) * (1 + 1e-9)

        def quadratic(bounds: LayerBounds) -> tuple[float, Array]:
            along = along_all(bounds, layers)
            return run(lambda step, stray: third_order(bounds, along, step, norms[step], stray))

        if changes is None:
            rest, radius = fixed_point(quadratic, constants, float(norms.max()))
            return radius, rest
        here, rounding = constants(0.0), changes(0.0)
        centre, dust = along_all(here, layers), along_all(rounding, layers)

        def cubic(ball: tuple[float, LayerBounds]) -> tuple[float, Array]:
            size, widened = ball
            along = along_all(widened, layers)

            def left_over(step: int, stray: float) -> float:
                reach = float(norms[step]) + stray
                if not 0 < reach < HUGE:
                    return math.inf if reach else 0.0
                share = 1.0 if reach >= size else reach / size * (1 + 1e-9)
                grown = share / 3 * third_order(widened, along, step, norms[step], stray)
                grown += 2 * third_order(rounding, dust, step, norms[step], stray)
                return _beside(here, centre, step, stray) + float(grown)

            return run(left_over)

        rest, radius = fixed_point(cubic, lambda size: (size, changes(size)), float(norms.max()))
        return radius, rest


def _beside(bounds: LayerBounds, along: Along, step: int, stray: float) -> float:
    """`||D3_0[., q, s]|| + 1/2 ||D3_0[., s, s]||` for an unknown s beside the known q."""
    rho = bounds.hessian_lipschitz
    if along is None or not (stray < HUGE and rho < math.inf):
        return math.inf
    return float(along[step][1] * stray + 0.5 * rho * stray**2)
