"""Reading plain matrices, with one activation between them and identity skips, as a `Network`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of
from tvgrad.bounds.activations.smooth import Activation
from tvgrad.bounds.network.network import Layer, Network, UnsupportedNetwork
from tvgrad.bounds.reading.builder import IDENTITY, NetworkBuilder, Value
from tvgrad.numerics.floats import own_copy


def read_matrices(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None,
    activation: str | nn.Module | Activation,
    trainable: Sequence[bool] | None = None,
    skips: Sequence[tuple[int, int]] = (),
) -> Network:
    """Put matrices together.

    Args:
        weights: W_1 .. W_L, each (outputs, inputs).
        biases: b_1 .. b_L; None, or None for a layer, means that there is no bias.
        activation: what stands between the layers.
        trainable: for each layer, whether it is trained; None: all are.
        skips: pairs (k, l) with k <= l: what enters layer k is added to what layer l computes, before its activation.

    Returns:
        The network, with parameters called `weights.0`, `biases.0`, ...

    Raises:
        UnsupportedNetwork: lists of different lengths, shapes or skips that do not fit, or numbers that are not finite.
    """
    between = activation if isinstance(activation, Activation) else activation_of(activation, partly=True)
    layers = _layers(weights, biases, trainable)
    for first, last in skips:
        if not 1 <= first <= last <= len(layers):
            raise UnsupportedNetwork(
                f"the skip ({first}, {last}) must lead from a layer to itself or a later one, of 1 to {len(layers)}"
            )
    builder, value = NetworkBuilder(layers[0].matrix.shape[1]), Value(0, None)
    entering: list[Value] = []
    for number, layer in enumerate(layers, start=1):
        if builder.width(value) != layer.matrix.shape[1]:
            raise UnsupportedNetwork(
                f"weights[{number - 1}] takes {layer.matrix.shape[1]} inputs and weights[{number - 2}] gives "
                f"{builder.width(value)}: give matrices that follow one another"
            )
        entering.append(value)
        value = builder.affine(layer, value, None)
        for first in (first for first, last in skips if last == number):
            value = builder.added(f"the skip ({first}, {number})", entering[first - 1], value)
        if number < len(layers):
            value = builder.activated(f"layer {number}", value, between)
    return builder.network(value)


def _layers(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None] | None, trainable: Sequence[bool] | None
) -> list[Layer]:
    """The matrices as layers without activations, after a check of each."""
    biases = [None] * len(weights) if biases is None else biases
    trainable = [True] * len(weights) if trainable is None else trainable
    if not len(weights) == len(biases) == len(trainable):
        raise UnsupportedNetwork(
            f"there are {len(weights)} weights, {len(biases)} biases and {len(trainable)} trainable flags: "
            "give one of each a layer"
        )
    if not weights:
        raise UnsupportedNetwork("there are no matrices: give at least one")
    found = []
    for index, (given, bias, moves) in enumerate(zip(weights, biases, trainable, strict=True)):
        weight = own_copy(torch.as_tensor(given))
        if weight.ndim != 2 or 0 in weight.shape:
            raise UnsupportedNetwork(
                f"weights[{index}] has shape {tuple(weight.shape)}: give an (outputs, inputs) matrix"
            )
        offset = weight.new_zeros(len(weight)) if bias is None else own_copy(torch.as_tensor(bias))
        if offset.shape != (len(weight),):
            raise UnsupportedNetwork(
                f"biases[{index}] has shape {tuple(offset.shape)} beside {len(weight)} outputs: "
                "give one number for each"
            )
        names = f"weights.{index}" if moves else None, f"biases.{index}" if moves and bias is not None else None
        found.append(Layer(weight, offset, activation_of(IDENTITY), *names))
    return found
