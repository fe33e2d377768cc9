"""The sign election of TIES: each coordinate's sign is that of the sum, its value the mean of the tasks that agree."""

from __future__ import annotations

import threading

import torch

from tvgrad.streaming.blocks import at_least


class _Scratch(threading.local):
    """Memory that a thread works in: taken anew for each block, it would cost more than the work."""

    def __init__(self) -> None:
        self._held, self._ones = torch.empty(0, dtype=torch.float64), torch.ones(0, dtype=torch.float64)

    def rows(self, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Three rows to write to, and one of ones."""
        self._held = at_least(self._held, 3 * length)
        if self._ones.numel() < length:
            self._ones = torch.ones(length, dtype=torch.float64)
        first, second, third = self._held[: 3 * length].view(3, length)
        return first, second, third, self._ones[:length]


_SCRATCH = _Scratch()


def elect_signs(block: torch.Tensor) -> None:
    """Merge a block of rows into its first one: the mean over the rows that have the elected sign.

    Args:
        block: float64, shape (tasks, length); it is overwritten.
    """
    sign, count, one_count, ones = _SCRATCH.rows(block.shape[1])
    first, others = block[0], block[1:]
    sign.copy_(first)
    for row in others:
        sign.add_(row)
    torch.copysign(ones, sign, out=sign)  # a sum that is zero is +0, never -0: what was dropped is +0
    # Turned to the elected sign, an entry is above zero where its row agrees.
    block.mul_(sign).clamp_(min=0)
    torch.sign(first, out=count)
    for row in others:
        count.add_(torch.sign(row, out=one_count))
        first.add_(row)
    first.mul_(sign).div_(count.clamp_(min=1))
