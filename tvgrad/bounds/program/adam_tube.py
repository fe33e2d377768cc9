r"""A tube round the path that Adam takes, and how far it leads from Adam followed on the first gradient alone.

Step s moves the weights by `-eta_s d_s`, coordinate by coordinate

    d_s = m / (r + eps),   m = sum_e w_e g_e,   r = sqrt(sum_e u_e g_e^2),   w and u positive with sum 1.

Let the gradients that are computed be G_e and the exact ones within `E_e = h_e X_e + gamma_e` of them, in Euclidean
norm and so in every coordinate. Then m moves by at most `M = sum_e w_e E_e` in norm, and r, itself a norm of the
coordinate's history, by at most `V = sqrt(sum_e u_e E_e^2)`, in norm and in every coordinate. With
`low = max(r - V, 0) + eps`, what the exact denominator is at least,

    d' - d = (m' - m) / (r' + eps) + m (r - r') / ((r + eps)(r' + eps)),

so that over the coordinates with `low >= t` the direction moves by at most `M / t + V max(|m| / ((r + eps) low))`. In
every other coordinate `|d'| <= sqrt(sum_e w_e^2 / u_e)`, by the inequality of Cauchy and Schwarz, whatever the gradient
is: it moves by at most that plus |d|. Every t gives a bound, and the least counts. Coordinates whose gradient is zero
for all weights (`program.untouched`) never move. Where the preconditioner is not bounded away from zero, t is small or
many coordinates lie below it: then the tube is wide, and the message names the parameter that has most of them.

The prediction is the rule followed on g_0 alone: m and r are then |g_0|, so that every step has the direction
`g_0 / (|g_0| + eps)`. For a linear rule that is -S_k g_0. The first full-batch step agrees with it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.certificates.first_order import kept_rates
from tvgrad.bounds.certificates.form import Form
from tvgrad.bounds.program.point import PointBounds
from tvgrad.bounds.program.tube import NAME, Measurable, measured, minus, norm_of, times
from tvgrad.bounds.rounding.parameter_sum import BoundedVector
from tvgrad.numerics.double_double import ROUNDING, DoubleDouble, add, divide, multiply, square_root
from tvgrad.numerics.floats import FEW_OPERATIONS_MARGIN, round_up
from tvgrad.update_rules.rules import Adam

THRESHOLDS = tuple(10.0**power for power in range(-12, 7))
"""Denominators between which coordinates are divided; any are allowed."""

FLOOR = 1e-130
"""Over what underflow takes from a root: squares below 2^-900 are left out, and 2^-450 is 3e-136."""

LEAST_EPS = 1e-100

_LEAST_SQUARE = 2.0**-900


@dataclass(frozen=True)
class Direction:
    """A direction of Adam.

    Attributes:
        value: as computed.
        error: a bound of its distance to what the exact gradients give.
        small: coordinates that lie below the denominator that was chosen.
    """

    value: DoubleDouble
    error: float
    small: torch.Tensor


class AdamTube:
    """A path of Adam, and how far the exact iterates can be from it.

    Attributes:
        points: what is known at theta_0 .. theta_(k-1), coupled decay included, of each step's samples.
        deviations: X_e, e < k.
        directions: d_s, s < k.
        furthest: the largest distance of the tube from theta_0.
    """

    def __init__(
        self,
        problem: Measurable,
        rule: Adam,
        steps: int,
        *,
        moving: torch.Tensor,
        parts: Sequence[tuple[str, int]],
        batches: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Begin at theta_0.

        Args:
            problem: the loss.
            rule: Adam or AdamW.
            steps: k.
            moving: which coordinates can have a gradient at all, (p,).
            parts: names and sizes of the parameters, in the order of the flat vector.
            batches: positions of the samples of each step; None: all of them.

        Raises:
            NoCertificate: the rule is a variant without a bound.
        """
        if rule.amsgrad or rule.eps < LEAST_EPS:
            why = "amsgrad" if rule.amsgrad else f"an eps below {LEAST_EPS:g}"
            raise NoCertificate(f"{rule.name} divides by a root of past squares, and with {why} it has no bound")
        self.points: list[PointBounds] = []
        self.deviations: list[float] = []
        self.furthest = 0.0
        self._problem, self._rule, self._steps, self._batches = problem, rule, steps, batches
        self._parts = parts
        self._rates = [float(rate) for rate in rule.rates(steps)]
        start = problem.flat
        self._theta = DoubleDouble(start, torch.zeros_like(start))
        # decay gives every coordinate a gradient
        self._moving = torch.ones_like(moving) if rule.coupled_decay else moving
        self.directions: list[Direction] = []

    def follow(self) -> AdamTube:
        """Follow the path.

        Returns:
            This tube.

        Raises:
            NoCertificate: it grows beyond all bounds.
        """
        centre, deviation = self._theta, 0.0
        mean = square = DoubleDouble(torch.zeros_like(self._theta.hi), torch.zeros_like(self._theta.hi))
        b1, b2 = self._rule.betas
        for step in range(self._steps):
            used = None if self._batches is None else self._batches[step]
            self.points.append(measured(self._problem, centre, deviation, self._rule.coupled_decay, used))
            self.deviations.append(deviation)
            gradient = self.points[-1].gradient
            mean = add(times(mean, b1), multiply(gradient, _number(1 - Fraction(b1))))
            squared = multiply(gradient, gradient)
            square = add(times(square, b2), multiply(squared, _number(1 - Fraction(b2))))
            self.directions.append(self._direction(mean, square, step))
            centre, deviation = self._moved(centre, deviation, self._rates[step], self.directions[-1])
            if step + 1 < self._steps:
                self._check(step + 1, centre, deviation)
        return self

    def form(self, steps: int | None = None) -> Form:
        """The bounds of the distance from the rule followed on the first gradient alone.

        Args:
            steps: after so many; None: all.

        Returns:
            The form.

        Raises:
            NoCertificate: they are not finite.
        """
        first, weights = self._first, kept_rates(self._rule, self._steps if steps is None else steps)
        total, rest = times(self._theta, 0.0), 0.0
        for weight, one in zip(weights, self.directions, strict=False):
            if one is first:
                continue
            term = multiply(add(one.value, minus(first.value)), _number(weight))
            total = add(total, term)
            sizes = norm_of(one.value) + norm_of(first.value)
            rest += float(weight) * (one.error + first.error + 8 * ROUNDING * sizes) + 2 * ROUNDING * norm_of(total)
        found = BoundedVector(total.hi, norm_of(DoubleDouble(total.lo, total.lo)))
        form = Form.of_error(NAME, found, round_up(rest), radius=self.furthest)
        if not form.exists:
            raise NoCertificate(f"the tube grows beyond all bounds: {self._blame()}")
        return form

    @cached_property
    def _first(self) -> Direction:
        """The direction that the prediction follows: that of the gradient of all samples at theta_0."""
        if self._batches is None:
            return self.directions[0]
        here = measured(self._problem, self._theta, 0.0, self._rule.coupled_decay)
        squared = multiply(here.gradient, here.gradient)
        return self._quotient(here.gradient, squared, here.gradient.hi.abs(), [1.0], [1.0], [here.error])

    def _check(self, step: int, centre: DoubleDouble, deviation: float) -> None:
        moved = add(centre, minus(self._theta))
        length = norm_of(moved)
        if not deviation <= length:
            raise NoCertificate(
                f"{self._rule.name} divides by a root of past squares, and after step {step} the tube is "
                f"{deviation:.2g} wide, where the path is {length:.2g} long: {self._blame()}"
            )
        self.furthest = max(self.furthest, round_up(length + deviation))

    def _blame(self) -> str:
        """What has no gradient, or which parameter has most of the coordinates whose preconditioner is near zero."""
        unknown = [point.loudest for point in self.points if not math.isfinite(point.error + point.hessian_norm)]
        if unknown:
            return unknown[0]
        small, found, begin = self.directions[-1].small, list[tuple[int, str, int]](), 0
        for name, size in self._parts:
            found.append((int(small[begin : begin + size].sum()), name, size))
            begin += size
        if not bool(small.any()):
            return f"the Hessian is bounded by {self.points[-1].hessian_norm:.2g}, {self.points[-1].loudest}"
        count, name, size = max(found)
        return f"in {name} {count} of {size} coordinates have gradients too near zero to divide by"

    def _moved(
        self, centre: DoubleDouble, deviation: float, rate: float, direction: Direction
    ) -> tuple[DoubleDouble, float]:
        """One step of the weights, and how far the exact ones can be from it."""
        kept = 1 - Fraction(rate) * Fraction(self._rule.decoupled_decay)
        stepped = times(direction.value, rate)
        shrunk = centre if kept == 1 else multiply(centre, _number(kept))
        found = add(shrunk, minus(stepped))
        rounding = 4 * ROUNDING * (norm_of(shrunk) + norm_of(stepped))
        spread = round_up(abs(float(kept)), FEW_OPERATIONS_MARGIN) * deviation + rate * direction.error
        return found, round_up(spread + rounding)

    def _direction(self, mean: DoubleDouble, square: DoubleDouble, step: int) -> Direction:
        """The direction of one step, from the moving means."""
        b1, b2 = (Fraction(beta) for beta in self._rule.betas)
        first, second = 1 - b1 ** (step + 1), 1 - b2 ** (step + 1)
        ages = range(step, -1, -1)
        w, u = ([float((1 - b) * b**age / whole) for age in ages] for b, whole in ((b1, first), (b2, second)))
        sizes = torch.zeros_like(mean.hi)
        for weight, point in zip(w, self.points, strict=True):
            sizes += weight * point.gradient.hi.abs()
        errors = [
            round_up(point.hessian_norm * far + point.error)
            for point, far in zip(self.points, self.deviations, strict=True)
        ]
        corrected = (divide(mean, _number(first)), divide(square, _number(second)))
        return self._quotient(*corrected, sizes, w, u, errors)

    def _quotient(
        self,
        mean: DoubleDouble,
        square: DoubleDouble,
        sizes: torch.Tensor,
        w: Sequence[float],
        u: Sequence[float],
        errors: Sequence[float],
    ) -> Direction:
        """`m / (sqrt v + eps)`; `sizes` are means of absolute values, for the rounding of m."""
        eps, moving = self._rule.eps, self._moving
        whole = square.hi > _LEAST_SQUARE
        safe = DoubleDouble(*(torch.where(whole, part, one) for part, one in zip(square, (1.0, 0.0), strict=True)))
        root = square_root(safe)
        root = DoubleDouble(*(torch.where(whole, part, 0.0) for part in root))
        below = add(root, DoubleDouble(torch.full_like(root.hi, eps), torch.zeros_like(root.hi)))
        value = divide(mean, below)
        # every number of the recursion is a sum of so many terms, each of a few operations
        relative = (8 * len(w) + 32) * ROUNDING
        own = round_up(float((relative * (sizes / below.hi + value.hi.abs())).norm()), 1e-6)
        moved = round_up(sum(a * b for a, b in zip(w, errors, strict=True)) + FLOOR)
        turned = round_up(math.sqrt(sum(a * b**2 for a, b in zip(u, errors, strict=True))) + FLOOR)
        most = math.sqrt(sum(a**2 / b if b else math.inf for a, b in zip(w, u, strict=True) if a))
        less = 1 - FEW_OPERATIONS_MARGIN  # low is rounded down, the others up
        low = ((root.hi * less - turned).clamp(min=0) + eps) * less
        slope = round_up((value.hi.abs() + relative * sizes / below.hi) / low)
        jump = round_up(round_up(most) + value.hi.abs())
        best, small = math.inf, torch.zeros_like(moving)
        for threshold in (eps / 2, *(one for one in THRESHOLDS if one > eps)):
            large = moving & (low >= threshold)
            rest = moving & ~large
            smooth = 0.0
            if bool(large.any()):
                smooth = round_up(moved / float(low[large].min())) + turned * float(slope[large].max())
            bound = round_up(math.hypot(smooth, float(jump[rest].norm())) if bool(rest.any()) else smooth)
            if bound < best:
                best, small = bound, rest
        if not bool(small.any()):
            small = moving & (low <= 2 * eps)
        return Direction(value, best + own + FLOOR, small)


def _number(exact: Fraction) -> DoubleDouble:
    """A rational number as a sum of two of float64, within u^2 of it."""
    high = float(exact)
    return DoubleDouble(
        torch.tensor(high, dtype=torch.float64), torch.tensor(float(exact - Fraction(high)), dtype=torch.float64)
    )
