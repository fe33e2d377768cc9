"""held_whole: in a measuring pass each process holds the whole of a model that `fully_shard` has spread.

So every process has the gradients of its own batches, which weigh what they weigh, and waits for the others at the end
of the epoch alone, as under `DistributedDataParallel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import distributed, nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.find_trained_module import TrainedModule
from tvgrad.numerics.device import free_bytes
from tvgrad.problem.fully_sharded import FullySharded, at_work, sharded_modules

_KEPT = ExitStack()
"""Never left: a process that makes a pass ends with it."""


def held_whole(trained: TrainedModule) -> TrainedModule:
    """Let this process hold all parameters of a model from now on; of every process that trains it.

    Args:
        trained: the model, which need not be spread.

    Returns:
        The same with whole parameters, which its optimizers hold now.

    Raises:
        TvgradError: it is spread in a way that is not read, or a process has not the memory.
    """
    if not at_work(sharded_modules(trained.root)):
        return trained
    sharded = FullySharded(trained.root)
    spread = sharded.parameters()
    if sharded.divisor != sharded.count:
        raise TvgradError(
            f"the script has gradients divided by {sharded.divisor:g} and not by its number of processes "
            "(set_gradient_divide_factor), which a measuring pass does not follow"
        )
    # Weights and a gradient, of which the backward pass may hold two, and the float64 sum.
    needed = sum(one.numel() * (3 * one.dtype.itemsize + torch.float64.itemsize) for one in spread.values())
    _require_memory(float(needed), next(iter(spread.values())).device)
    sharded.stay_whole()
    whole = dict(trained.root.named_parameters())
    _answer_as_spread({whole[name]: parameter for name, parameter in spread.items()})
    instead = {id(parameter): whole[name] for name, parameter in spread.items()}
    for optimizer in trained.optimizers:
        for group in optimizer.param_groups:
            group["params"] = [instead.get(id(one), one) for one in group["params"]]
    return replace(trained, parameters={name: whole[name] for name in trained.parameters})


def _answer_as_spread(spread: Mapping[nn.Parameter, torch.Tensor]) -> None:
    """Let tensors of this process answer what scripts ask DTensors, which they have made of the model's until now.

    Args:
        spread: parameter, whole -> what it was.
    """

    def part(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG001
        """What this process would hold, for parameters and their gradients; else all."""
        like = next((was for one, was in spread.items() if tensor is one or tensor is one.grad), None)
        if like is None:
            return tensor
        (placement,) = like.placements  # type: ignore[attr-defined]
        mesh = like.device_mesh  # type: ignore[attr-defined]
        parts = tensor.chunk(mesh.size(), placement.dim)
        rank = mesh.get_local_rank()
        return parts[rank] if rank < len(parts) else tensor.narrow(placement.dim, 0, 0)

    def whole(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG001
        return tensor

    from torch.distributed.tensor.experimental import implicit_replication  # loads what other trainings do not need

    of_all: Any = torch.Tensor
    of_all.to_local, of_all.full_tensor, of_all.redistribute = part, whole, whole
    _KEPT.enter_context(implicit_replication())  # what scripts have made before may meet whole tensors now


def take_apart(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Set aside what was accumulated, before a backward pass.

    Args:
        parameters: name -> parameter, whole in every process.

    Returns:
        Name -> gradient, which the parameter has no more.
    """
    aside = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    for name in aside:
        parameters[name].grad = None
    return aside


def average(parameters: Mapping[str, nn.Parameter], aside: Mapping[str, torch.Tensor]) -> None:
    """Make the mean over all processes of a backward pass's gradients, as fully_shard does; of every process.

    Args:
        parameters: name -> parameter, whole in every process.
        aside: what was accumulated before.
    """
    count = distributed.get_world_size()
    for name, parameter in parameters.items():
        mean = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        distributed.all_reduce(mean)
        mean.div_(count)
        parameter.grad = mean if name not in aside else aside[name].add_(mean)


def _require_memory(needed: float, device: torch.device) -> None:
    free: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(free, free_bytes(device))
    least = min(free)
    if needed > least:
        raise TvgradError(
            f"a measuring pass holds the whole model in every process, which takes {needed / 1e9:.2g} GB, and process "
            f"{free.index(least)} has {least / 1e9:.2g} GB free: measure on fewer processes of this machine, or on "
            "larger ones"
        )
