r"""Tubes: bounds round a path of weights that is known beforehand, predicted or recorded, instead of a ball.

Let c_0 = theta_0, c_1 .. c_{k-1} be any float64 weights, `P_e = c_e - theta_0`, and G_e the gradient computed at c_e,
within `gamma_e` of the exact one. The exact iterates obey `tau_s = -shrunk_s theta_0 - sum_e c[s,e] g(theta_e)`, so

    tau_s - P_s = delta_s - sum_e c[s,e] ( g(theta_e) - g(c_e) + g(c_e) - G_e ),
    delta_s = -shrunk_s theta_0 - sum_e c[s,e] G_e - P_s        (the defect of the path, computed),

and with h_e a bound of the Hessian on the ball of radius X_e round c_e, which holds theta_e,

    X_s = ||delta_s|| + sum_e c[s,e] ( h_e X_e + gamma_e ),   X_0 = 0.

No ball has to be found: the deviation X_e is known before h_e is needed. The error vector of the first-order prediction
is `-sum_e c[k,e] (G_e - G_0)` up to `sum_e c[k,e] (h_e X_e + gamma_e + gamma_0)`: a bound from both sides.

The path may be the one that gradient descent takes in float64 (*simulated*: the certificate then costs as many
gradients as the epochs it speaks about, knows everything that float64 knows, and only rounding is left to bound), or
the weights of a recorded run. Either way `X_k` also bounds how far those weights are from those of exact arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from tvgrad.bounds.certificates.closed_form import Start
from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.vector_sums import decayed, scaled_sum, weighted
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.losses.base import UnknownLoss
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import SUM_MARGIN, UNIT_ROUNDOFF, gamma, round_up
from tvgrad.update_rules.base import Array

TUBE_STEPS = 1000  # a gradient each

# A Hessian bound measured at an old centre serves as long as all that it lets the tube grow is this factor, or this
# small a share of the distance from theta_0: measuring at a new centre costs as much as dozens of gradients.
EASY_GROWTH = 0.1
EASY_SHARE = 1e-5


class TubeForm(CertificateForm[Start]):
    """The two-sided form round the path that the rule takes in float64."""

    simulates: ClassVar[bool] = True
    cost: ClassVar[str] = "a gradient"
    most_steps: ClassVar[float] = TUBE_STEPS

    def attempt(self, case: Start) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds, from both sides.
        """
        tube = TubeBuilder([case.problem], case.coefficients).build()
        return Form.of_error(self.name, *tube.error(case.coefficients.steps), radius=tube.furthest)


@dataclass
class Tube:
    """A path and how far the exact iterates can be from it.

    Attributes:
        coefficients: of the rule's steps.
        centres: c_e, e < k.
        gradients: G_e with their errors, decay included.
        deviations: X_e, e < k.
        hessian_norms: h_e, e < k.
        end_deviation: X_k for the path's end `-shrunk_k theta_0 - sum_e c[k,e] G_e`, or for the recorded one, rounding
            included.
        furthest: the largest distance of the tube from theta_0.
    """

    coefficients: StepCoefficients
    centres: list[torch.Tensor] = field(default_factory=list)
    gradients: list[BoundedVector] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    hessian_norms: list[float] = field(default_factory=list)
    end_deviation: float = math.nan
    furthest: float = 0.0

    def error(self, step: int) -> tuple[BoundedVector, float]:
        """The error of the first-order prediction.

        Args:
            step: s, at most as many as there are centres.

        Returns:
            `-sum_e c[s,e] (G_e - G_0)` with all rounding, and how far the tube's width lets the exact one be off.
        """
        row = self.coefficients.matrix[step, :step]
        start, *later = self.gradients[:step]
        differences = [BoundedVector(torch.zeros_like(start.value), 0.0)]
        for one in later:
            value = one.value - start.value
            rounding = 2 * UNIT_ROUNDOFF * round_up(float(value.norm()))
            differences.append(BoundedVector(value, one.error + start.error + rounding))
        norms: Array = np.array([round_up(difference.norm) for difference in differences])
        total = weighted(row, differences, self.coefficients.rounding, norms=norms)
        # Where a training runs away, the widths overflow to infinity: then there is no bound.
        with np.errstate(over="ignore"):
            widths = np.array(self.hessian_norms[:step]) * np.array(self.deviations[:step])
        return BoundedVector(-total.value, total.error), round_up(float(row @ widths))


class TubeBuilder:
    """Makes a tube round the path of a rule on the sum of losses, every gradient times a factor.

    Attributes:
        tube: what is known of it so far; its gradients and Hessian bounds carry the factor.
        gradients: for each loss its own gradients at the centres.
        hessian_norms: for each loss its own Hessian bounds round them.
    """

    def __init__(
        self, problems: Sequence[DerivativeBounds], coefficients: StepCoefficients, factor: float | None = None
    ) -> None:
        """Begin at theta_0.

        Args:
            problems: the losses, all at the same weights.
            coefficients: of the rule's steps, without decay where there is a factor.
            factor: of the sum's gradient; None for one loss as it is.
        """
        self.problems = problems
        self.summed = factor is not None
        self.factor = 1.0 if factor is None else factor
        self.theta = problems[0].network.flat
        self.size = round_up(float(self.theta.norm()))
        self.tube = Tube(coefficients)
        self.gradients: list[list[BoundedVector]] = [[] for _ in problems]
        self.hessian_norms: list[list[float]] = [[] for _ in problems]
        self._anchors = list(problems)
        self._anchor_at = self.theta

    def build(self, recorded: Sequence[torch.Tensor] | None = None) -> Tube:
        """Follow the path.

        Args:
            recorded: flat weights theta_0 .. theta_k, like `network.flat`; None for the path that float64 takes.

        Returns:
            The tube.

        Raises:
            NoCertificate: it grows beyond all bounds, or the path itself runs away.
        """
        tube, steps = self.tube, self.tube.coefficients.steps
        self._enter(self.theta, 0.0)
        for step in range(1, steps + 1):
            predicted, rounding = self._predicted(step)
            deviation = self._spread(step) + rounding
            if recorded is not None:
                centre = recorded[step].double()
                deviation += round_up(float((predicted - (centre - self.theta)).norm()))
            elif step < steps:
                centre = self.theta + predicted
            else:
                tube.end_deviation = deviation
                break
            # both the addition and the subtraction above round by at most u |c| and u |P| a coordinate
            deviation += round_up(4 * UNIT_ROUNDOFF * float(centre.norm() + predicted.norm()))
            if step == steps:
                tube.end_deviation = deviation
                break
            if not math.isfinite(deviation):
                raise NoCertificate(f"the tube grows beyond all bounds at step {step}")
            tube.furthest = max(tube.furthest, round_up(float((centre - self.theta).norm())) + deviation)
            self._enter(centre, deviation)
        return tube

    def _predicted(self, step: int) -> tuple[torch.Tensor, float]:
        """`-shrunk theta_0 - sum c G_e`, computed, and its rounding."""
        rule = self.tube.coefficients
        # the errors of the gradients are part of the spread
        gradients = [BoundedVector(one.value, 0.0) for one in self.tube.gradients]
        total = weighted(rule.matrix[step, :step], gradients, rule.rounding)
        shrunk = float(rule.shrunk[step])
        rounding = total.error + round_up((rule.rounding + 4 * UNIT_ROUNDOFF) * (shrunk * self.size + total.norm))
        return -total.value - shrunk * self.theta, rounding

    def _spread(self, step: int) -> float:
        """`sum_e c[s,e] (h_e X_e + gamma_e)`."""
        tube = self.tube
        each: Array = np.array([
            h * x + g.error for h, x, g in zip(tube.hessian_norms, tube.deviations, tube.gradients, strict=True)
        ])
        return round_up(float(tube.coefficients.matrix[step, :step] @ each))

    def _enter(self, centre: torch.Tensor, deviation: float) -> None:
        """Evaluate gradients and Hessian bounds at a new centre."""
        tube, factor, coupled = self.tube, self.factor, self.tube.coefficients.coupled
        here = [one.at(centre) if tube.centres else one for one in self.problems]
        try:
            found = [one.gradient for one in here]
        except UnknownLoss:  # the targets were checked: it is the logits that are not finite
            reason = f"the training itself runs away: its logits are not finite at step {len(tube.centres)}"
            raise NoCertificate(reason) from None
        bounds = self._hessian_norms_round(here, centre, deviation) if deviation else [0.0 for _ in here]
        for gradients, gradient, hessians, bound in zip(self.gradients, found, self.hessian_norms, bounds, strict=True):
            gradients.append(gradient)
            hessians.append(bound)
        total = scaled_sum(found, factor, roundings=4) if self.summed else found[0]
        tube.centres.append(centre)
        tube.gradients.append(decayed(total, centre, coupled))
        tube.deviations.append(deviation)
        tube.hessian_norms.append(round_up(abs(factor) * sum(bounds), 1e-12) + coupled)

    def _hessian_norms_round(self, here: list[DerivativeBounds], centre: torch.Tensor, deviation: float) -> list[float]:
        """Bounds on the ball round the centre, from the last place where constants were measured if that will do."""
        distance = float((centre - self._anchor_at).norm()) * (1 + gamma(len(centre)) + SUM_MARGIN) + deviation
        bounds = [one.hessian_norm(distance) for one in self._anchors]
        growth = abs(self.factor) * sum(bounds) * float(self.tube.coefficients.totals[-1])
        if growth > EASY_GROWTH and growth * deviation > EASY_SHARE * float((centre - self.theta).norm()):
            self._anchors, self._anchor_at = here, centre
            bounds = [min(bound, one.hessian_norm(deviation)) for bound, one in zip(bounds, here, strict=True)]
        return bounds
