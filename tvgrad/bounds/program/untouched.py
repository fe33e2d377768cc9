"""Which coordinates can have a gradient at all: the others keep a gradient of exactly zero for all weights.

Where a Linear layer reads what no trained weight changes (the data itself, mostly), and entry j of that is zero in
every row of every sample, column j of its matrix has no part in the loss. The same holds for rows of an embedding that
no sample takes. Test: `tests/bounds/program/test_adam_tube.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from tvgrad.bounds.program.affine import Linear
from tvgrad.bounds.program.balls import Ball
from tvgrad.bounds.program.graph import Graph
from tvgrad.bounds.program.operation import Operation
from tvgrad.bounds.program.passes import Known, whole_numbers
from tvgrad.bounds.program.rearrangements import Embedding


def moving_coordinates(
    graph: Graph, parameters: Sequence[Ball], inputs: torch.Tensor, targets: torch.Tensor, chunk_size: int
) -> torch.Tensor:
    """Find the coordinates whose gradient is not known to be zero for all weights.

    Args:
        graph: the program.
        parameters: in the places of the graph, each with a first axis of length 1.
        inputs: all samples.
        targets: all targets.
        chunk_size: samples at once.

    Returns:
        True where there may be a gradient, in the order of the flat vector.
    """
    moving = {place: torch.zeros(parameters[place].shape[1:], dtype=torch.bool) for place in graph.trainable}
    for start in range(0, len(inputs), chunk_size):
        chunk = slice(start, start + chunk_size)
        known = _untrained(graph, parameters, inputs[chunk], targets[chunk])
        for step in graph.steps.values():
            for number, place in enumerate(step.inputs):
                if place in moving:
                    args = [known.get(one) for one in step.inputs]
                    moving[place] |= _touched(step.operation, number, args, *moving[place].shape[:1])
    return torch.cat([moving[place].flatten() for place in graph.trainable])


def _untrained(
    graph: Graph, parameters: Sequence[Ball], inputs: torch.Tensor, targets: torch.Tensor
) -> dict[int, Known]:
    """All tensors that no trained weight changes."""
    known: dict[int, Known] = {
        place: ball for place, ball in enumerate(parameters) if place not in set(graph.trainable)
    }
    for place, tensor in ({graph.inputs: inputs[:, None], graph.targets: targets[:, None]} | graph.constants).items():
        known[place] = Ball.exact(tensor.double(), precise=False) if tensor.is_floating_point() else tensor
    for place, step in graph.steps.items():
        if step.trained or not all(one in known for one in step.inputs):
            continue
        args = [known[one] for one in step.inputs]
        if isinstance(step.operation, Operation):
            known[place] = step.operation.value(*cast("list[Ball]", args))
        else:
            known[place] = whole_numbers(step.operation, cast("list[torch.Tensor]", args))
    return known


def _touched(operation: object, number: int, args: Sequence[Known | None], rows: int = 1) -> torch.Tensor:
    """Which entries of a parameter the operation's result can depend on; broadcasts to its shape."""
    if isinstance(operation, Linear) and number == 1 and isinstance(args[0], Ball):
        x = args[0]
        return ((x.hi != 0) | (x.spread != 0)).reshape(-1, x.shape[-1]).any(0)
    if isinstance(operation, Embedding) and number == 0 and isinstance(args[1], torch.Tensor):
        return (torch.bincount(args[1].flatten(), minlength=rows) > 0)[:, None]
    return torch.ones((), dtype=torch.bool)
