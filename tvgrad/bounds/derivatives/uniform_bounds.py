"""Uniform bounds: what holds for all data up to a norm."""

from __future__ import annotations

from dataclasses import dataclass

from tvgrad.results import Result


@dataclass(frozen=True)
class UniformBounds(Result):
    """Upper bounds that use no data beyond the largest input norm, for comparison.

    Attributes:
        gradient_norm: of the mean loss, anywhere in the ball.
        hessian_norm: likewise.
        hessian_lipschitz: likewise.

    Example:
        >>> from tvgrad.bounds import UniformBounds
        >>> UniformBounds(1.5, 2.0, 3.0).hessian_norm
        2.0
    """

    _upper = frozenset({"gradient_norm", "hessian_norm", "hessian_lipschitz"})

    gradient_norm: float
    hessian_norm: float
    hessian_lipschitz: float
