r"""Tubes: bounds round a path of weights that is known beforehand, predicted or recorded, instead of a ball.

Let c_0 = theta_0, c_1 .. c_{k-1} be any float64 weights, `P_e = c_e - theta_0`, and G_e the gradient computed at c_e,
within `gamma_e` of the exact one. The exact iterates obey `tau_s = -shrunk_s theta_0 - sum_e c[s,e] g(theta_e)`, so

    tau_s - P_s = delta_s - sum_e c[s,e] ( g(theta_e) - g(c_e) + g(c_e) - G_e ),
    delta_s = -shrunk_s theta_0 - sum_e c[s,e] G_e - P_s        (the defect of the path, computed),

and with h_e a bound of the Hessian on the ball of radius X_e round c_e, which holds theta_e,

    X_s = ||delta_s|| + sum_e c[s,e] ( h_e X_e + gamma_e ),   X_0 = 0.

No ball has to be found: X_e is known before h_e is needed. The error vector of the first-order prediction is
`-sum_e c[k,e] (G_e - G_0)` up to `sum_e c[k,e] (h_e X_e + gamma_e + gamma_0)`: a bound from both sides.

The path may be the one that gradient descent takes in float64 (*simulated*: the certificate then costs as many
gradients as the epochs it speaks about, knows everything that float64 knows, and only rounding is left to bound), or
the weights of a recorded run (*a posteriori*). Either way `X_k` also bounds how far those weights are from what exact
arithmetic would have given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, Plan
from tvgrad.bounds.certificates.expansion_point import decayed, weighted
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.losses.base import UnknownLoss
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import UNIT_ROUNDOFF, gamma
from tvgrad.update_rules.base import Array

TUBE_STEPS = 1000  # a gradient each

# A Hessian bound measured at an old centre serves as long as all that it lets the tube grow is this factor, or this
# small a share of the distance from theta_0: measuring at a new centre costs as much as dozens of gradients.
EASY_GROWTH = 0.1
EASY_SHARE = 1e-5


@dataclass
class Tube:
    """A path and how far the exact iterates can be from it.

    Attributes:
        plan: the rule's coefficients.
        centres: c_e, e < k.
        gradients: G_e with their errors, decay included.
        strays: X_e, e < k.
        hessian_norms: h_e, e < k.
        end_stray: X_k for the path's end `-shrunk_k theta_0 - sum_e c[k,e] G_e`, or for the recorded one, rounding
            included.
        furthest: the largest distance of the tube from theta_0.
    """

    plan: Plan
    centres: list[torch.Tensor] = field(default_factory=list)
    gradients: list[BoundedVector] = field(default_factory=list)
    strays: list[float] = field(default_factory=list)
    hessian_norms: list[float] = field(default_factory=list)
    end_stray: float = math.nan
    furthest: float = 0.0

    def error(self, step: int | None = None) -> tuple[BoundedVector, float]:
        """The error of the first-order prediction.

        Args:
            step: s, at most as many as there are centres; None: k.

        Returns:
            `-sum_e c[s,e] (G_e - G_0)` with all rounding, and how far the tube's width lets the exact one be off.
        """
        step = self.plan.steps if step is None else step
        steps = self.plan.coefficients[step, :step]
        start = self.gradients[0]
        differences = [one.value - start.value for one in self.gradients[:step]]
        norms = np.array([float(d.norm()) * (1 + 1e-9) for d in differences])
        errors = np.array([
            one.error + start.error + 2 * UNIT_ROUNDOFF * n for one, n in zip(self.gradients[:step], norms, strict=True)
        ])
        errors[0] = 0.0
        total = weighted(steps, lambda e: differences[e], errors, norms, self.plan.rounding)
        spread = np.array(self.hessian_norms[:step]) * np.array(self.strays[:step])
        width = float(steps @ spread) * (1 + 1e-9)
        return BoundedVector(-total.value, total.error), width


def simulated_tube(problem: DerivativeBounds, plan: Plan) -> Tube:
    """Make a tube round the path that the rule takes in float64.

    Args:
        problem: the network with its data.
        plan: the rule's coefficients.

    Returns:
        The tube.
    """
    return _Builder([problem], plan).build(None)


def tube_round(problem: DerivativeBounds, plan: Plan, weights: Sequence[torch.Tensor]) -> Tube:
    """Make a tube round recorded weights.

    Args:
        problem: the network with its data, at theta_0.
        plan: the rule's coefficients.
        weights: flat weights theta_0 .. theta_{k-1}, like `network.flat`.

    Returns:
        The tube.
    """
    return _Builder([problem], plan).build(list(weights[: plan.steps]))


def tube_along(problem: DerivativeBounds, plan: Plan, weights: Sequence[torch.Tensor]) -> tuple[Tube, list[float], str]:
    """Make a tube round recorded weights, as far as it goes.

    Args:
        problem: the network with its data, at theta_0.
        plan: the rule's coefficients, k steps.
        weights: flat weights theta_0 .. theta_k, like `network.flat`.

    Returns:
        The tube, X_1 .. X_k of the recorded weights or fewer, and why there are no more.
    """
    builder = _Builder([problem], plan)
    try:
        tube = builder.build(list(weights))
    except NoCertificate as reason:
        return builder.tube, builder.tube.strays[1:], str(reason)
    return tube, [*tube.strays[1:], tube.end_stray], ""


def summed_tube(
    problems: Sequence[DerivativeBounds], plan: Plan, factor: float
) -> tuple[Tube, list[tuple[list[BoundedVector], list[float]]]]:
    """Make a tube round the path of the rule on the sum of several losses, every gradient times a factor.

    Args:
        problems: the losses, all at the same weights.
        plan: the rule's coefficients, without decay.
        factor: of the rate.

    Returns:
        The tube, whose gradients and Hessian bounds carry the factor, and for each loss its own gradients at the
        centres and Hessian bounds round them.
    """
    builder = _Builder(problems, plan, factor)
    tube = builder.build(None)
    return tube, list(zip(builder.gradients, builder.hessians, strict=True))


class _Builder:
    def __init__(self, problems: Sequence[DerivativeBounds], plan: Plan, factor: float | None = None) -> None:
        self.problems = problems
        self.summed = factor is not None
        self.factor = 1.0 if factor is None else factor
        self.theta = problems[0].network.flat
        self.size = float(self.theta.norm()) * (1 + 1e-9)
        self.tube = Tube(plan)
        self.gradients: list[list[BoundedVector]] = [[] for _ in problems]
        self.hessians: list[list[float]] = [[] for _ in problems]
        self._anchors = list(problems)
        self._anchor_at = self.theta

    def build(self, recorded: list[torch.Tensor] | None) -> Tube:
        tube, plan = self.tube, self.tube.plan
        for step in range(plan.steps + 1):
            predicted, rounding = self._predicted(step)
            spread = self._spread(step)
            if step == plan.steps and (recorded is None or len(recorded) <= step):
                tube.end_stray = spread + rounding
                break
            if step == 0 or recorded is None:
                centre, defect = self.theta + predicted, 0.0
            else:
                centre = recorded[step].double()
                defect = float((predicted - (centre - self.theta)).norm()) * (1 + 1e-9)
            # both the addition and the subtraction above round by at most u |c| and u |P| a coordinate
            placing = 0.0 if step == 0 else 4 * UNIT_ROUNDOFF * float(centre.norm() + predicted.norm()) * (1 + 1e-9)
            stray = 0.0 if step == 0 else spread + rounding + defect + placing
            if step == plan.steps:
                tube.end_stray = stray
                break
            if not math.isfinite(stray):
                raise NoCertificate(f"the tube grows beyond all bounds at step {step}")
            tube.furthest = max(tube.furthest, float((centre - self.theta).norm()) * (1 + 1e-9) + stray)
            self._enter(centre, stray)
        return tube

    def _predicted(self, step: int) -> tuple[torch.Tensor, float]:
        """`-shrunk theta_0 - sum c G_e`, computed, and its rounding."""
        tube, plan = self.tube, self.tube.plan
        if step == 0:
            return torch.zeros_like(self.theta), 0.0
        norms = np.array([one.norm for one in tube.gradients])
        zeros = np.zeros(step)
        total = weighted(plan.coefficients[step, :step], lambda e: tube.gradients[e].value, zeros, norms, plan.rounding)
        shrunk = float(plan.shrunk[step])
        rounding = total.error + (plan.rounding + 4 * UNIT_ROUNDOFF) * (shrunk * self.size + total.norm) * (1 + 1e-9)
        return -total.value - shrunk * self.theta, rounding

    def _spread(self, step: int) -> float:
        """`sum_e c[s,e] (h_e X_e + gamma_e)`."""
        tube = self.tube
        each: Array = np.array([
            h * x + g.error for h, x, g in zip(tube.hessian_norms, tube.strays, tube.gradients, strict=True)
        ])
        return float(tube.plan.coefficients[step, :step] @ each) * (1 + 1e-9) if step else 0.0

    def _enter(self, centre: torch.Tensor, stray: float) -> None:
        """Evaluate gradients and Hessian bounds at a new centre."""
        tube, factor, coupled = self.tube, self.factor, self.tube.plan.coupled
        here = [one.at(centre) if tube.centres else one for one in self.problems]
        try:
            found = [one.gradient for one in here]
        except UnknownLoss:  # the targets were checked: it is the logits that are not finite
            reason = f"the training itself runs away: its logits are not finite at step {len(tube.centres)}"
            raise NoCertificate(reason) from None
        bounds = self._hessian_norms(here, centre, stray) if stray else [0.0 for _ in here]
        for gradients, gradient, hessians, bound in zip(self.gradients, found, self.hessians, bounds, strict=True):
            gradients.append(gradient)
            hessians.append(bound)
        total = found[0]
        if self.summed:
            value = factor * torch.stack([one.value for one in found]).sum(0)
            sizes = sum(one.norm for one in found)
            error = sum(one.error for one in found) + gamma(len(found) + 4) * sizes
            total = BoundedVector(value, abs(factor) * error * (1 + 1e-9))
        tube.centres.append(centre)
        tube.gradients.append(decayed(total, centre, coupled))
        tube.strays.append(stray)
        tube.hessian_norms.append(abs(factor) * sum(bounds) * (1 + 1e-12) + coupled)

    def _hessian_norms(self, here: list[DerivativeBounds], centre: torch.Tensor, stray: float) -> list[float]:
        """Bounds on the ball round the centre, from the last place where constants were measured if that will do."""
        distance = float((centre - self._anchor_at).norm()) * (1 + gamma(len(centre)) + 1e-9) + stray
        bounds = [one.hessian_norm(distance) for one in self._anchors]
        growth = abs(self.factor) * sum(bounds) * float(self.tube.plan.totals[-1])
        if growth > EASY_GROWTH and growth * stray > EASY_SHARE * float((centre - self.theta).norm()):
            self._anchors, self._anchor_at = here, centre
            bounds = [min(bound, one.hessian_norm(stray)) for bound, one in zip(bounds, here, strict=True)]
        return bounds
