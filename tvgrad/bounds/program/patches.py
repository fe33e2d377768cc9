r"""Patches: entries of a tensor copied into the windows of a convolution or of a pooling, zeros where they leave it.

A convolution is a Linear layer of the patches, `y[t, o] = sum_k x[index[t, k]] w[o, k] + b[o]`, and its bounds are
those of the copy and of the layer. The copy C has one 1 in every row, or none: `C'C` is the diagonal matrix of how
often an entry is read, so that `||C||^2` is the largest of these counts, which one entry attains; it is linear. The
transpose adds up as many numbers for each entry. The norm of the whole convolution is so bounded by the root of this
count times `||w||_2`; between two cuts the Jacobian is pulled back as it is, and the factor is not in it. Grouped
convolutions are products with one matrix for each group, of which the largest norm counts.
Tested in `tests/bounds/program/test_patches.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from tvgrad.bounds.program.balls import Ball, total
from tvgrad.bounds.program.operation import Enclosure, Operation, reduced
from tvgrad.numerics.floats import round_up


@dataclass(frozen=True)
class Patches(Operation):
    """Entries by their numbers.

    Attributes:
        index: of one sample's entries, of the shape of the result; -1 for zero.
    """

    linear: ClassVar[bool] = True
    index: torch.Tensor

    def value(self, *args: Ball) -> Ball:
        """Compute the result."""
        return args[0].map(lambda part: _taken(part, self.index))

    def pull(self, args: Sequence[Ball], out: Ball, p: Ball, wanted: Sequence[bool]) -> list[Ball | None]:
        """Multiply the transposed derivatives with p."""
        shape = args[0].shape
        places = self._readers(shape[1:].numel())
        found = total(p.map(lambda part: _taken(part, places)), [-1])
        return [reduced(found.reshape(p.shape[0], *shape[1:]), shape)]

    def first(self, args: Sequence[Enclosure], out: Enclosure) -> list[torch.Tensor | float]:
        """Bound the norms of the derivatives."""
        return [round_up(float(self._counts.max()) ** 0.5)]

    @cached_property
    def _counts(self) -> torch.Tensor:
        """How often an entry is read; entries after the last that is read are left out."""
        return torch.bincount(self.index[self.index >= 0].flatten(), minlength=1)

    def _readers(self, size: int) -> torch.Tensor:
        """For each of the entries, where it is read: (size, most often), filled up with -1."""
        flat = self.index.flatten()
        order = flat.argsort(stable=True)
        order = order[flat[order] >= 0]
        entries = flat[order]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._counts.cumsum(0)])
        found = torch.full((size, int(self._counts.max())), -1)
        found[entries, torch.arange(len(order)) - starts[entries]] = order
        return found


def _taken(part: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Entries of each sample by their numbers, zeros for -1."""
    flat = torch.nn.functional.pad(part.reshape(len(part), -1), (0, 1))
    return flat[:, index.flatten()].reshape(len(part), *index.shape)


@dataclass(frozen=True)
class Window:
    """What a convolution reads along each axis of space.

    Attributes:
        kernel: taps.
        stride: between two positions.
        padding: zeros on either side.
        dilation: between two taps.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def index(self, channels: int, space: Sequence[int]) -> torch.Tensor:
        """Numbers of the entries that are read.

        Args:
            channels: of the tensor (channels, ...).
            space: its lengths along the other axes.

        Returns:
            (channels, positions, taps), -1 where it is zero.
        """
        found, inside = torch.arange(channels)[:, None, None], torch.ones(1, 1, 1, dtype=torch.bool)
        for length, kernel, stride, padding, dilation in zip(
            space, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            positions = torch.arange((length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1)
            at = positions[:, None] * stride + torch.arange(kernel) * dilation - padding
            found = (found[:, :, None, :, None] * length + at[:, None]).flatten(3).flatten(1, 2)
            inside = (inside[:, :, None, :, None] & ((at >= 0) & (at < length))[:, None]).flatten(3).flatten(1, 2)
        return torch.where(inside, found, -1)
