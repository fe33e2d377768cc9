"""Flattening: a block of numbers turned so that none of them stands out, by signs and a Hadamard transform.

The signs come from a counter-based generator: those of any block are made when they are wanted, and never stored.
"""

from __future__ import annotations

import math

import numpy as np
import torch

SEED = 0x7461736B
"""Key of the generator: one for all vectors, or their sketches could not be compared."""


def flattened(block: torch.Tensor, number: int) -> torch.Tensor:
    """Multiply a block by `D' H D`: random signs, the orthonormal Hadamard matrix, random signs again.

    Lengths and inner products stay what they were. Each coordinate becomes a sum of all, with signs of its own.

    Args:
        block: float64 vector of a length that is a power of two; it is overwritten.
        number: of the block, from 0: each has other signs.

    Returns:
        The product, in a fixed order of its coordinates.
    """
    before, after = signs(number, len(block))
    turned = _hadamard(block.mul_(before))
    return turned.mul_(after).mul_(1 / math.sqrt(len(block)))


def signs(number: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the signs of a block.

    Args:
        number: of the block, from 0.
        width: its length.

    Returns:
        Two float64 vectors of plus and minus one, the bits of Philox 4x64 under the key `SEED` from counter
        `number * 2**64` on.
    """
    words = np.random.Philox(key=SEED, counter=number << 64).random_raw(-(-2 * width // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=2 * width)
    drawn = torch.from_numpy(bits).to(torch.float64).mul_(-2).add_(1)
    return drawn[:width], drawn[width:]


class BlockTurner:
    """Turns the blocks of one tensor, several at a time; the bits are those of one after the other."""

    def __init__(self, place: int, width: int) -> None:
        """Begin with the first block.

        Args:
            place: of the tensor among the names in their order, from 0: each has other signs.
            width: length of a block, a power of two.
        """
        self._bits = np.random.Philox(key=SEED, counter=(place + 1) << 128)
        self._width = width

    def turned(self, rows: torch.Tensor) -> torch.Tensor:
        """Multiply the next blocks by their `D' H D`.

        Args:
            rows: float64, a block in each row; they are overwritten.

        Returns:
            The products, a block in each row.
        """
        count = len(rows)
        words = self._bits.random_raw(2 * count * self._width // 64)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8)).reshape(count, 2, self._width)
        drawn = torch.from_numpy(bits).to(torch.float64).mul_(-2).add_(1)
        turned = _columns(rows.mul_(drawn[:, 0]).t().contiguous()).t()
        return turned.mul_(drawn[:, 1]).mul_(1 / math.sqrt(self._width))


def _hadamard(vector: torch.Tensor) -> torch.Tensor:
    """Multiply by the Hadamard matrix of plus and minus ones, without its factor: the same bits on every machine."""
    # Sums and differences of two numbers, level by level; as a matrix, so that the inner loops of both halves are long.
    levels = len(vector).bit_length() - 1
    rows = 1 << (levels - levels // 2)
    turned = _columns(vector.view(rows, -1)).t().contiguous()
    return _columns(turned).reshape(-1)


def _columns(matrix: torch.Tensor) -> torch.Tensor:
    """Transform each column of a contiguous matrix."""
    rows, columns = matrix.shape
    here, there = matrix, torch.empty_like(matrix)
    half = rows // 2
    while half:
        pairs, sums = here.view(-1, 2, half, columns), there.view(-1, 2, half, columns)
        torch.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        torch.sub(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        here, there = there, here
        half //= 2
    return here
