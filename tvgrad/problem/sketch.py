"""sketch: a gradient in few numbers, linear in it, for means and distances of gradients of which two need not fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvgrad.vectors.parameters import dense

HELD = 1 << 21
"""Elements up to which a gradient is its own sketch."""

WIDTH = 1 << 18
"""Numbers in the sketch of a larger one: a few of them are held beside the gradient."""


def sketch(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Add up the blocks of a gradient, each times a random number of its own.

    The numbers are the same for every gradient, so that a sum of sketches is the sketch of the sum. They are between
    3/4 and 5/4 with a random sign: the expected square of a sketch's norm is that of the gradient's within these
    factors, the norm of what differs in one block is exact within them, and blocks that differ by multiples of each
    other cancel for a set of numbers of measure zero alone. (A count sketch, Charikar et al. 2002, with a block as the
    buckets.)

    Args:
        parts: the gradient by tensors, on any device.

    Returns:
        A flat float64 tensor on the CPU: the whole gradient up to `HELD` elements, else `WIDTH` numbers.
    """
    if sum(part.numel() for part in parts) <= HELD:
        return torch.cat([dense(part).reshape(-1).double().cpu() for part in parts])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for part in parts:
        for block in dense(part).reshape(-1).split(WIDTH):
            share, sign = torch.rand(2, generator=generator).tolist()
            total[: len(block)].add_(block.double().cpu(), alpha=(0.75 + share / 2) * (1 if sign < 0.5 else -1))
    return total
