"""Devices: a device option becomes a device that exists."""

from __future__ import annotations

import os

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.system import free_memory


def resolve_device(device: str | torch.device, model: nn.Module | None = None) -> torch.device:
    """Turn a device option into a device that exists.

    Args:
        device: `auto`, or anything `torch.device` takes.
        model: with `auto`, a model that is already on an accelerator keeps it.

    Returns:
        The device, with its index.

    Raises:
        TvgradError: the name is not a device, or there is none such here.
    """
    if str(device) == "auto":
        first = next(iter(model.parameters())).device if model is not None else torch.device("cpu")
        if first.type != "cpu" or not torch.cuda.is_available():
            return first
        return torch.device("cuda", torch.cuda.current_device())
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise TvgradError(f"device {str(device)!r} is not available here ({reason}): choose auto or cpu") from None
    if chosen.type == "meta":
        raise TvgradError(
            "tensors on device 'meta' have no values: load the model's weights, and choose another device"
        )
    return torch.empty(0, device=chosen).device


def distributed_count() -> int:
    """Count the processes that train together.

    Returns:
        How many; 1 where there is no group of them.
    """
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def distributed_rank() -> int:
    """Tell which of several processes that train together this one is.

    Returns:
        Its rank; 0 where it is alone.
    """
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def free_bytes(device: torch.device) -> float:
    """Tell how much memory is free on a device.

    Args:
        device: any.

    Returns:
        Bytes; infinity where it cannot be asked. Of the memory that torchrun's processes on one machine have together,
        the share of one.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return free_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
