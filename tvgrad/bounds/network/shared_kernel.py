r"""Shared kernel: how the few numbers of a convolution's kernel fill the matrix of its exact operator.

A convolution without groups maps an image a to `z_(o,p) = K_o . patch_p(a) + b_o`, one inner product for each output
channel o and position p. That is a matrix M(K), linear in the kernel K, times the flattened image, so that everything
that is known of Linear layers holds, up to two factors for a step U of the kernel and beta of the bias:

- `||M(U) a||^2 = sum_p ||U patch_p(a)||^2 <= ||U||_F^2 sum_p ||patch_p(a)||^2 <= nu ||U||_F^2 ||a||^2`, where nu is the
  largest number of patches that one pixel lies in: hence `||M(U)||_2 <= sqrt(nu) ||U||_F`, and with groups the same,
  group by group. The Frobenius norm of M(U) would be sqrt(positions) ||U||_F, which is far larger.
- the bias stands at every position: `||beta everywhere|| = sqrt(positions) ||beta||`.

The adjoint, which collects a gradient in the matrix into one in the kernel, adds up `positions` numbers at most, so
its norm is at most sqrt(positions). M(K) holds copies of K's numbers and zeros: there is no rounding in it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from tvgrad.numerics.floats import round_up


@dataclass(frozen=True, eq=False)
class SharedKernel:
    """Which number of a kernel and of a bias stands where.

    Attributes:
        index: (outputs, inputs), the place in the flat kernel; the kernel's length where the entry is zero.
        channels: (outputs,), the place in the bias.
        kernel: the number of numbers in the kernel.
        biases: the number of channels.
        positions: how often a number of the kernel or of the bias stands in the matrix at most.
        overlap: nu, in how many patches a pixel lies at most.
    """

    index: torch.Tensor
    channels: torch.Tensor
    kernel: int
    biases: int
    positions: int
    overlap: int

    @property
    def weight_gain(self) -> float:
        """An upper bound of `||M(U)||_2 / ||U||_F`."""
        return round_up(math.sqrt(self.overlap), 1e-15)

    @property
    def bias_gain(self) -> float:
        """An upper bound of `||beta everywhere|| / ||beta||`, and of the norms of both adjoints."""
        return round_up(math.sqrt(self.positions), 1e-15)

    def matrix(self, weight: torch.Tensor) -> torch.Tensor:
        """Fill the matrix.

        Args:
            weight: the kernel, or a step of it.

        Returns:
            M(K), (outputs, inputs).
        """
        return torch.cat([weight.flatten(), weight.new_zeros(1)])[self.index]

    def offset(self, bias: torch.Tensor) -> torch.Tensor:
        """Put the bias at every position.

        Args:
            bias: (channels,).

        Returns:
            (outputs,).
        """
        return bias[self.channels]

    def collect(self, matrix: torch.Tensor) -> torch.Tensor:
        """The adjoint of `matrix`.

        Args:
            matrix: a gradient in the matrix.

        Returns:
            The gradient in the flat kernel.
        """
        total = matrix.new_zeros(self.kernel + 1)
        return total.index_add_(0, self.index.flatten(), matrix.flatten())[: self.kernel]

    def collect_offset(self, offset: torch.Tensor) -> torch.Tensor:
        """The adjoint of `offset`.

        Args:
            offset: a gradient in the offset.

        Returns:
            The gradient in the bias.
        """
        return offset.new_zeros(self.biases).index_add_(0, self.channels, offset)


@dataclass(frozen=True)
class Windows:
    """Where the windows of a convolution or a pooling stand; each pair is (height, width).

    Attributes:
        kernel: sizes of a window.
        stride: steps between windows.
        padding: zeros on each side.
        dilation: steps between the numbers of a window.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def count(self, image: tuple[int, int]) -> tuple[int, int]:
        """Count the windows.

        Args:
            image: height and width of the input.

        Returns:
            Height and width of the output; below 1 where no window fits.
        """
        height, width = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                image, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width


def shared_kernel(channels: tuple[int, int], image: tuple[int, int], windows: Windows, groups: int = 1) -> SharedKernel:
    """Lay a convolution out as a matrix.

    Args:
        channels: input and output channels.
        image: height and width of the input.
        windows: at least one.
        groups: of channels.

    Returns:
        The shared kernel.
    """
    pixels = torch.arange(1.0, image[0] * image[1] + 1, dtype=torch.float64).reshape(1, 1, *image)
    # (numbers of a window, positions): which pixel stands there, from 1; 0 for padding
    patches = nn.functional.unfold(pixels, windows.kernel, windows.dilation, windows.padding, windows.stride)[0].long()
    positions = patches.shape[1]
    inputs, outputs = channels[0] // groups, channels[1] // groups
    size = channels[1] * inputs * len(patches)
    numbers = torch.arange(size).reshape(channels[1], inputs, len(patches))
    index = torch.full((channels[1], positions, channels[0], pixels.numel() + 1), size)
    for group, (place, at) in itertools.product(range(groups), enumerate(patches)):
        to, since = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
        index[to, :, since][:, torch.arange(positions), :, at] = numbers[to, :, place]
    overlap = int(torch.bincount(patches.flatten(), minlength=2)[1:].max())
    flat = index[..., 1:].reshape(channels[1] * positions, -1)
    where = torch.arange(channels[1]).repeat_interleave(positions)
    return SharedKernel(flat, where, size, channels[1], positions, overlap)


def pooling_matrix(channels: int, image: tuple[int, int], windows: Windows) -> torch.Tensor:
    """Average pooling without padding, as a matrix.

    Args:
        channels: of the image.
        image: height and width of the input.
        windows: without padding.

    Returns:
        (outputs, inputs), whose entries are rounded once.
    """
    shared = shared_kernel((channels, channels), image, windows, channels)
    return shared.matrix(torch.full((shared.kernel,), 1 / math.prod(windows.kernel), dtype=torch.float64))
