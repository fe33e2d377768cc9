"""Weights of a module, moved at random: a wrong gradient may not show where a model starts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from tvgrad.numerics.floats import unit_roundoff
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.vectors.parameters import BLOCK, norm


def perturbed(module: BatchLoss, amount: float, in_place: bool) -> dict[str, torch.Tensor]:
    """Weights and buffers of a module, the weights moved at random by a share of their size.

    Args:
        module: model and loss, on any device.
        amount: the share; 0 leaves the weights as they are, and copies none.
        in_place: whether the module's own weights may move, so that no second copy of them is held.

    Returns:
        Name -> tensor, of each parameter what this process holds; buffers are copies.
    """
    generator = torch.Generator().manual_seed(0)
    moved = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for name, weight in module.parts().items():
        moved[name] = weight
        if amount and (weight.is_floating_point() or weight.is_complex()):
            if not in_place or not weight.is_contiguous():
                moved[name] = _copy(weight)
            blocks = moved[name].view(-1).split(BLOCK)  # one at a time is copied to float64
            size = math.hypot(*(norm({name: block}) for block in blocks)) / max(1, weight.numel()) ** 0.5
            scale = amount * (size + 0.1)
            for part, noise in _with_noise(moved[name], generator):
                part.add_(noise.to(part), alpha=scale)
    return moved


def nearby(weights: dict[str, torch.Tensor], sign: int) -> dict[str, torch.Tensor]:
    """Move weights at random by a few units of rounding.

    Args:
        weights: name -> tensor.
        sign: 1 or -1, for one way or the other.

    Returns:
        Copies; what has no rounding is itself.
    """
    generator = torch.Generator().manual_seed(1)
    moved = dict(weights)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            moved[name] = _copy(tensor)
            unit = sign * 16 * unit_roundoff(tensor.dtype)
            for part, noise in _with_noise(moved[name], generator):
                part.copy_(part.double() * (1 + unit * noise.to(part.device)))
    return moved


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _with_noise(tensor: torch.Tensor, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of a tensor, which may be changed, and normal noise for each: noise for a large one need not fit."""
    for part in tensor.view(-1).split(BLOCK):
        yield part, torch.randn(part.shape, generator=generator, dtype=torch.float64)
