"""Iterated tune-and-merge (ATM, arXiv 2411.03055): tune every task a little from the same weights, merge, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from tvgrad.errors import TvgradError
from tvgrad.merging.merge import merge_vectors
from tvgrad.merging.method import Method, checked_alpha
from tvgrad.merging.task_arithmetic import Mean
from tvgrad.problem.recipe import positive_integer
from tvgrad.vectors.parameters import Weights

Tune = Callable[[Weights, int], Mapping[str, torch.Tensor]]
"""(weights to start from, number of the round from 0) -> one task's weights after tuning."""


def tune_and_merge(
    start: Mapping[str, torch.Tensor],
    tasks: Sequence[Tune],
    rounds: int,
    *,
    method: Method | None = None,
    alpha: float = 1.0,
) -> Iterator[Weights]:
    """Alternate between tuning each task from the shared weights and merging what came of it.

    With one full-batch gradient step a round and the mean, a round is one step of multitask gradient descent on the
    mean of the losses, exactly; with an epoch of mini-batches it is what federated learning calls local steps.

    Args:
        start: the pretrained weights.
        tasks: one function a task.
        rounds: how often to tune and merge.
        method: how to merge a round's task vectors; by default the mean.
        alpha: what each merged vector is multiplied with.

    Yields:
        The shared weights after each round, in the start's dtypes.

    Raises:
        TvgradError: there is no task, rounds is below 1, or a round cannot be merged.

    Examples:
        >>> import torch
        >>> from tvgrad.merging import tune_and_merge
        >>> goals = (1.0, 3.0)
        >>> tasks = [lambda weights, number, goal=goal: {"w": (weights["w"] + goal) / 2} for goal in goals]
        >>> [weights["w"].item() for weights in tune_and_merge({"w": torch.zeros(1)}, tasks, rounds=3)]
        [1.0, 1.5, 1.75]
    """
    chosen, factor = Mean() if method is None else method, checked_alpha(alpha)
    count = positive_integer(rounds, "rounds")
    if not tasks:
        raise TvgradError("there is no task to tune: give one function for each")
    weights = {name: tensor.detach().clone() for name, tensor in start.items()}
    for number in range(count):
        vectors = []
        for tune in tasks:
            tuned = tune({name: tensor.clone() for name, tensor in weights.items()}, number)
            vectors.append({name: tuned[name].detach().double() - weights[name].double() for name in weights})
        weights = merge_vectors(chosen, vectors, factor, base=weights)
        yield dict(weights)
