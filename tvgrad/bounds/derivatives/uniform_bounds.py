"""Uniform bounds: what holds for all data up to a norm."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tvgrad.bounds.derivatives.worst_case import worst_case
from tvgrad.bounds.losses.base import Loss
from tvgrad.bounds.network.network import Network
from tvgrad.numerics.floats import round_up
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


def uniform_bounds(
    network: Network,
    loss: Loss,
    input_norms: torch.Tensor,
    targets: torch.Tensor | None,
    target_norm: float,
    radius: float,
) -> UniformBounds:
    """The worst-case recursion at the largest input norm and with any targets.

    Args:
        network: the network.
        loss: the loss.
        input_norms: of the samples, (n,).
        targets: of which the largest norm alone is used, or None.
        target_norm: at least the largest norm of a target.
        radius: of the ball.

    Returns:
        Three upper bounds.
    """
    if targets is not None and targets.is_floating_point():
        target_norm = max(target_norm, round_up(float(targets.flatten(1).norm(dim=1).max())))
    found = worst_case(network, loss, input_norms.max()[None], None, radius, True, target_norm, len(input_norms))
    return UniformBounds(found.gradient_norm, found.hessian_norm, found.hessian_lipschitz)
