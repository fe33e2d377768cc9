"""Network builder: layers put together one by one, with the values that a module's forward passes from one to the next.

An activation or a BatchNorm is folded into the layer that made its input where nothing else looks at that input, and a
sum into the layer that made the later of its terms. Otherwise one more layer, a frozen identity, makes a place for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of
from tvgrad.bounds.activations.smooth import Activation
from tvgrad.bounds.network.network import Layer, Network, UnsupportedNetwork
from tvgrad.bounds.network.shared_kernel import SharedKernel
from tvgrad.bounds.network.skips import Skips
from tvgrad.numerics.floats import TINY, own_copy, round_up

Shape = tuple[int, ...]
"""Channels and sizes of one sample."""

IDENTITY = "identity"
LINEAR_FORM = (
    "build the model of nested nn.Sequential, nn.Linear, nn.Conv1d, nn.Conv2d, average pooling, nn.Flatten, smooth "
    "activations, and modules whose forward uses these and sums"
)


@dataclass(frozen=True)
class Value:
    """What forward passes on.

    Attributes:
        place: k of the h_k that it is, 0 for the input.
        shape: channels and sizes of one sample; None once it is flat.
        alone: whether nothing but the next step looks at it.
    """

    place: int
    shape: Shape | None
    alone: bool = True


class NetworkBuilder:
    """Layers and their skips while they are put together.

    Attributes:
        layers: so far.
    """

    def __init__(self, inputs: int) -> None:
        """Begin with no layers.

        Args:
            inputs: the number of features of one sample.
        """
        self.layers: list[Layer] = []
        self._inputs = inputs
        self._reads: list[int] = []
        self._adds: list[tuple[int, ...]] = []
        self._activated: list[bool] = []

    def width(self, value: Value) -> int:
        """Count what a value holds.

        Args:
            value: the value.

        Returns:
            Its numbers for one sample.
        """
        return self.layers[value.place - 1].width if value.place else self._inputs

    def affine(self, layer: Layer, value: Value, shape: Shape | None) -> Value:
        """Add a layer.

        Args:
            layer: with the identity as its activation.
            value: what it reads.
            shape: of what it gives.

        Returns:
            What it gives.
        """
        self.layers.append(layer)
        self._reads.append(value.place)
        self._adds.append(())
        self._activated.append(False)
        return Value(len(self.layers), shape)

    def activated(self, name: str, value: Value, activation: Activation) -> Value:
        """Apply an activation.

        Args:
            name: for messages.
            value: what it is applied to.
            activation: which.

        Returns:
            What it gives.

        Raises:
            UnsupportedNetwork: it is applied to the data.
        """
        if value.place == 0 and value.alone:
            raise UnsupportedNetwork(f"{name} does not follow a Linear layer: apply it to the data, or {LINEAR_FORM}")
        value = self._open(value)
        self.layers[value.place - 1] = replace(self.layers[value.place - 1], activation=activation)
        self._activated[value.place - 1] = True
        return value

    def normalised(
        self, name: str, value: Value, scale: torch.Tensor, shift: torch.Tensor, size: torch.Tensor
    ) -> Value:
        """Apply a BatchNorm that does not look at the batch.

        Args:
            name: for messages.
            value: what it is applied to.
            scale: one number a feature, or a channel.
            shift: likewise.
            size: of what the shift is a difference of, likewise.

        Returns:
            `scale * value + shift`.

        Raises:
            UnsupportedNetwork: it has other numbers of features, or is applied to the data.
        """
        if value.shape is not None and len(scale) == value.shape[0]:  # one number a channel
            positions = math.prod(value.shape[1:])
            scale, shift, size = (each.repeat_interleave(positions) for each in (scale, shift, size))
        if value.place == 0 and value.alone:
            raise UnsupportedNetwork(f"{name} normalises the inputs: normalise the data instead, and drop the layer")
        if len(scale) != self.width(value):
            raise UnsupportedNetwork(
                f"{name} has {len(scale)} features where the layer before it gives {self.width(value)}"
            )
        layer = self.layers[value.place - 1] if value.place else None
        if value.alone and layer and self._activated[value.place - 1] and not layer.activation.added:
            self.layers[value.place - 1] = replace(layer, activation=_scaled(layer.activation, scale, shift, size))
            return value
        # the gains of a layer are not those of what is added to it; one BatchNorm a layer keeps its rounding known
        if (
            not value.alone
            or not layer
            or self._activated[value.place - 1]
            or self._adds[value.place - 1]
            or (layer.gains is not None)
        ):
            value = self._more(value)
            layer = self.layers[value.place - 1]
        self.layers[value.place - 1] = replace(layer, gains=scale, shift=shift, shift_size=size)
        return value

    def added(self, name: str, one: Value, other: Value) -> Value:
        """Add two values.

        Args:
            name: for messages.
            one: a term.
            other: the other; both may be the same.

        Returns:
            The sum.

        Raises:
            UnsupportedNetwork: they have different shapes.
        """
        shapes = [value.shape or (self.width(value),) for value in (one, other)]
        if shapes[0] != shapes[1]:
            raise UnsupportedNetwork(
                f"{name} adds shapes {shapes[0]} and {shapes[1]} of one sample: make them the same"
            )
        earlier, later = sorted((one, other), key=lambda value: value.place)
        later = self._open(replace(later, alone=later.alone and earlier.place < later.place))
        self._adds[later.place - 1] = (*self._adds[later.place - 1], earlier.place)
        return later

    def network(self, result: Value) -> Network:
        """Finish.

        Args:
            result: the logits.

        Returns:
            The network.

        Raises:
            UnsupportedNetwork: there is no layer, nothing is trainable, or a number is not finite.
        """
        if not self.layers or not result.place:
            raise UnsupportedNetwork(f"the model has no Linear layer: {LINEAR_FORM}")
        if self.layers[-1].activation.name != IDENTITY:
            self._more(result)  # the loss sees s(z): the identity puts the activation between two layers
        for layer in self.layers:
            if not all(bool(torch.isfinite(part).all()) for part in (layer.matrix, layer.offset)):
                place = layer.weight_name or layer.bias_name or "a frozen layer"
                raise UnsupportedNetwork(f"{place} holds NaN or infinite weights: repair the checkpoint first")
        network = Network(tuple(self.layers), Skips(tuple(self._reads), tuple(self._adds)))
        if not network.parameters:
            raise UnsupportedNetwork("the model has no trainable parameters: set requires_grad on what is to be tuned")
        return network

    def _open(self, value: Value) -> Value:
        """A value whose layer has no activation yet, and that nothing else looks at."""
        if value.place and value.alone and not self._activated[value.place - 1]:
            return value
        return self._more(value)

    def _more(self, value: Value) -> Value:
        """The same value, made by a frozen identity."""
        width = self.width(value)
        unit, zero = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        return self.affine(Layer(unit, zero, activation_of(IDENTITY), None, None), value, value.shape)


def layer_of(module: nn.Linear | nn.Conv1d | nn.Conv2d, prefix: str, shared: SharedKernel | None = None) -> Layer:
    """Read weight and bias.

    Args:
        module: a Linear or a convolution.
        prefix: of its parameters' names.
        shared: how the kernel of a convolution fills its matrix.

    Returns:
        The layer, with the identity as its activation.
    """
    weight = own_copy(module.weight)
    bias = weight.new_zeros(len(weight)) if module.bias is None else own_copy(module.bias)
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    weight_name, bias_name = (f"{prefix}{name}" if name in trainable else None for name in ("weight", "bias"))
    return Layer(weight, bias, activation_of(IDENTITY), weight_name, bias_name, shared=shared)


def _scaled(inner: Activation, scale: torch.Tensor, shift: torch.Tensor, size: torch.Tensor) -> Activation:
    """`scale * s + shift`, element by element: an activation whose constants are the largest among the units."""
    largest, offset = (round_up(float(each.abs().max()), 1e-14) for each in (scale, size))
    bounds = {name: round_up(getattr(inner, name) * largest, 1e-15) for name in ("b1", "b2", "b3", "b4")}
    return Activation(
        name=f"{inner.name} then BatchNorm",
        **bounds,
        supremum=round_up(inner.supremum * largest + offset, 1e-15) if largest else offset,
        at_zero=round_up(inner.at_zero * largest + offset, 1e-15),
        value=lambda x: scale * inner.value(x) + shift,
        d1=lambda x: scale * inner.d1(x),
        d2=lambda x: scale * inner.d2(x),
        d3=lambda x: scale * inner.d3(x),
        # positive, so that it is known that there is a BatchNorm
        added=round_up(float(size.max()), 1e-15) + TINY,
        below=inner.below,
    )
