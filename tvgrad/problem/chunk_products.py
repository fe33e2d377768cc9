"""add_products: Hessian-vector products of one chunk's loss, from one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from tvgrad.numerics.autograd import gradients, refuse_broken_graph
from tvgrad.problem.weighted_sum import WeightedSum
from tvgrad.vectors.parameters import Weights


def add_products(
    loss: torch.Tensor,
    leaves: Mapping[str, torch.Tensor],
    directions: Sequence[Weights],
    sums: Sequence[WeightedSum],
    weight: float,
) -> None:
    """Add a chunk's products to the sums, one at a time.

    Args:
        loss: of the chunk.
        leaves: name -> weights that require a gradient.
        directions: vectors, shaped like the weights.
        sums: one for each direction.
        weight: of the chunk.
    """
    points = tuple(leaves.values())
    gradient = gradients(loss, points, create_graph=True)
    if sums[0].weight == 0:  # once a pass
        refuse_broken_graph(gradient)
    # Parts of the gradient that do not depend on the weights (a linear layer alone) have no graph.
    curved = [(name, part) for name, part in zip(leaves, gradient, strict=True) if part.requires_grad]
    for index, (direction, accumulated) in enumerate(zip(directions, sums, strict=True)):
        if curved:
            parts = torch.autograd.grad(
                [part for _, part in curved],
                points,
                [direction[name].to(part.dtype) for name, part in curved],
                retain_graph=index + 1 < len(directions),
                materialize_grads=True,
            )
        else:
            parts = tuple(torch.zeros_like(point) for point in points)
        accumulated.add(dict(zip(leaves, parts, strict=True)), weight)
