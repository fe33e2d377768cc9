r"""Weight disentanglement: whether a task's answers depend on its own task vector alone (arXiv 2305.12827).

    xi(a1, a2) = sum_t E_{x in t} [ pred(x; theta_0 + a_t tau_t) != pred(x; theta_0 + a_1 tau_1 + a_2 tau_2) ]

It is exact on the samples that are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.vectors.algebra import combination

GRID = (0.0, 0.5, 1.0)


def disentanglement_error(
    objectives: Sequence[Objective],
    task_vectors: Sequence[Mapping[str, torch.Tensor]],
    grid: Sequence[float] = GRID,
    *,
    tangent: bool = False,
) -> NDArray[np.float64]:
    r"""Evaluate the error of two tasks on a grid of coefficients.

    Args:
        objectives: of the two tasks, on the samples to be evaluated, at the shared pretrained weights.
        task_vectors: of the two tasks.
        grid: coefficients of either.
        tangent: whether the model's tangent model answers: two products with its Jacobian a task are then enough for
            the whole grid.

    Returns:
        `error[i, j]` with the first coefficient `grid[i]` and the second `grid[j]`: shares of the samples whose answer
        the other task's vector changes, summed over the two tasks. From 0 to 2.

    Raises:
        TvgradError: there are not two tasks, no coefficient, or the outputs are no classes.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.disentanglement import disentanglement_error
        >>> model = torch.nn.Linear(2, 2, bias=False).double()
        >>> torch.nn.init.zeros_(model.weight) is not None
        True
        >>> inputs = [torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()]
        >>> tasks = [tvgrad.Objective(model, torch.nn.CrossEntropyLoss(), (x, torch.zeros(1).long())) for x in inputs]
        >>> vectors = [{"weight": torch.tensor([[1.0, 0.0], [-1.0, 0.0]])}, {"weight": torch.tensor([[0.0, 1.0], [0.0, -1]])}]
        >>> disentanglement_error(tasks, vectors, (0.5, 1.0)).tolist()  # each acts on its own inputs alone
        [[0.0, 0.0], [0.0, 0.0]]
    """  # noqa: E501 - a doctest
    if len(objectives) != 2 or len(task_vectors) != 2:
        raise TvgradError(
            f"disentanglement is of 2 tasks, and {len(objectives)} objectives and {len(task_vectors)} task vectors "
            "were given: take them in pairs"
        )
    if not grid:
        raise TvgradError("there is no coefficient to try: give at least one")
    error = np.zeros((len(grid), len(grid)))
    for task, objective in enumerate(objectives):
        answers = (_of_tangent_model if tangent else _of_model)(objective, task_vectors)
        alone = [answers((a, 0.0) if task == 0 else (0.0, a)) for a in grid]
        for i, first in enumerate(grid):
            for j, second in enumerate(grid):
                other = second if task == 0 else first
                if other != 0:  # else both answers are the same one
                    changed = answers((first, second)) != alone[i if task == 0 else j]
                    error[i, j] += float(changed.double().mean())
    return error


Answers = Callable[[tuple[float, float]], torch.Tensor]


def _of_model(objective: Objective, vectors: Sequence[Mapping[str, torch.Tensor]]) -> Answers:
    def answers(at: tuple[float, float]) -> torch.Tensor:
        point = combination((1.0, objective.initial), *zip(at, vectors, strict=True))
        return _classes(objective.outputs(point))

    return answers


def _of_tangent_model(objective: Objective, vectors: Sequence[Mapping[str, torch.Tensor]]) -> Answers:
    start, slopes = objective.outputs(), [objective.jvp(vector) for vector in vectors]
    return lambda at: _classes(start + at[0] * slopes[0] + at[1] * slopes[1])


def _classes(outputs: torch.Tensor) -> torch.Tensor:
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise TvgradError(
            f"outputs of shape {tuple(outputs.shape)} are no classes: disentanglement takes (samples, classes)"
        )
    return outputs.argmax(1)


def tangent_interference(objective: Objective, task_vector: Mapping[str, torch.Tensor]) -> float:
    r"""Evaluate how far another task's vector moves this task's outputs to first order: tau-Jp (arXiv 2305.12827).

    Args:
        objective: of this task, at the pretrained weights.
        task_vector: of the other.

    Returns:
        $\mathbb{E}_x \|J(x; \theta_0) \tau\|$, the mean over samples of the length of the change of their outputs.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.disentanglement import tangent_interference
        >>> model, data = torch.nn.Linear(2, 2, bias=False).double(), (torch.eye(2).double(), torch.zeros(2).long())
        >>> objective = tvgrad.Objective(model, torch.nn.CrossEntropyLoss(), data)
        >>> tangent_interference(objective, {"weight": torch.tensor([[3.0, 0.0], [4.0, 0.0]])})
        2.5
    """
    return float(objective.jvp(task_vector).double().flatten(1).norm(dim=1).mean())
