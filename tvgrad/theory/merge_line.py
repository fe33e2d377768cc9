"""MergeLine: the losses of all tasks along a merged task vector, and the coefficient at which their sum is least."""

from __future__ import annotations

import math
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
    places = sorted(tried)
    best = min(places, key=lambda one: _total(tried[one]))
    low = max((one for one in places if one < best), default=0.0)
    high = min((one for one in places if one > best), default=WIDEST * best)

    def total(a: float) -> float:
        tried[a] = losses(a)
        return _total(tried[a])

    minimize_scalar(total, bounds=(low, high), method="bounded", options={"maxiter": SEARCHES})
    a = min(tried, key=lambda one: _total(tried[one]))
    said = (
        f"along the merge the summed loss bends more than a cubic does: the coefficient was searched between "
        f"{low:.3g} and {high:.3g} by {len(tried) - 1} measured losses a task"
    )
    if not a:
        return 0.0, line, (said, "no coefficient that was tried lowers the summed loss: 0 is the plan")
    return a, line.through(a, tried[a]), (said,)


def _searched(line: MergeLine, losses: Losses) -> tuple[float, MergeLine, tuple[str, ...]]:
    measured: dict[float, Array] = {}

    def total(a: float) -> float:
        measured[a] = losses(a)
        return _total(measured[a])

    minimize_scalar(total, bounds=(0.0, SEARCHED_UP_TO), method="bounded", options={"maxiter": SEARCHES})
    low = float(line.losses.sum())
    a = min(measured, key=lambda one: _total(measured[one]))
    why = "falls" if float(line.slopes.sum()) < 0 else "does not fall"
    said = (
        f"along the merge the summed loss {why} at the pretrained weights and has no minimum to second order: the "
        f"coefficient was searched between 0 and {SEARCHED_UP_TO:g} by {len(measured)} measured losses a task instead"
    )
    if not float(measured[a].sum()) < low:
        return 0.0, line, (said, "no coefficient that was tried lowers the summed loss: 0 is the plan")
    return a, line.through(a, measured[a]), (said,)
