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
LEAST, MOST = 1e-280, 1e280
"""Squared lengths between which products of two of them, or quotients, keep all digits of float64."""


def stack_gram(stack: Stack) -> NDArray[np.float64]:
    """Multiply the task vectors with each other.

    Args:
        stack: the task vectors.

    Returns:
        Shape (tasks, tasks): products of blocks in float64, their sums rounded once.

    Raises:
        TvgradError: a value is an infinity or a NaN, or the squared lengths do not fit into float64.
    """

    def products(name: str, start: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        rows = stack.rows(name, start, min(BLOCK, stack.numel(name) - start))
        return (rows @ rows.T).numpy(), rows.any(1).numpy()

    parts = [
        part for name in stack.places for part in in_order(partial(products, name), range(0, stack.numel(name), BLOCK))
    ]
    tasks = range(stack.tasks)
    fit = all(np.isfinite(part).all() for part, _ in parts)
    found = np.array([[math.fsum(part[i, j] for part, _ in parts) for j in tasks] for i in tasks]) if fit else None
    if found is None or not all(
        LEAST < found[task, task] < MOST or not any(some[task] for _, some in parts) for task in tasks
    ):
        raise TvgradError(
            "the squared lengths of these task vectors do not fit into float64: choose a method that needs no lengths, "
            "such as mean"
        )
    return found
