"""A tube round the path that a training takes in double-double arithmetic.

The argument is that of `certificates.tubes`, with centres of 32 digits: gradients of a deep program carry bounds on
their rounding that are far above float64's own, and each step of a tube multiplies what is left by 1 + rate times a
bound of the Hessian, which for a transformer is large. With 32 digits there is room for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients
from tvgrad.bounds.certificates.form import Form
from tvgrad.bounds.program.point import PointBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.double_double import ROUNDING, DoubleDouble, add, multiply
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, gamma, round_up
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.linear import LinearRule

NAME = "tube"


class Measurable(Protocol):
    """What a tube needs to know of a loss."""

    @property
    def flat(self) -> torch.Tensor:
        """Theta_0, one vector."""

    def measure(self, theta: DoubleDouble, radius: float, *, positions: torch.Tensor | None = None) -> PointBounds:
        """Bound gradient and Hessian.

        Args:
            theta: the centre of a ball.
            radius: of the ball.
            positions: of the samples of a mini-batch; None: all samples.

        Returns:
            The gradient at the centre with its error, and a bound of the Hessian's norm on the ball.
        """


def norm_of(vector: DoubleDouble) -> float:
    """An upper bound of a norm.

    Args:
        vector: flat.

    Returns:
        The bound.
    """
    return float(vector.hi.norm()) * (1 + gamma(len(vector.hi) + 16))


class ProgramTube:
    """A path of a rule, and how far the exact iterates can be from it.

    Attributes:
        points: what is known at theta_0 .. theta_(k-1), decay included, of each step's samples.
        reference: what is known at theta_0 of all samples, decay included.
        deviations: X_e, e < k.
        furthest: the largest distance of the tube from theta_0.
    """

    def __init__(
        self,
        problem: Measurable,
        coefficients: StepCoefficients,
        *,
        exact: bool,
        batches: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Begin at theta_0.

        Args:
            problem: the loss.
            coefficients: of the rule's steps.
            exact: whether they carry no rounding error, which those of plain gradient descent do not.
            batches: positions of the samples of each step; None: all of them.
        """
        self.points: list[PointBounds] = []
        self._batches = batches
        self.deviations: list[float] = []
        self.furthest = 0.0
        self._problem, self._rule = problem, coefficients
        self._rounding = 0.0 if exact else coefficients.rounding
        start = problem.flat
        self._theta = DoubleDouble(start, torch.zeros_like(start))

    def follow(self) -> ProgramTube:
        """Follow the path.

        Returns:
            This tube.

        Raises:
            NoCertificate: it grows beyond all bounds.
        """
        self._enter(self._theta, 0.0)
        self.reference = self.points[0]
        if self._batches is not None:
            self.reference = measured(self._problem, self._theta, 0.0, self._rule.coupled)
        for step in range(1, self._rule.steps):
            row = self._rule.matrix[step, :step]
            moved, sizes = self._sum(row, [point.gradient for point in self.points])
            shrunk = float(self._rule.shrunk[step])
            if shrunk:
                decayed = times(self._theta, shrunk)
                moved, sizes = add(moved, decayed), sizes + norm_of(decayed)
            centre = add(self._theta, minus(moved))
            spread = self._spread(row)
            rounding = (self._rounding + (2 * step + 8) * ROUNDING) * sizes + 2 * ROUNDING * norm_of(centre)
            deviation = round_up(spread + rounding)
            if not math.isfinite(deviation):
                raise NoCertificate(f"the tube grows beyond all bounds at step {step}: {self.points[-1].loudest}")
            length = norm_of(moved)
            if self._ahead(step, deviation) > length:
                raise NoCertificate(
                    f"the tube grows wider than the path is long: at step {step} it is {deviation:.2g} wide, the "
                    f"Hessian "
                    f"is bounded by {self.points[-1].hessian_norm:.2g}, and {self.points[-1].loudest}"
                )
            self.furthest = max(self.furthest, round_up(length + deviation))
            self._enter(centre, deviation)
        return self

    def form(self, steps: int | None = None) -> Form:
        """The bounds of the error of the first-order prediction.

        Args:
            steps: after so many; None: all.

        Returns:
            The form.

        Raises:
            NoCertificate: they are not finite.
        """
        steps = steps or self._rule.steps
        row, points = self._rule.matrix[steps, :steps], self.points[:steps]
        start = self.reference
        differences = [add(one.gradient, minus(start.gradient)) for one in points]
        total, sizes = self._sum(row, differences)
        rounding = 2 * ROUNDING * norm_of(start.gradient)
        errors = [one.error + start.error + rounding + 2 * ROUNDING * norm_of(one.gradient) for one in points]
        widths = [one.hessian_norm * far if far else 0.0 for one, far in zip(points, self.deviations, strict=False)]
        # a gradient that is the reference itself has no difference from it, however little is known of it
        rest = sum(
            float(c) * ((0.0 if one is start else error) + width)
            for one, c, error, width in zip(points, row, errors, widths, strict=True)
        )
        rest = round_up(rest + (self._rounding + (2 * steps + 8) * ROUNDING) * sizes)
        found = Form.of_error(
            NAME, BoundedVector(total.hi, norm_of(DoubleDouble(total.lo, total.lo))), rest, radius=self.furthest
        )
        if not found.exists:
            unknown = [one.loudest for one in (start, *points) if not math.isfinite(one.error)]
            raise NoCertificate(f"the tube grows beyond all bounds: {[*unknown, points[-1].loudest][0]}")
        return found

    def _sum(self, row: object, vectors: list[DoubleDouble]) -> tuple[DoubleDouble, float]:
        """`sum c v`, and the sum of the sizes of its terms."""
        total, sizes = DoubleDouble(torch.zeros_like(self._theta.hi), torch.zeros_like(self._theta.hi)), 0.0
        for coefficient, vector in zip(row, vectors, strict=True):  # type: ignore[call-overload]
            if coefficient:
                term = times(vector, float(coefficient))
                total, sizes = add(total, term), sizes + norm_of(term)
        return total, round_up(sizes)

    def _spread(self, row: object) -> float:
        """`sum_e c[s,e] (h_e X_e + gamma_e)`."""
        each = zip(row, self.points, self.deviations, strict=True)  # type: ignore[call-overload]
        total = sum((float(c) * (one.hessian_norm * far + one.error) for c, one, far in each), 0.0)
        return round_up(total)

    def _ahead(self, step: int, deviation: float) -> float:
        """How wide the tube becomes if the Hessian's bound stays what it is: a forecast, no bound."""
        rate = float(self._rule.totals[-1]) / self._rule.steps
        growth = float(math.log1p(rate * self.points[-1].hessian_norm) * (self._rule.steps - step))
        return math.inf if growth > 600 else deviation * math.exp(growth)

    def _enter(self, centre: DoubleDouble, deviation: float) -> None:
        """Measure at a new centre."""
        used = None if self._batches is None else self._batches[len(self.points)]
        self.points.append(measured(self._problem, centre, deviation, self._rule.coupled, used))
        self.deviations.append(deviation)


def measured(
    problem: Measurable,
    centre: DoubleDouble,
    deviation: float,
    coupled: float,
    positions: torch.Tensor | None = None,
) -> PointBounds:
    """Measure with the part of coupled decay.

    Args:
        problem: the loss.
        centre: of a ball.
        deviation: its radius.
        coupled: lambda.
        positions: of the samples; None: all of them.

    Returns:
        What is known of the loss plus `lambda / 2 ||theta||^2`.
    """
    found = problem.measure(centre, deviation, positions=positions)
    if not coupled:
        return found
    extra = times(centre, coupled)
    value = add(found.gradient, extra)
    error = round_up(found.error + 2 * ROUNDING * (norm_of(extra) + norm_of(value)))
    norm = round_up(found.hessian_norm + coupled, FEW_OPERATIONS_MARGIN)
    return PointBounds(found.loss, value, error, norm, found.loudest)


def plain_steps(rule: UpdateRule | float) -> bool:
    """Whether the coefficients of a rule are its rates themselves, without rounding.

    Args:
        rule: a rule, or the rate of gradient descent.

    Returns:
        Whether it has neither momentum nor decay of the weights beside the gradient.
    """
    if not isinstance(rule, UpdateRule):
        return True
    return isinstance(rule, LinearRule) and not rule.average.momentum and not rule.decoupled_decay


def minus(vector: DoubleDouble) -> DoubleDouble:
    """Turn a vector round, without rounding.

    Args:
        vector: any.

    Returns:
        Its negative.
    """
    return DoubleDouble(-vector.hi, -vector.lo)


def times(vector: DoubleDouble, factor: float) -> DoubleDouble:
    """Multiply by a number of float64.

    Args:
        vector: any.
        factor: the number.

    Returns:
        The product.
    """
    zero = torch.zeros((), dtype=torch.float64)
    return multiply(vector, DoubleDouble(torch.tensor(factor, dtype=torch.float64), zero))
