"""Reading the layers that work on images: convolutions and average pooling, as matrices on flattened images.

A signal of one dimension is an image of height 1. Images are flattened as `nn.Flatten` does it: channel, row, column.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from tvgrad.bounds.activations.registry import activation_of
from tvgrad.bounds.network.network import Layer, UnsupportedNetwork
from tvgrad.bounds.network.shared_kernel import Windows, pooling_matrix, shared_kernel
from tvgrad.bounds.reading.builder import IDENTITY, Shape, layer_of

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
LARGEST = 2**23  # numbers in one operator's matrix: 64 MB


def convolution(name: str, prefix: str, module: nn.Conv1d | nn.Conv2d, shape: Shape | None) -> tuple[Layer, Shape]:
    """Read a convolution as its exact operator.

    Args:
        name: for messages.
        prefix: of the parameters' names.
        module: the convolution.
        shape: of what enters it, or None where that is flat.

    Returns:
        The layer, and the shape of what leaves it.

    Raises:
        UnsupportedNetwork: it does not fit the shape, pads with something other than zeros, or is too large.
    """
    dimensions = 1 if isinstance(module, nn.Conv1d) else 2
    entering, image = _image(name, shape, dimensions)
    if module.padding_mode != "zeros":
        raise UnsupportedNetwork(f"{name} pads by {module.padding_mode}: use zeros")
    if entering != module.in_channels:
        raise UnsupportedNetwork(
            f"{name} takes {module.in_channels} channels and is given {entering}: give data of the model's shape"
        )
    kernel, dilation = _pair(module.kernel_size, 1), _pair(module.dilation, 1)
    padding = (0, 0) if module.padding == "valid" else _pair(module.padding, 0)
    if module.padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(r % 2 for r in reach):
            raise UnsupportedNetwork(f"{name} pads by an odd number: use an odd kernel, or padding in numbers")
        padding = (reach[0] // 2, reach[1] // 2)
    windows = Windows(kernel, _pair(module.stride, 1), padding, dilation)
    leaving = _leaving(name, (entering, *image), module.out_channels, windows)
    shared = shared_kernel((module.in_channels, module.out_channels), image, windows, module.groups)
    return layer_of(module, prefix, shared), (module.out_channels, *leaving[2 - dimensions :])


def pooling(name: str, module: nn.Module, shape: Shape | None) -> tuple[Layer, Shape]:
    """Read average pooling as a frozen matrix.

    Args:
        name: for messages.
        module: one of `POOLINGS`.
        shape: of what enters it, or None where that is flat.

    Returns:
        The layer, and the shape of what leaves it.

    Raises:
        UnsupportedNetwork: it does not fit the shape, or has padding or another option that is not known here.
    """
    dimensions = 1 if isinstance(module, (nn.AvgPool1d, nn.AdaptiveAvgPool1d)) else 2
    channels, image = _image(name, shape, dimensions)
    options: Any = module
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d)):
        windows = Windows(_pair(options.kernel_size, 1), _pair(options.stride, 1))
        if any(_pair(options.padding, 0)) or options.ceil_mode or getattr(options, "divisor_override", None):
            raise UnsupportedNetwork(f"{name} pools with padding, ceil_mode or a divisor of its own: leave them out")
    else:
        wanted = _pair(options.output_size, 1)
        if dimensions == 1:
            wanted = (1, wanted[1])
        sizes = [image[d] if w is None else w for d, w in enumerate(wanted)]
        if any(i % w for i, w in zip(image, sizes, strict=True)):
            raise UnsupportedNetwork(f"{name} pools windows of different sizes: choose sizes that divide {image}")
        kernel = (image[0] // sizes[0], image[1] // sizes[1])
        windows = Windows(kernel, kernel)
    leaving = _leaving(name, (channels, *image), channels, windows)
    matrix = pooling_matrix(channels, image, windows)
    layer = Layer(matrix, matrix.new_zeros(len(matrix)), activation_of(IDENTITY), None, None)
    return layer, (channels, *leaving[2 - dimensions :])


def _image(name: str, shape: Shape | None, dimensions: int) -> tuple[int, tuple[int, int]]:
    if shape is None or len(shape) != dimensions + 1:
        found = "flat data" if shape is None else f"data of shape {shape}"
        raise UnsupportedNetwork(
            f"{name} takes {dimensions + 1} dimensions a sample and is given {found}: give data of the model's shape"
        )
    return shape[0], ((shape[1], shape[2]) if dimensions == 2 else (1, shape[1]))


def _pair(value: Any, first: int) -> tuple[int, int]:
    """An option in both directions; of one dimension, with `first` for the height."""
    if isinstance(value, (tuple, list)):
        return (first, value[0]) if len(value) == 1 else (value[0], value[1])
    return (value, value)


def _leaving(name: str, shape: Shape, channels: int, windows: Windows) -> tuple[int, int]:
    """Height and width of what leaves a layer, after a check of its size."""
    leaving = windows.count((shape[1], shape[2]))
    if min(leaving) < 1:
        raise UnsupportedNetwork(f"{name} leaves nothing of its input: give larger images")
    outputs, inputs = channels * math.prod(leaving), math.prod(shape)
    if outputs * inputs > LARGEST:
        raise UnsupportedNetwork(
            f"{name} is a matrix of {outputs} x {inputs} numbers, more than the {LARGEST} that are handled: "
            "use smaller images or fewer channels"
        )
    return leaving
