"""MergeLine: the losses of all tasks along a merged task vector, and the coefficient at which their sum is least."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from tvgrad.problem.objective import Objective
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights

MEASURED = 3
SETTLED = 0.05
"""Relative change of the coefficient at which no further loss is measured."""

WIDEST = 2.0
"""Factor by which one measured loss may lengthen the coefficient."""

SEARCHED_UP_TO = 1.0
SEARCHES = 8
DOUBLINGS = 16
"""Of the furthest coefficient that is searched, as long as the loss goes on falling."""
CLOSE = 1e-3
"""Share of an interval to which its minimum is searched."""

WIDE = 8.0
"""Ratio of an interval's ends from which on it is searched by magnitudes, and in so many steps:"""
SEARCHES_FAR = 14
SMALLEST = 1e-6
"""Of a coefficient that is tried where none that is larger lowers the loss."""

Array = NDArray[np.float64]
Losses = Callable[[float], Array]


@dataclass(frozen=True)
class MergeLine:
    """Every task's loss at `theta_0 + a T`, as `L + a b + a^2/2 c + a^3 d`.

    Attributes:
        losses: L, one a task, at the pretrained weights.
        slopes: b, `<g_s, T>`.
        curvatures: c, `<T, H_s T>`.
        cubes: d, 0 until losses are measured.
    """

    losses: Array
    slopes: Array
    curvatures: Array
    cubes: Array

    def at(self, a: float) -> Array:
        """Estimate every task's loss.

        Args:
            a: the coefficient.

        Returns:
            One number a task.
        """
        return self.losses + a * self.slopes + a * a / 2 * self.curvatures + a**3 * self.cubes

    def through(self, a: float, measured: Array) -> MergeLine:
        """Take measured losses in, as a cubic term.

        Args:
            a: where they were measured.
            measured: one number a task.

        Returns:
            The line through them.
        """
        return replace(self, cubes=self.cubes + (measured - self.at(a)) / a**3)

    def lowest(self) -> float | None:
        """Find the first minimum of the sum over tasks above 0.

        Returns:
            The coefficient; None where the sum does not fall at 0, or falls without end.
        """
        slope, curvature, cube = (float(part.sum()) for part in (self.slopes, self.curvatures, self.cubes))
        inside = curvature * curvature - 12 * cube * slope
        if not slope < 0 or inside < 0:
            return None
        # the root with positive curvature, in the form that does not cancel
        below = curvature + math.sqrt(inside)
        return -2 * slope / below if below > 0 else None


def line_of(losses: Array, slopes: Array, curvatures: Array) -> tuple[MergeLine, tuple[str, ...]]:
    """Make a line of what is known at the pretrained weights.

    Args:
        losses: L, one a task.
        slopes: b.
        curvatures: c; those that are not finite are left out, so that losses are measured in their place.

    Returns:
        The line, and a sentence where a curvature was left out.
    """
    known = np.isfinite(curvatures)
    line = MergeLine(losses, slopes, np.where(known, curvatures, 0.0), np.zeros(len(losses)))
    if known.all():
        return line, ()
    return line, (
        "a loss has no finite curvature along the merge, which is left out: look for a root at 0 in model and loss, or "
        "for task vectors that are far too long",
    )


def measured_losses(objectives: Sequence[Objective], vector: Weights) -> Losses:
    """Make a function that measures every task's loss along a vector.

    Args:
        objectives: one a task.
        vector: T.

    Returns:
        Coefficient -> losses, a pass over each task's data.
    """

    def losses(a: float) -> Array:
        found = []
        for one in objectives:
            weights = combination((1.0, one.initial))
            add_scaled(weights, vector, a)
            found.append(one.value(weights))
        return np.array(found)

    return losses


def best_coefficient(line: MergeLine, losses: Losses) -> tuple[float, MergeLine, tuple[str, ...]]:
    """Find the coefficient: the parabola's, mended by up to three measured losses; a bounded search without one.

    What is returned was measured, or is within `SETTLED` of what was.

    Args:
        line: to second order.
        losses: that are measured.

    Returns:
        The coefficient, the line with its cubic terms, and sentences on what was done instead.
    """
    a = line.lowest()
    if a is None:
        return _searched(line, losses)
    tried: dict[float, Array] = {0.0: line.losses}
    known = line
    for _ in range(MEASURED):
        tried[a] = losses(a)
        if not np.isfinite(tried[a]).all():
            a /= WIDEST
            continue
        known = known.through(a, tried[a])
        lowest = known.lowest()
        following = WIDEST * a if lowest is None else min(lowest, WIDEST * a)
        if not following > SMALLEST * a:  # beyond what numbers tell
            break
        settled = abs(following - a) <= SETTLED * a
        a = following
        if settled and float(known.at(a).sum()) <= min(map(_total, tried.values())):
            return a, known, ()
        if settled:
            break
    return _searched_between(tried, known, losses)


def _total(measured: Array) -> float:
    return float(measured.sum()) if np.isfinite(measured).all() else math.inf


def _searched_between(
    tried: dict[float, Array], line: MergeLine, losses: Losses
) -> tuple[float, MergeLine, tuple[str, ...]]:
    """Go on by measured losses alone, between the neighbours of the best of those that are known."""
    low, high = _measure_around_best(tried, losses)
    said = (
        f"along the merge the summed loss bends more than a cubic does: the coefficient was searched between "
        f"{low:.3g} and {high:.3g} by {len(tried) - 1} measured losses a task"
    )
    return _best_tried(tried, line, said)


def _searched(line: MergeLine, losses: Losses) -> tuple[float, MergeLine, tuple[str, ...]]:
    tried: dict[float, Array] = {0.0: line.losses}
    _measure_between(0.0, SEARCHED_UP_TO, tried, losses)
    falls = float(line.slopes.sum()) < 0
    furthest = _doubled(tried, losses) if falls and _best(tried) == max(tried) else SEARCHED_UP_TO
    if falls and (not _best(tried) or SEARCHED_UP_TO < furthest > _best(tried)):
        # The merged vector is too long to go even the shortest of these ways, or the minimum is behind the furthest.
        _measure_around_best(tried, losses)
    said = (
        f"along the merge the summed loss {'falls' if falls else 'does not fall'} at the pretrained weights and has no "
        f"minimum to second order: the coefficient was searched between 0 and {furthest:g} by {len(tried) - 1} "
        "measured losses a task instead"
    )
    if falls and _best(tried) == max(tried):
        said += ", of which the furthest was the best, so that a larger coefficient may be better"
    return _best_tried(tried, line, said)


def _doubled(tried: dict[float, Array], losses: Losses) -> float:
    """Go on to twice the coefficient, and again, as long as that lowers the loss; tell the furthest that was tried."""
    a = SEARCHED_UP_TO
    tried[a] = losses(a)
    for _ in range(DOUBLINGS):
        if _best(tried) != a:
            break
        a *= 2
        tried[a] = losses(a)
    return a


def _best_tried(tried: dict[float, Array], line: MergeLine, said: str) -> tuple[float, MergeLine, tuple[str, ...]]:
    a = _best(tried)
    if not a:
        return 0.0, line, (said, "no coefficient that was tried lowers the summed loss: 0 is the plan")
    return a, line.through(a, tried[a]), (said,)


def _best(tried: dict[float, Array]) -> float:
    return min(sorted(tried), key=lambda one: _total(tried[one]))


def _measure_around_best(tried: dict[float, Array], losses: Losses) -> tuple[float, float]:
    """Measure losses between the neighbours of the best place, which may be magnitudes apart."""
    places, best = sorted(tried), _best(tried)
    high = min((one for one in places if one > best), default=WIDEST * best)
    low = max((one for one in places if one < best), default=0.0)
    if not best:
        low = SMALLEST * min(high, 1.0)
    elif high > WIDE * best:
        low = max(low, best / WIDE)
    _measure_between(low, high, tried, losses)
    return low, high


def _measure_between(low: float, high: float, tried: dict[float, Array], losses: Losses) -> None:
    """Measure losses in an interval, ever nearer to its minimum; by magnitudes where its ends are far apart."""
    far = low > 0 and high > WIDE * low

    def total(place: float) -> float:
        a = math.exp(place) if far else float(place)
        tried[a] = losses(a)
        found = _total(tried[a])
        return found if math.isfinite(found) else sys.float_info.max * a / high / 2  # the search looks nearer

    ends = (math.log(low), math.log(high)) if far else (low, high)
    limits = {"maxiter": SEARCHES_FAR if far else SEARCHES, "xatol": CLOSE * (ends[1] - ends[0])}
    with np.errstate(over="ignore", invalid="ignore"):  # parabolas through huge losses
        minimize_scalar(total, bounds=ends, method="bounded", options=limits)
