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

UP = 1 + 1e-15


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
        return math.sqrt(self.overlap) * UP

    @property
    def bias_gain(self) -> float:
        """An upper bound of `||beta everywhere|| / ||beta||`, and of the norms of both adjoints."""
        return math.sqrt(self.positions) * UP

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


def shared_kernel(
    channels: tuple[int, int],
    image: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[SharedKernel, tuple[int, int]]:
    """Lay a convolution out as a matrix.

    Args:
        channels: input and output channels.
        image: height and width of the input.
        kernel: height and width.
        stride: in both directions.
        padding: zeros on each side.
        dilation: in both directions.
        groups: of channels.

    Returns:
        The shared kernel, and height and width of the output.
    """
    height, width = ((image[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in range(2))
    inputs, outputs = channels[0] // groups, channels[1] // groups
    size = channels[1] * inputs * kernel[0] * kernel[1]
    index = torch.full((channels[1], height, width, channels[0], *image), size)
    touched = torch.zeros(image, dtype=torch.long)
    numbers = torch.arange(size).reshape(channels[1], inputs, *kernel)
    for row, column, y, x in itertools.product(range(height), range(width), range(kernel[0]), range(kernel[1])):
        at_y = row * stride[0] - padding[0] + y * dilation[0]
        at_x = column * stride[1] - padding[1] + x * dilation[1]
        if not (0 <= at_y < image[0] and 0 <= at_x < image[1]):
            continue
        touched[at_y, at_x] += 1  # a pixel lies in a patch at one place of it
        for group in range(groups):
            to, since = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
            index[to, row, column, since, at_y, at_x] = numbers[to, :, y, x]
    positions = height * width
    where = torch.arange(channels[1]).repeat_interleave(positions)
    flat = index.reshape(channels[1] * positions, channels[0] * image[0] * image[1])
    return SharedKernel(flat, where, size, channels[1], positions, int(touched.max())), (height, width)


def pooling_matrix(
    channels: int, image: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Average pooling without padding, as a matrix.

    Args:
        channels: of the image.
        image: height and width of the input.
        kernel: height and width.
        stride: in both directions.

    Returns:
        (outputs, inputs), whose entries are rounded once, and height and width of the output.
    """
    shared, size = shared_kernel((channels, channels), image, kernel, stride, (0, 0), (1, 1), channels)
    share = torch.full((shared.kernel,), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
    return shared.matrix(share), size
