"""Spread parameters: tensors of which each of several processes holds a part (FSDP2's DTensors)."""

from __future__ import annotations

import torch


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
