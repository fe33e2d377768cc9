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

With mini-batches g(theta_e) is the gradient of the batch of step e, and G_e, gamma_e and h_e are of that batch. The
first-order prediction is still made with the gradient of all samples: `-sum_e c[k,e] (G_e - G)` in the place of the
error vector, G being that gradient at theta_0. What was measured of each sample at theta_0 serves every batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from tvgrad.bounds.activations.smooth import OutsideValidity
from tvgrad.bounds.certificates.batches import Batches, steps_of
from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients, coefficients_of
from tvgrad.bounds.certificates.expansion_point import TaskExpansion
from tvgrad.bounds.certificates.form import CertificateForm, Form
from tvgrad.bounds.certificates.vector_sums import decayed, scaled_sum, weighted
from tvgrad.bounds.derivatives.derivative_bounds import DerivativeBounds
from tvgrad.bounds.losses.base import UnknownLoss
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, SUM_MARGIN, UNIT_ROUNDOFF, gamma, round_up
from tvgrad.update_rules.base import Array, UpdateRule

if TYPE_CHECKING:
    from typing_extensions import Self

TUBE_STEPS = 1000  # a gradient each

# A Hessian bound measured at an old centre serves as long as all that it lets the tube grow is this factor, or this
# small a share of the distance from theta_0: measuring at a new centre costs as much as dozens of gradients. One from
# norms alone, which costs next to nothing, serves as long as all that it will leave unknown of the gradients is this
# small a share of what has changed in them.
EASY_GROWTH = 0.1
EASY_SHARE = 1e-5
NEGLIGIBLE_SHARE = 1e-4


@dataclass(frozen=True)
class TubeForm(CertificateForm[TaskExpansion]):
    """The two-sided form round the path that the rule takes in float64.

    Attributes:
        batches: positions of the samples of each step; None: all of them.
        rough: whether quick constants do, where they hardly show in the error.
    """

    batches: tuple[torch.Tensor, ...] | None = None
    rough: bool = False

    simulates: ClassVar[bool] = True
    cost: ClassVar[str] = "a gradient"
    most_steps: ClassVar[float] = TUBE_STEPS

    def attempt(self, case: TaskExpansion) -> Form:
        """Find the bounds.

        Args:
            case: what is known at theta_0.

        Returns:
            The bounds, from both sides.
        """
        tube = Tube([case.problem], case.coefficients, batches=self.batches, rough=self.rough).follow()
        return Form.of_error(self.name, *tube.error(case.coefficients.steps), radius=tube.furthest)


class Tube:
    """A path of a rule, and how far the exact iterates can be from it.

    The loss is one, or the sum of several with a factor, which gradients and Hessian bounds of the tube carry.

    Attributes:
        coefficients: of the rule's steps.
        gradients: G_e with their errors, decay included.
        hessian_norms: h_e, e < k.
        parts: for each centre, and each loss without the factor, its gradient and Hessian bound.
        deviations: X_e, e < k, and for a recorded path X_k.
        furthest: the largest distance of the tube from theta_0.
    """

    def __init__(
        self,
        problems: Sequence[DerivativeBounds],
        coefficients: StepCoefficients,
        factor: float | None = None,
        *,
        batches: Sequence[torch.Tensor] | None = None,
        rough: bool = False,
    ) -> None:
        """Begin at theta_0.

        Args:
            problems: the losses, all at the same weights.
            coefficients: of the rule's steps, without decay where there is a factor.
            factor: of the sum; None for one loss as it is.
            batches: positions of the samples of each step; None: all of them.
            rough: whether it may be wider than necessary where that hardly shows in the error: quicker constants do.
        """
        self.coefficients = coefficients
        self.gradients: list[BoundedVector] = []
        self.hessian_norms: list[float] = []
        self.parts: list[list[tuple[BoundedVector, float]]] = []
        self.deviations: list[float] = []
        self.furthest = 0.0
        self._problems, self._factor = problems, factor
        self._size = 1.0 if factor is None else abs(factor)
        self._batches = batches
        self._theta = problems[0].network.flat
        self._rough = rough
        self._anchors, self._anchor_at = [one.rough() for one in problems] if rough else list(problems), self._theta

    def follow(self, recorded: Sequence[torch.Tensor] | None = None) -> Self:
        """Follow the path.

        Args:
            recorded: flat weights theta_0 .. theta_k, like `network.flat`; None for the path that float64 takes.

        Returns:
            This tube.

        Raises:
            NoCertificate: it grows beyond all bounds, or the path itself runs away.
        """
        steps = self.coefficients.steps
        self._enter(self._theta, 0.0)
        for step in range(1, steps if recorded is None else steps + 1):
            centre, deviation = self.reached(step, None if recorded is None else recorded[step].double())
            if not math.isfinite(deviation):
                raise NoCertificate(f"the tube grows beyond all bounds at step {step}")
            if step < steps:
                self.furthest = max(self.furthest, round_up(float((centre - self._theta).norm())) + deviation)
                self._enter(centre, deviation)
            else:
                self.deviations.append(deviation)
        return self

    def error(self, step: int) -> tuple[BoundedVector, float]:
        """The error of the first-order prediction.

        Args:
            step: s, at most as many as there are gradients.

        Returns:
            `-sum_e c[s,e] (G_e - G_0)` with all rounding, and how far the tube's width lets the exact one be off.
        """
        row, start = self.coefficients.matrix[step, :step], self._reference
        differences = [_difference(one, start) for one in self.gradients[:step]]
        norms: Array = np.array([round_up(difference.norm) for difference in differences])
        total = weighted(row, differences, self.coefficients.rounding, norms=norms)
        # Where a training runs away, the widths overflow to infinity: then there is no bound.
        with np.errstate(over="ignore"):
            widths = np.array(self.hessian_norms[:step]) * np.array(self.deviations[:step])
        return BoundedVector(-total.value, total.error), round_up(float(row @ widths))

    def reached(self, step: int, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, float]:
        """Where the training is after a step.

        Args:
            step: s, at most as many as there are gradients.
            weights: recorded ones, flat; None: theta_0 plus what the rule makes of the gradients.

        Returns:
            The weights, and a bound of how far they are from the exact iterate.
        """
        predicted, rounding = self._predicted(step)
        centre = self._theta + predicted if weights is None else weights
        deviation = self._spread(step) + rounding
        if weights is not None:
            deviation += round_up(float((predicted - (centre - self._theta)).norm()))
        # both the addition and the subtraction above round by at most u |c| and u |P| a coordinate
        return centre, deviation + round_up(4 * UNIT_ROUNDOFF * float(centre.norm() + predicted.norm()))

    @cached_property
    def _reference(self) -> BoundedVector:
        """The gradient that the first-order prediction uses: of all samples at theta_0, decay included."""
        if self._batches is None:
            return self.gradients[0]
        return decayed(self._total([one.gradient for one in self._problems]), self._theta, self.coefficients.coupled)

    def _total(self, found: list[BoundedVector]) -> BoundedVector:
        return found[0] if self._factor is None else scaled_sum(found, self._factor, roundings=4)

    def _predicted(self, step: int) -> tuple[torch.Tensor, float]:
        """`-shrunk theta_0 - sum c G_e`, computed, and its rounding."""
        rule = self.coefficients
        # the errors of the gradients are part of the spread
        gradients = [BoundedVector(one.value, 0.0) for one in self.gradients[:step]]
        total = weighted(rule.matrix[step, :step], gradients, rule.rounding)
        shrunk = float(rule.shrunk[step])
        sizes = shrunk * round_up(float(self._theta.norm())) + total.norm
        rounding = total.error + round_up((rule.rounding + 4 * UNIT_ROUNDOFF) * sizes)
        return -total.value - shrunk * self._theta, rounding

    def _spread(self, step: int) -> float:
        """`sum_e c[s,e] (h_e X_e + gamma_e)`."""
        widths = zip(self.hessian_norms, self.deviations, self.gradients, strict=False)
        each: Array = np.array([h * x + g.error for h, x, g in itertools.islice(widths, step)])
        with np.errstate(over="ignore"):  # a tube that grows beyond all bounds is refused by who asks
            return round_up(float(self.coefficients.matrix[step, :step] @ each))

    def _enter(self, centre: torch.Tensor, deviation: float) -> None:
        """Evaluate gradients and Hessian bounds at a new centre."""
        used = None if self._batches is None else self._batches[len(self.gradients)]
        # what was measured of each sample at theta_0 serves all batches
        parts = self._problems if used is None else [one.on(used) for one in self._anchors]
        here = [one.at(centre) if self.gradients else one for one in parts]
        try:
            found = [one.gradient for one in here]
            anchors = self._anchors if used is None else parts
            gradient, bounds = decayed(self._total(found), centre, self.coefficients.coupled), [0.0 for _ in here]
            if deviation:
                change = float((gradient.value - self._reference.value).norm())
                bounds = self._hessian_norms_round(here, anchors, centre, deviation, change)
        except UnknownLoss:  # the targets were checked: it is the logits that are not finite
            reason = f"the training itself runs away: its logits are not finite at step {len(self.gradients)}"
            raise NoCertificate(reason) from None
        except OutsideValidity as why:
            raise NoCertificate(f"at step {len(self.gradients)} {why}") from None
        self.parts.append(list(zip(found, bounds, strict=True)))
        self.deviations.append(deviation)
        self.gradients.append(gradient)
        total = round_up(self._size * sum(bounds), FEW_OPERATIONS_MARGIN)
        self.hessian_norms.append(total + self.coefficients.coupled)

    def _hessian_norms_round(
        self,
        here: list[DerivativeBounds],
        anchors: Sequence[DerivativeBounds],
        centre: torch.Tensor,
        deviation: float,
        change: float,
    ) -> list[float]:
        """Bounds on the ball round the centre, from the last place where constants were measured if that will do."""
        distance = float((centre - self._anchor_at).norm()) * (1 + gamma(len(centre)) + SUM_MARGIN) + deviation
        if self._rough:
            bounds = _each(anchors, lambda one: one.worst_case(distance, third=False).hessian_norm)
            if self._left_unknown(bounds, deviation) <= NEGLIGIBLE_SHARE * change:
                return bounds
        bounds = _each(anchors, lambda one: one.hessian_norm(distance))
        growth, share = self._growth(bounds), EASY_SHARE * float((centre - self._theta).norm())
        if not (growth <= EASY_GROWTH or growth * deviation <= share):
            if self._batches is None:  # the next batch is of other samples
                self._anchors, self._anchor_at = here, centre
            bounds = [min(bound, one.hessian_norm(deviation)) for bound, one in zip(bounds, here, strict=True)]
        return bounds

    def _left_unknown(self, bounds: list[float], deviation: float) -> float:
        """About how far the last gradient is from the computed one, if Hessians of these norms serve to the end."""
        rule, norm = self.coefficients, self._size * sum(bounds)
        each_step = 1 + norm * float(rule.totals[-1]) / rule.steps
        with np.errstate(over="ignore"):
            return float(norm * deviation * np.float64(each_step) ** (rule.steps - len(self.gradients)))

    def _growth(self, bounds: list[float]) -> float:
        """How much of a deviation Hessians of these norms let come back over all steps."""
        return self._size * sum(bounds) * float(self.coefficients.totals[-1])


def _each(problems: Sequence[DerivativeBounds], bound: Callable[[DerivativeBounds], float]) -> list[float]:
    """Bounds round an old centre, where the ball is a larger one: infinite where an activation leaves its range."""
    try:
        return [bound(one) for one in problems]
    except OutsideValidity:
        return [math.inf for _ in problems]


def _difference(one: BoundedVector, start: BoundedVector) -> BoundedVector:
    if one is start:
        return BoundedVector(torch.zeros_like(start.value), 0.0)
    value = one.value - start.value
    rounding = 2 * UNIT_ROUNDOFF * round_up(float(value.norm()))
    return BoundedVector(value, one.error + start.error + rounding)


@dataclass(frozen=True)
class StepBound:
    """What a tube round recorded weights says of one of their steps.

    Attributes:
        error: an upper bound of `||theta_s - theta_0 - p_s||` for the exact iterate.
        deviation: an upper bound of the distance between the exact iterate and the recorded weights after s steps.
    """

    error: float
    deviation: float


def certify_steps(
    problem: DerivativeBounds,
    rule: UpdateRule | float,
    weights: Sequence[torch.Tensor],
    *,
    batches: Batches | None = None,
) -> tuple[list[StepBound], str]:
    """Bound the error after each step of recorded weights, by one tube round all of them.

    With batches the weights are those at the ends of epochs, and the tube is drawn round the path that float64 takes.

    Args:
        problem: the network with its data, at theta_0.
        rule: the rule that was followed, one step an epoch or one a batch.
        weights: flat weights theta_0 .. theta_k, like `network.flat`.
        batches: for each epoch, the positions of the samples of each step.

    Returns:
        Bounds for the steps (with batches: the epochs) 1 .. k, or for fewer, and why there are no more.

    Raises:
        NoCertificate: the first weights are not the problem's, or the rule is not linear.
    """
    if not len(weights) or not torch.equal(weights[0].double(), problem.network.flat):
        raise NoCertificate("the recorded weights do not start at the problem's own: build it from the first of them")
    epochs, reason = len(weights) - 1, ""
    used = None if batches is None else steps_of(batches, epochs, problem.samples)
    ends = list(itertools.accumulate(len(one) for one in batches)) if batches is not None else range(1, epochs + 1)
    tube = Tube([problem], coefficients_of(rule, ends[-1]), batches=used)
    try:
        tube.follow(weights if used is None else None)
    except NoCertificate as why:
        reason = str(why)
    found: list[StepBound] = []
    for step, recorded in zip(ends, weights[1:], strict=True):
        if step > len(tube.gradients):
            break
        (error, width), (_, deviation) = tube.error(step), tube.reached(step, recorded.double())
        if not math.isfinite(error.upper + width + deviation):
            return found, f"the tube grows beyond all bounds at step {step}"
        found.append(StepBound(error.upper + width, deviation))
    return found, reason
