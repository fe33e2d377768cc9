"""Conjugate gradients for weight vectors, which say where the matrix is not positive definite."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvgrad.errors import TvgradError
from tvgrad.vectors.algebra import add_scaled, combination
from tvgrad.vectors.parameters import Weights, inner_product, norm

CLOSE = 1e-9
"""Norm of the residual over that of the right side, at which it stops."""
MOST = 1000


def conjugate_gradients(product: Callable[[Weights], Weights], right: Weights, start: Weights) -> Weights:
    """Solve `A x = b` for a symmetric, positive definite A (Hestenes and Stiefel 1952).

    Args:
        product: x -> A x.
        right: b.
        start: where to begin; it is not changed.

    Returns:
        x in float64, with a residual below 1e-9 of b's norm.

    Raises:
        TvgradError: A is not positive definite along a direction that was met, or rounding keeps the residual above.
    """
    found = combination((1.0, start))
    rest = combination((1.0, right), (-1.0, product(found)))
    direction, square, goal = combination((1.0, rest)), inner_product(rest, rest), CLOSE * norm(right)
    for _ in range(MOST):
        if math.sqrt(square) <= goal:
            return found
        curved = product(direction)
        curvature = inner_product(direction, curved)
        if not curvature > 0:
            found_there = curvature / inner_product(direction, direction)
            raise TvgradError(
                f"the summed curvature is not positive in all directions ({found_there:.3g} in one), so that gradients "
                "cannot be matched at a minimum: give a larger prior"
            )
        add_scaled(found, direction, square / curvature)
        add_scaled(rest, curved, -square / curvature)
        before, square = square, inner_product(rest, rest)
        direction = combination((1.0, rest), (square / before, direction))
    raise TvgradError(
        f"{MOST} steps of conjugate gradients left a residual of {math.sqrt(square) / norm(right):.3g} of the right "
        "side: give a larger prior, or objectives in float64"
    )
