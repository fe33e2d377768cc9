"""The ball round theta_0 that a form verifies, and the recursion that bounds deviations from a known path.

The path is d_e = theta_e - theta_0 up to a *deviation* s_e, `||s_e|| <= E_e`. What the gradient's known part leaves is
at most `h_0 E_e + r_e`, r_e of higher order, so that `E_s = known_s + sum_e c[s,e] ( h_0 E_e + r_e )`. All terms are
nonnegative, so that rounding up covers those of the recursion. It holds on a ball that holds all `||d_e|| + E_e`, and
its constants are those of the ball: a radius is searched for, and only the inequality that verifies it counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from tvgrad.bounds.certificates.coefficients import NoCertificate
from tvgrad.bounds.certificates.expansion_point import ExpansionPoint
from tvgrad.bounds.derivatives.worst_case import LayerBounds
from tvgrad.numerics.floats import round_up
from tvgrad.update_rules.base import Array

ATTEMPTS = 40
LOCAL_ATTEMPTS = 12  # local constants cost a few gradients each time
FURTHEST = 30.0  # how much further than the first-order path a ball may reach before it is given up
GROWTH = 1.01
HUGE = 1e100  # beyond it there is no ball, and squares would overflow

Found = TypeVar("Found")


def enlarged(radius: float) -> float:
    """Round a radius up to one of a few values, so that different forms ask for the same constants.

    Args:
        radius: at least this much.

    Returns:
        The next power of 2^(1/32), some two per cent larger at most, above a margin of one per cent.
    """
    if not 0 < radius < HUGE:
        return radius
    exponent = math.ceil(32 * math.log2(GROWTH * radius)) / 32
    return max(GROWTH * radius, math.exp2(exponent))


class NoBall(NoCertificate):
    """No ball was found that holds the iterates."""

    def __init__(self, radius: float) -> None:
        """Say how far the search went.

        Args:
            radius: the last one that was tried.
        """
        super().__init__(f"no ball is known to hold the iterates: the radius ran to {radius:.3g}")


def verified_ball(
    evaluate: Callable[[float], tuple[Found, float]],
    radius: float = 0.0,
    *,
    attempts: int,
    limit: float = math.inf,
    enlarge: Callable[[float], float] = enlarged,
) -> tuple[Found, float]:
    """Enlarge a ball until the iterates are known to stay in it.

    Args:
        evaluate: what holds on the ball of a radius, and how far the iterates get there, not finite where nothing
            holds.
        radius: the first that is tried.
        attempts: how often.
        limit: the largest radius that is tried.
        enlarge: makes the next radius of what was reached.

    Returns:
        What holds on the verified ball, and its radius.

    Raises:
        NoBall: no ball was found.
    """
    for _ in range(attempts):
        found, reached = evaluate(radius)
        if not math.isfinite(reached):
            break
        if reached <= radius:
            return found, radius
        radius = enlarge(reached)
        if radius > limit:
            break
    raise NoBall(radius)


class ThirdDerivative:
    """Bounds of the third derivative with a known displacement and an unknown deviation from it in its slots.

    They are taken layer by layer where the layer norms of the known displacements are given.
    """

    def __init__(self, bounds: LayerBounds, norms: Array, layers: torch.Tensor | None) -> None:
        """Evaluate what is known beforehand.

        Args:
            bounds: of the third derivative's blocks.
            norms: of the known displacements d_e, (k,).
            layers: their layer norms, (k, L), or None for the third derivative's norm alone.
        """
        self.lipschitz = bounds.hessian_lipschitz
        self.norms = norms
        self.along = None if layers is None else [bounds.along(one) for one in layers]

    def twice(self, step: int, deviation: float) -> float:
        """Bound `1/2 ||D3[., d + s, d + s]||`.

        Args:
            step: e.
            deviation: the norm of s at most.

        Returns:
            An upper bound; infinity where it would overflow.
        """
        norm = self.norms[step]
        if not (norm + deviation < HUGE and self.lipschitz < math.inf):
            return math.inf
        whole = 0.5 * self.lipschitz * (norm + deviation) ** 2
        if self.along is None:
            return float(whole)
        twice, once = self.along[step]
        return float(min(whole, 0.5 * (twice + 2 * once * deviation + self.lipschitz * deviation**2)))

    def beside(self, step: int, deviation: float) -> float:
        """Bound `||D3[., d, s]|| + 1/2 ||D3[., s, s]||`, layer by layer.

        Args:
            step: e.
            deviation: the norm of s at most.

        Returns:
            An upper bound; infinity where it would overflow.
        """
        if self.along is None or not (deviation < HUGE and self.lipschitz < math.inf):
            return math.inf
        return self.along[step][1] * deviation + 0.5 * self.lipschitz * deviation**2


def deviation_on_ball(
    start: ExpansionPoint[Any],
    norms: Array,
    known: Array,
    *,
    higher_order: Callable[[float], Callable[[int, float], float]],
) -> tuple[float, float]:
    """Run the recursion on the ball that it verifies.

    Args:
        start: what is known at theta_0.
        norms: upper bounds of the known displacements `||d_e||`, (k,).
        known: the part of E_e that is known beforehand, (k,).
        higher_order: makes, for a radius, the function that bounds r_e for (e, E_e).

    Returns:
        `sum_e c[k,e] ( h_0 E_e + r_e )`, and the radius of the verified ball.
    """
    steps, matrix = start.coefficients.steps, start.coefficients.matrix

    @np.errstate(over="ignore", invalid="ignore")  # beyond float64, there is no bound: said in the end
    def evaluate(radius: float) -> tuple[float, float]:
        if not radius < HUGE:
            return math.inf, math.inf
        bound = higher_order(radius)
        deviations, left = np.zeros(steps), np.zeros(steps)
        for step in range(steps):
            deviations[step] = known[step] + float(matrix[step, :step] @ left[:step])
            left[step] = start.hessian_norm * deviations[step] + bound(step, deviations[step])
        rest = round_up(float(matrix[steps] @ left))
        return rest, float(round_up(norms + deviations).max()) if math.isfinite(rest) else math.inf

    first = enlarged(float(norms.max()))
    return verified_ball(evaluate, first, attempts=LOCAL_ATTEMPTS, limit=FURTHEST * first)
