"""The sign election of TIES: each coordinate's sign is that of the sum, its value the mean of the tasks that agree."""

from __future__ import annotations

import threading

import numpy as np
import torch

from tvgrad.merging.method import added
from tvgrad.streaming.blocks import at_least

SIGN = np.int64(np.iinfo(np.int64).min)
"""The bit that is a number's sign."""
COUNTED = 255
"""So many rows can be counted in a byte."""


class _Scratch(threading.local):
    """Memory that a thread works in: taken anew for each block, it would cost more than the work."""

    def __init__(self) -> None:
        self._number = torch.empty(0, dtype=torch.float64)
        self._agree, self._count = torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.int64)

    def rows(self, length: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A row of float64 numbers, one of marks, and one of counts of a kind."""
        self._number, self._agree = at_least(self._number, length), at_least(self._agree, length)
        self._count = at_least(self._count, length)
        return self._number[:length], self._agree[:length], self._count.view(kind)[:length]


_SCRATCH = _Scratch()


def elect_signs(block: torch.Tensor) -> None:
    """Merge a block of rows into its first one: the mean over the rows that have the elected sign.

    Args:
        block: float64, shape (tasks, length); it is overwritten.
    """
    kind = torch.uint8 if len(block) <= COUNTED else torch.int64
    number, agree, count = _SCRATCH.rows(block.shape[1], kind)
    first = block[0]
    added(block, into=number.copy_(first))
    sign = number.view(torch.int64).numpy()
    np.bitwise_and(sign, SIGN, out=sign)  # a sum that is zero is +0, never -0: what was dropped is +0
    count.zero_()
    for row, bits in zip(block, block.view(torch.int64).numpy(), strict=True):
        # Turned to the elected sign, an entry is above zero where its row agrees.
        np.bitwise_xor(bits, sign, out=bits)
        np.greater(row.numpy(), 0.0, out=agree.numpy())
        np.add(count.numpy(), agree.numpy(), out=count.numpy())
        row.clamp_(min=0)
    bits = added(block, into=first).view(torch.int64).numpy()
    np.bitwise_xor(bits, sign, out=bits)
    first.div_(number.copy_(count.clamp_(min=1)))
