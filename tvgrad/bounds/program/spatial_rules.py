"""What becomes of aten operations on tensors with channels: convolutions, pooling, normalisation by channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from tvgrad.bounds.program.affine import MatrixProduct, Product, Sum
from tvgrad.bounds.program.elementwise import InverseRoot
from tvgrad.bounds.program.frozen_norm import FrozenNorm
from tvgrad.bounds.program.lowering import Lowering, Rule, line_of
from tvgrad.bounds.program.normalisation import LayerNorm
from tvgrad.bounds.program.operation import UnsupportedProgram
from tvgrad.bounds.program.patches import Patches, Window
from tvgrad.bounds.program.rearrangements import Rearrangement, Total

aten = torch.ops.aten


def _each(given: Sequence[int] | int, axes: int) -> tuple[int, ...]:
    """One number for each axis."""
    numbers = [given] if isinstance(given, int) else [*given]
    return tuple(int(one) for one in (numbers * axes if len(numbers) == 1 else numbers))


def _refuse(node: fx.Node, what: str) -> UnsupportedProgram:
    return UnsupportedProgram(f"{node.target} {what} ({line_of(node)})")


def _convolution(low: Lowering, node: fx.Node) -> int:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    shape, kernel = x.meta["val"].shape, weight.meta["val"].shape  # type: ignore[union-attr]
    axes = len(kernel) - 2
    if transposed or len(shape) != axes + 2:
        raise _refuse(node, "transposed, or of a tensor without samples, has no bounds here")
    window = Window(tuple(kernel[2:]), *(_each(one, axes) for one in (stride, padding, dilation)))  # type: ignore[arg-type]
    channels, taken, out = shape[1], kernel[1], node.meta["val"].shape
    index = window.index(channels, shape[2:])
    positions = index.shape[1]
    if groups == 1:
        patches = low.step(Patches(index.transpose(0, 1).flatten(1)[None]), low.place(x))
        matrix = low.step(Rearrangement(lambda part: part.flatten(1)), low.place(weight))
        biases = [low.place(bias)] if bias is not None else []
        rows = low.layer(torch.Size((1, positions, out[1])), patches, matrix, *biases)
        return low.step(Rearrangement(lambda part: part.mT.reshape(out)), rows)
    count = int(groups)  # type: ignore[arg-type]
    parted = index.reshape(count, taken, positions, -1).transpose(1, 2).flatten(2)[None]
    patches = low.step(Patches(parted), low.place(x))
    matrices = low.step(
        Rearrangement(lambda part: part.reshape(count, -1, parted.shape[-1]).mT[None]), low.place(weight)
    )
    product = low.step(MatrixProduct(), patches, matrices)
    made = low.step(Rearrangement(lambda part: part.mT.reshape(out)), product)
    return made if bias is None else low.step(Sum(), made, _by_channel(low, low.place(bias), axes))


def _by_channel(low: Lowering, place: int, axes: int) -> int:
    """A number for each channel, as it broadcasts."""
    return low.step(Rearrangement(lambda part: part.reshape(-1, *[1] * axes)), place)


def _pooled(low: Lowering, node: fx.Node) -> int:
    given: list[Any] = [*node.args]
    given += [None, None, [], 0, False, True, None][len(given) :]
    x, kernel, stride, padding, ceil, _, divisor = given
    shape = x.meta["val"].shape
    axes = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}[node.target]  # type: ignore[index]
    if any(_each(padding, axes)) or ceil or divisor is not None or len(shape) != axes + 2:
        raise _refuse(node, "with padding, ceil_mode or a divisor has no bounds here")
    taps = _each(kernel, axes)
    window = Window(taps, _each(stride, axes) if stride else taps, (0,) * axes, (1,) * axes)
    index = window.index(shape[1], shape[2:]).reshape(*node.meta["val"].shape, -1)
    patches = low.step(Patches(index), low.place(x))
    return low.step(Total((index.ndim - 1,), False, True), patches)


def _affine(low: Lowering, place: int, axes: int, given: Sequence[Any]) -> int:
    """`w y + b`, a number for each channel."""
    for operation, one in zip((Product(), Sum()), given, strict=True):
        if one is not None:
            place = low.step(operation, place, _by_channel(low, low.place(one), axes))
    return place


def _frozen_batch_norm(low: Lowering, node: fx.Node) -> int:
    x, weight, bias, mean, variance, _, eps = node.args
    axes = len(x.meta["val"].shape) - 2  # type: ignore[union-attr]
    widened = low.step(Sum(), low.place(variance), low.constant(torch.tensor(float(eps), dtype=torch.float64)))  # type: ignore[arg-type]
    root = low.step(InverseRoot(), widened)
    if weight is not None and low.exact(low.place(mean)) and low.exact(low.place(variance)):
        own = [low.place(one) for one in (weight, bias) if one is not None]
        return low.step(FrozenNorm(axes), low.place(x), low.place(mean), root, *own)
    inverse = _by_channel(low, root, axes)
    centred = low.step(Sum(-1.0), low.place(x), _by_channel(low, low.place(mean), axes))
    return _affine(low, low.step(Product(), centred, inverse), axes, (weight, bias))


def _group_norm(low: Lowering, node: fx.Node) -> int:
    x, weight, bias, *_, groups, eps = node.args
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    lined = low.step(Rearrangement(lambda part: part.reshape(1, int(groups), -1)), low.place(x))  # type: ignore[arg-type]
    normalised = low.step(LayerNorm(float(eps)), lined)  # type: ignore[arg-type]
    return _affine(
        low, low.step(Rearrangement(lambda part: part.reshape(shape)), normalised), len(shape) - 2, (weight, bias)
    )


SPATIAL_RULES: dict[Any, Rule] = {
    aten.convolution.default: _convolution,
    aten.avg_pool1d.default: _pooled,
    aten.avg_pool2d.default: _pooled,
    aten.avg_pool3d.default: _pooled,
    aten._native_batch_norm_legit_no_training.default: _frozen_batch_norm,
    aten.native_group_norm.default: _group_norm,
}
