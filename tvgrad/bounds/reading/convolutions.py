"""Reading the layers that work on images: convolutions and average pooling, as matrices on flattened images.

A signal of one dimension is an image of height 1. Images are flattened as `nn.Flatten` does it: channel, row, column.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of
from tvgrad.bounds.network.network import Layer, UnsupportedNetwork
from tvgrad.bounds.network.shared_kernel import pooling_matrix, shared_kernel

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
LARGEST = 2**23  # numbers in one operator's matrix: 64 MB

Shape = tuple[int, ...]
"""Channels and sizes of one sample."""


def convolution(name: str, path: str, module: nn.Conv1d | nn.Conv2d, shape: Shape | None) -> tuple[Layer, Shape]:
    """Read a convolution as its exact operator.

    Args:
        name: for messages.
        path: prefix of the parameters' names.
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
    kernel, stride = _pair(module.kernel_size, 1), _pair(module.stride, 1)
    dilation = _pair(module.dilation, 1)
    padding = module.padding
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            raise UnsupportedNetwork(f"{name} pads by an odd number: use an odd kernel, or padding in numbers")
        both = (reach[0] // 2, reach[1] // 2) if padding == "same" else (0, 0)
    else:
        both = _pair(padding, 0)
    size = tuple(
        (i + 2 * p - d * (k - 1) - 1) // s + 1
        for i, p, d, k, s in zip(image, both, dilation, kernel, stride, strict=True)
    )
    _check_size(name, module.out_channels * size[0] * size[1], entering * image[0] * image[1], min(size))
    channels = (module.in_channels, module.out_channels)
    shared, out = shared_kernel(channels, image, kernel, stride, both, dilation, module.groups)
    moves_bias = module.bias is not None and module.bias.requires_grad
    no_bias = torch.zeros(module.out_channels, dtype=torch.float64)
    layer = Layer(
        module.weight.detach().double().cpu(),
        no_bias if module.bias is None else module.bias.detach().double().cpu(),
        activation_of("identity"),
        f"{path}weight" if module.weight.requires_grad else None,
        f"{path}bias" if moves_bias else None,
        shared=shared,
    )
    return layer, (module.out_channels, *out[2 - dimensions :])


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
        kernel, stride = _pair(options.kernel_size, 1), _pair(options.stride, 1)
        if any(_pair(options.padding, 0)) or options.ceil_mode or getattr(options, "divisor_override", None):
            raise UnsupportedNetwork(f"{name} pools with padding, ceil_mode or a divisor of its own: leave them out")
    else:
        wanted = _pair(options.output_size, 1)
        if dimensions == 1:
            wanted = (1, wanted[1])
        sizes = [image[d] if w is None else w for d, w in enumerate(wanted)]
        if any(i % w for i, w in zip(image, sizes, strict=True)):
            raise UnsupportedNetwork(f"{name} pools windows of different sizes: choose sizes that divide {image}")
        kernel = stride = (image[0] // sizes[0], image[1] // sizes[1])
    size = tuple((i - k) // s + 1 for i, k, s in zip(image, kernel, stride, strict=True))
    _check_size(name, channels * size[0] * size[1], channels * image[0] * image[1], min(size))
    matrix, out = pooling_matrix(channels, image, kernel, stride)
    zeros = torch.zeros(len(matrix), dtype=torch.float64)
    layer = Layer(matrix, zeros, activation_of("identity"), None, None)
    return layer, (channels, *out[2 - dimensions :])


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


def _check_size(name: str, outputs: int, inputs: int, least: int) -> None:
    if least < 1:
        raise UnsupportedNetwork(f"{name} leaves nothing of its input: give larger images")
    if outputs * inputs > LARGEST:
        raise UnsupportedNetwork(
            f"{name} is a matrix of {outputs} x {inputs} numbers, more than the {LARGEST} that are handled: "
            "use smaller images or fewer channels"
        )
