"""Ranks: a measuring pass of a script that trains in several processes by `DistributedDataParallel`.

Every process keeps to the weights of the point and sums the gradients of its own batches, which are not averaged in
backward passes any more. At the end the sums are added: the first process reports, the others wait to be ended.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tvgrad.errors import TvgradError
from tvgrad.record.batch_items import sum_of_fingerprints
from tvgrad.record.weighing import BatchWeights, Weighing
from tvgrad.vectors.parameters import Weights

KEPT = ("content", "data", "apart", "watched", "batch_fingerprints")
"""Facts of every process that are joined."""


def ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the first of those that train together, or the only one."""
    return ranks() == 1 or distributed.get_rank() == 0


def keep_gradients_apart() -> None:
    """Have backward passes leave each process its own gradient, as under the wrapper's `no_sync`."""
    forward: Any = DistributedDataParallel.forward

    @functools.wraps(forward)
    def forward_alone(model: Any, *args: Any, **kwargs: Any) -> Any:
        model.require_backward_grad_sync = False
        return forward(model, *args, **kwargs)

    setattr(DistributedDataParallel, "forward", forward_alone)  # noqa: B010 - mypy forbids an assignment to a method


def averaged(gradient: Weights, parameters: Mapping[str, torch.Tensor]) -> Weights:
    """The mean of a gradient over all processes, as the wrapper would have made it.

    Args:
        gradient: name -> tensor; none is zero, in this process.
        parameters: name -> parameter.

    Returns:
        Name -> float64 tensor; the gradient itself where there is one process.
    """
    count = ranks()
    if count == 1:
        return gradient
    whole = {}
    for name, parameter in parameters.items():
        part = gradient.get(name)
        none = torch.zeros_like(parameter, dtype=torch.float64)
        whole[name] = none if part is None else part.detach().to(torch.float64, copy=True)
        distributed.all_reduce(whole[name])
        whole[name] /= count
    return whole


def refuse_steps(weighing: Weighing) -> None:
    """Refuse losses whose mean is over the items of a whole step, which several processes have together.

    Args:
        weighing: how gradients add up.

    Raises:
        TvgradError: it is by steps, and there are several processes.
    """
    if ranks() > 1 and weighing is Weighing.STEP:
        raise TvgradError(
            "the loss is a mean over the tokens of a step, which several processes take together: measure it with one "
            "process, or by a recipe"
        )


def most_told(weights: BatchWeights, told: float) -> BatchWeights:
    """The weights of the process whose batch has told most counters apart, the first of them.

    Args:
        weights: that this one has found.
        told: how many counters its batch has told apart.

    Returns:
        The same in every process.
    """
    found: list[Any] = [(told, weights)]
    if ranks() > 1:
        found = [None] * ranks()
        distributed.all_gather_object(found, (told, weights))
    best: BatchWeights = max(found, key=lambda one: one[0])[1]
    return best


def facts_of_all(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a pass over the batches of all processes.

    Args:
        facts: of this one.

    Returns:
        The same with samples, draws, batches and contents added up, those of this process as own_samples and
        own_content, batches_of_each, and the number of processes.
    """
    count = ranks()
    facts = facts | {"own_samples": facts["samples"], "own_content": facts["content"], "processes": count}
    if count == 1:
        return facts | {"batches_of_each": [facts["batches"]]}
    found: list[Any] = [None] * count
    counts = ("samples", "drawn_again", "batches")
    distributed.all_gather_object(found, {name: facts[name] for name in (*counts, *KEPT)})
    samples, contents = sum(one["samples"] for one in found), [one["content"] for one in found]
    # Processes may have data sets of their own, each with a part of the samples.
    parts = all(one["samples"] == one["data"] for one in found) and None not in contents
    return facts | {
        **{name: sum(one[name] for one in found) for name in counts},
        "content": sum_of_fingerprints(contents),
        "apart": sorted(set[int]().union(*(one["apart"] for one in found))),
        "watched": all(one["watched"] for one in found),
        "batch_fingerprints": [number for one in found for number in one["batch_fingerprints"]],
        "batches_of_each": [one["batches"] for one in found],
        "data": samples if parts and len(set(contents)) == count else facts["data"],
    }
