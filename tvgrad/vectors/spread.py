"""Spread parameters: tensors of which each of several processes holds a part (FSDP2's DTensors)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import distributed

from tvgrad.errors import TvgradError


def is_spread(tensor: object) -> bool:
    """Tell whether this process holds a part of a tensor only.

    Args:
        tensor: a parameter, a gradient, or anything else.

    Returns:
        Whether it is a DTensor.
    """
    return type(tensor).__name__ == "DTensor"


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Take what this process holds of a tensor.

    Args:
        tensor: any tensor.

    Returns:
        Its part, in the same memory; the tensor itself where it is whole.
    """
    part: torch.Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return part


def part_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut out what this process holds of a tensor that is spread as another one is.

    Args:
        whole: the tensor, the same in every process, or spread like the other one already.
        like: a spread tensor of its shape.

    Returns:
        This process's part, on its device, in the dtype of `whole`.
    """
    if is_spread(whole):
        spread = whole if whole.placements == like.placements else whole.redistribute(placements=like.placements)  # type: ignore[attr-defined]
        return own_part(spread)
    from torch.distributed.tensor import distribute_tensor  # loads what a training without it does not need

    there = whole.detach().to(own_part(like).device)
    return own_part(distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None))  # type: ignore[attr-defined]


def spread_like(part: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Make a spread tensor of this process's part.

    Args:
        part: what this process holds of it.
        like: a spread tensor of the same shape, spread in the same way.

    Returns:
        A DTensor with the part's dtype.
    """
    from torch.distributed.tensor import DTensor  # loads what a training without it does not need

    return DTensor.from_local(
        part.detach().to(like.device),
        like.device_mesh,  # type: ignore[attr-defined]
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Put one tensor together; of every process.

    Args:
        tensor: any tensor.

    Returns:
        It, whole.
    """
    whole: torch.Tensor = tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[attr-defined]
    return whole


def of_all_parts(own: float, tensors: Iterable[torch.Tensor]) -> list[float]:
    """Collect a number that every process has of what it holds; of every process.

    Args:
        own: the number here.
        tensors: what it was made of, all of them whole or all spread.

    Returns:
        Those of all processes where the tensors are spread, by rank; else the one.
    """
    spread = next(filter(is_spread, tensors), None)
    if spread is None:
        return [own]
    mesh, device = spread.device_mesh, own_part(spread).device  # type: ignore[attr-defined]
    found = [torch.zeros(1, dtype=torch.float64, device=device) for _ in range(mesh.size())]
    distributed.all_gather(found, torch.tensor([own], dtype=torch.float64, device=device), group=mesh.get_group())
    return [float(one) for one in found]


def require_one_mesh(parameters: Mapping[str, torch.Tensor]) -> None:
    """Refuse what is not FSDP2 over all processes.

    Args:
        parameters: name -> parameter.

    Raises:
        TvgradError: a parameter is whole where others are not, or spread over a mesh of several dimensions or of a part
            of the processes.
    """
    for name, parameter in parameters.items():
        if not is_spread(parameter):
            raise TvgradError(
                f"{name} is whole in each process and other parameters are spread over several, as tensor parallelism "
                "has them, which is not recorded: use fully_shard on the whole model"
            )
        mesh = parameter.device_mesh  # type: ignore[attr-defined]
        if mesh.ndim != 1 or mesh.size() != distributed.get_world_size():
            raise TvgradError(
                f"{name} is spread over a mesh of shape {tuple(mesh.shape)} of {distributed.get_world_size()} "
                "processes (tensor parallelism, or hybrid sharding), which is not recorded: use fully_shard over all"
            )


def owners(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """Share out what has a size, the largest first, each to the process that has least.

    Args:
        sizes: name -> size.
        count: of processes.

    Returns:
        Name -> rank.
    """
    load = [0] * count
    owner = {}
    for name in sorted(sizes, key=lambda one: (-sizes[one], one)):
        owner[name] = min(range(count), key=lambda rank: (load[rank], rank))
        load[owner[name]] += sizes[name]
    return owner
