"""Inner products of task vectors over all tensors, in one pass over a stack."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.merging.stack import Stack
from tvgrad.merging.workers import in_order

BLOCK = 1 << 16


def stack_gram(stack: Stack) -> NDArray[np.float64]:
    """Multiply the task vectors with each other.

    Args:
        stack: the task vectors.

    Returns:
        Shape (tasks, tasks): products of blocks in float64, their sums rounded once.

    Raises:
        TvgradError: a value is an infinity or a NaN, or the squared lengths do not fit into float64.
    """

    def products(name: str, start: int) -> NDArray[np.float64]:
        rows = stack.rows(name, start, min(BLOCK, stack.numel(name) - start))
        found: NDArray[np.float64] = (rows @ rows.T).numpy()
        return found

    parts = [
        part for name in stack.places for part in in_order(partial(products, name), range(0, stack.numel(name), BLOCK))
    ]
    tasks = range(stack.tasks)
    if not all(np.isfinite(part).all() for part in parts):
        raise TvgradError(
            "the squared lengths of these task vectors do not fit into float64: choose a method that needs no lengths, "
            "such as mean"
        )
    return np.array([[math.fsum(part[i, j] for part in parts) for j in tasks] for i in tasks])
