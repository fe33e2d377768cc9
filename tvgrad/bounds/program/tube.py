"""A tube round the path that a training takes in double-double arithmetic.

The argument is that of `certificates.tubes`, with centres of 32 digits: gradients of a deep program carry bounds on
their rounding that are far above float64's own, and each step of a tube multiplies what is left by 1 + rate times a
bound of the Hessian, which for a transformer is large. With 32 digits there is room for both.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate, StepCoefficients
from tvgrad.bounds.certificates.form import Form
from tvgrad.bounds.program.point import PointBounds
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.double_double import ROUNDING, DoubleDouble, add, multiply
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, gamma, round_up

NAME = "tube"


class Measurable(Protocol):
    """What a tube needs to know of a loss."""

    @property
    def flat(self) -> torch.Tensor:
        """Theta_0, one vector."""

    def measure(self, theta: DoubleDouble, radius: float) -> PointBounds:
        """Bound gradient and Hessian.

        Args:
            theta: the centre of a ball.
            radius: of the ball.

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
        points: what is known at theta_0 .. theta_(k-1), decay included.
        deviations: X_e, e < k.
        furthest: the largest distance of the tube from theta_0.
    """

    def __init__(self, problem: Measurable, coefficients: StepCoefficients, *, exact: bool) -> None:
        """Begin at theta_0.

        Args:
            problem: the loss.
            coefficients: of the rule's steps.
            exact: whether they carry no rounding error, which those of plain gradient descent do not.
        """
        self.points: list[PointBounds] = []
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
        for step in range(1, self._rule.steps):
            row = self._rule.matrix[step, :step]
            moved, sizes = self._sum(row, [point.gradient for point in self.points])
            shrunk = float(self._rule.shrunk[step])
            if shrunk:
                decayed = _scaled(self._theta, shrunk)
                moved, sizes = add(moved, decayed), sizes + norm_of(decayed)
            centre = add(self._theta, DoubleDouble(-moved.hi, -moved.lo))
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

    def form(self) -> Form:
        """The bounds of the error of the first-order prediction.

        Returns:
            The form.

        Raises:
            NoCertificate: they are not finite.
        """
        steps = self._rule.steps
        row = self._rule.matrix[steps, :steps]
        start = self.points[0].gradient
        differences = [add(one.gradient, DoubleDouble(-start.hi, -start.lo)) for one in self.points]
        total, sizes = self._sum(row, differences)
        errors = [one.error + self.points[0].error + 2 * ROUNDING * norm_of(one.gradient) for one in self.points]
        widths = [one.hessian_norm * far for one, far in zip(self.points, self.deviations, strict=True)]
        # the first gradient is its own difference
        rest = sum(
            float(c) * (error * (number > 0) + width)
            for number, (c, error, width) in enumerate(zip(row, errors, widths, strict=True))
        )
        rest = round_up(rest + (self._rounding + (2 * steps + 8) * ROUNDING) * sizes)
        found = Form.of_error(
            NAME, BoundedVector(total.hi, norm_of(DoubleDouble(total.lo, total.lo))), rest, radius=self.furthest
        )
        if not found.exists:
            raise NoCertificate(f"the tube grows beyond all bounds: {self.points[-1].loudest}")
        return found

    def _sum(self, row: object, vectors: list[DoubleDouble]) -> tuple[DoubleDouble, float]:
        """`sum c v`, and the sum of the sizes of its terms."""
        total, sizes = DoubleDouble(torch.zeros_like(self._theta.hi), torch.zeros_like(self._theta.hi)), 0.0
        for coefficient, vector in zip(row, vectors, strict=True):  # type: ignore[call-overload]
            if coefficient:
                term = _scaled(vector, float(coefficient))
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
        """Measure at a new centre, with the part of coupled decay."""
        found = self._problem.measure(centre, deviation)
        coupled = self._rule.coupled
        if coupled:
            extra = _scaled(centre, coupled)
            value = add(found.gradient, extra)
            error = round_up(found.error + 2 * ROUNDING * (norm_of(extra) + norm_of(value)))
            norm = round_up(found.hessian_norm + coupled, FEW_OPERATIONS_MARGIN)
            found = PointBounds(found.loss, value, error, norm, found.loudest)
        self.points.append(found)
        self.deviations.append(deviation)


def _scaled(vector: DoubleDouble, factor: float) -> DoubleDouble:
    zero = torch.zeros((), dtype=torch.float64)
    return multiply(vector, DoubleDouble(torch.tensor(factor, dtype=torch.float64), zero))
