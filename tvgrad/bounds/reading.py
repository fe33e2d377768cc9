"""Reading an `nn.Module`, or plain matrices, as a `Network`.

What is read is exactly what PyTorch computes: a module of any other class, a subclass with a forward of its own, a
hook or a parametrization is refused by name, because a bound for another function would be no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from tvgrad.bounds.activations import Activation, activation_of
from tvgrad.bounds.images import CONVOLUTIONS, POOLINGS, Shape, convolution, pooling
from tvgrad.bounds.network import Layer, Network, UnsupportedNetwork
from tvgrad.errors import TvgradError

__all__ = ["UnsupportedNetwork", "read_matrices", "read_module"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DROPOUTS = (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d)
IDENTITY = "identity"
LINEAR_FORM = (
    "build the model of nested nn.Sequential, nn.Linear, nn.Conv1d, nn.Conv2d, average pooling, nn.Flatten and smooth "
    "activations"
)


def read_module(module: nn.Module, shape: Shape | None = None) -> Network:
    """Read nested Sequentials of Linear, convolutions, average pooling, Flatten, smooth activations and BatchNorm.

    Args:
        module: the model; nothing in it is changed.
        shape: of one sample, channels first; None, or one number, for flat samples.

    Returns:
        Its layers, with trainable parameters named as in `named_parameters`.

    Raises:
        UnsupportedNetwork: it holds something else, or its weights are not finite.
    """
    layers: list[Layer] = []
    seen: set[int] = set()
    activated = True  # whether the last layer has its activation already; there is no layer yet
    shape = None if shape is None or len(shape) == 1 else tuple(shape)  # None once the data is flat
    for path, part in _flattened(module, ""):
        name = f"module {path}" if path else f"the model ({type(part).__name__})"
        _check_plain(name, part)
        if type(part) is nn.Linear or type(part) in CONVOLUTIONS:
            if id(part) in seen or any(id(p) in seen for p in part.parameters()):
                raise UnsupportedNetwork(
                    f"{name} is used twice, and its weights move together: give it weights of its own"
                )
            seen.update([id(part), *(id(p) for p in part.parameters())])
            if isinstance(part, nn.Linear):
                if shape is not None:
                    raise UnsupportedNetwork(
                        f"{name} is given {len(shape)} dimensions a sample: put nn.Flatten() before it, or flatten the "
                        "data"
                    )
                layers.append(_linear(name, path, part, layers))
            elif isinstance(part, (nn.Conv1d, nn.Conv2d)):
                layer, shape = convolution(name, path and f"{path}.", part, shape)
                layers.append(layer)
            activated = False
        elif type(part) in POOLINGS:
            layer, shape = pooling(name, part, shape)
            layers.append(layer)
            activated = False
        elif isinstance(part, nn.Flatten):
            if part.start_dim != 1 or part.end_dim != -1:
                raise UnsupportedNetwork(
                    f"{name} flattens dimensions {part.start_dim} to {part.end_dim}: use nn.Flatten()"
                )
            shape = None
        elif isinstance(part, BATCH_NORMS):
            scale, shift = _batch_norm(name, part)
            if shape is not None and len(scale) == shape[0]:  # one number a channel
                scale, shift = (each.repeat_interleave(math.prod(shape[1:])) for each in (scale, shift))
            if not layers:
                raise UnsupportedNetwork(
                    f"{name} normalises the inputs: normalise the data instead, and drop the layer"
                )
            layers[-1] = _normalised(name, layers[-1], scale, shift, activated)
        elif isinstance(part, DROPOUTS):
            if part.training and part.p > 0:
                raise UnsupportedNetwork(f"{name} drops units at random in train mode: call model.eval()")
        elif not isinstance(part, nn.Identity):
            activation = _activation(name, part)
            if activated:
                raise UnsupportedNetwork(
                    f"{name} does not follow a Linear layer: apply it to the data, or {LINEAR_FORM}"
                )
            layers[-1] = replace(layers[-1], activation=activation)
            activated = True
    if shape is not None:
        raise UnsupportedNetwork("the model ends with images: end it with nn.Flatten(), so that there are logits")
    return _network(layers)


def read_matrices(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None,
    activation: str | nn.Module | Activation,
    trainable: Sequence[bool] | None = None,
) -> Network:
    """Put matrices together, with one activation between them.

    Args:
        weights: W_1 .. W_L, each (outputs, inputs).
        biases: b_1 .. b_L; None, or None for a layer, means that there is no bias.
        activation: what stands between the layers.
        trainable: for each layer, whether it is trained; None: all are.

    Returns:
        The network, with parameters called `weights.0`, `biases.0`, ...

    Raises:
        UnsupportedNetwork: lists of different lengths, shapes that do not fit, or numbers that are not finite.
    """
    between = activation if isinstance(activation, Activation) else activation_of(activation)
    given = [None] * len(weights) if biases is None else list(biases)
    moving = [True] * len(weights) if trainable is None else list(trainable)
    if len(given) != len(weights) or len(moving) != len(weights):
        raise UnsupportedNetwork(
            f"there are {len(weights)} weights, {len(given)} biases and {len(moving)} trainable flags: "
            "give one of each a layer"
        )
    layers: list[Layer] = []
    for index, (matrix, bias, moves) in enumerate(zip(weights, given, moving, strict=True)):
        matrix = torch.as_tensor(matrix).detach().double()
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise UnsupportedNetwork(
                f"weights[{index}] has shape {tuple(matrix.shape)}: give an (outputs, inputs) matrix"
            )
        if layers and layers[-1].width != matrix.shape[1]:
            raise UnsupportedNetwork(
                f"weights[{index}] takes {matrix.shape[1]} inputs and weights[{index - 1}] gives {layers[-1].width}: "
                "give matrices that follow one another"
            )
        vector = torch.zeros(len(matrix), dtype=torch.float64)
        if bias is not None:
            vector = torch.as_tensor(bias).detach().double()
            if vector.shape != (len(matrix),):
                raise UnsupportedNetwork(
                    f"biases[{index}] has shape {tuple(vector.shape)} beside {len(matrix)} outputs: "
                    "give one number for each"
                )
        layers.append(
            Layer(
                matrix,
                vector,
                between if index < len(weights) - 1 else activation_of(IDENTITY),
                f"weights.{index}" if moves else None,
                f"biases.{index}" if moves and bias is not None else None,
            )
        )
    return _network(layers)


def _network(layers: list[Layer]) -> Network:
    if not layers:
        raise UnsupportedNetwork(f"the model has no Linear layer: {LINEAR_FORM}")
    if layers[-1].activation.name != IDENTITY:
        # The loss sees s(z): one more map, the identity, puts the activation between two layers.
        width = layers[-1].width
        unit, zero = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        layers = [*layers, Layer(unit, zero, activation_of(IDENTITY), None, None)]
    for layer in layers:
        if not all(bool(torch.isfinite(part).all()) for part in (layer.matrix, layer.offset)):
            place = layer.weight_name or layer.bias_name or "a frozen layer"
            raise UnsupportedNetwork(f"{place} holds NaN or infinite weights: repair the checkpoint first")
    network = Network(tuple(layers))
    if not network.parameters:
        raise UnsupportedNetwork("the model has no trainable parameters: set requires_grad on what is to be tuned")
    return network


def _flattened(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        _check_plain(prefix or "the model", module)
        for name, part in module._modules.items():  # named_children would list a repeated module once
            if part is not None:
                yield from _flattened(part, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, module


def _check_plain(name: str, module: nn.Module) -> None:
    """Refuse what changes a module's function without changing its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        raise UnsupportedNetwork(f"{name} has hooks, which may change what it computes: remove them")
    if "forward" in vars(module):
        raise UnsupportedNetwork(f"{name} has a forward of its own: {LINEAR_FORM}")


def _linear(name: str, path: str, module: nn.Linear, layers: list[Layer]) -> Layer:
    if layers and layers[-1].width != module.in_features:
        raise UnsupportedNetwork(
            f"{name} takes {module.in_features} features and the layer before it gives {layers[-1].width}: "
            "the Linear layers must follow one another"
        )
    weight = module.weight.detach().double().cpu()
    no_bias = torch.zeros(len(weight), dtype=torch.float64)
    bias = no_bias if module.bias is None else module.bias.detach().double().cpu()
    moves_bias = module.bias is not None and module.bias.requires_grad
    path = path and f"{path}."
    return Layer(
        weight,
        bias,
        activation_of(IDENTITY),
        f"{path}weight" if module.weight.requires_grad else None,
        f"{path}bias" if moves_bias else None,
    )


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a BatchNorm that uses its running statistics."""
    if module.training or module.running_mean is None or module.running_var is None:
        raise UnsupportedNetwork(
            f"{name} normalises by the batch in train mode, which couples the samples: call model.eval() "
            "(and keep running statistics)"
        )
    if any(parameter.requires_grad for parameter in module.parameters()):
        raise UnsupportedNetwork(
            f"{name} has a trainable scale or shift, for which there are no bounds: "
            "set requires_grad to False on them, or fold them into the Linear layer"
        )
    scale = (module.running_var.detach().double().cpu() + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double().cpu()
    shift = -scale * module.running_mean.detach().double().cpu()
    if module.bias is not None:
        shift = shift + module.bias.detach().double().cpu()
    return scale, shift


def _normalised(name: str, layer: Layer, scale: torch.Tensor, shift: torch.Tensor, activated: bool) -> Layer:
    if len(scale) != layer.width:
        raise UnsupportedNetwork(f"{name} has {len(scale)} features where the layer before it gives {layer.width}")
    if activated:
        return replace(layer, activation=_scaled(layer.activation, scale, shift))
    gains = scale if layer.gains is None else scale * layer.gains
    moved = shift if layer.shift is None else scale * layer.shift + shift
    return replace(layer, gains=gains, shift=moved)


def _scaled(inner: Activation, scale: torch.Tensor, shift: torch.Tensor) -> Activation:
    """`scale * s + shift`, element by element: an activation whose constants are the largest among the units."""
    largest, offset = float(scale.abs().max()), float(shift.abs().max())
    up = 1 + 1e-15
    return Activation(
        name=f"{inner.name} then BatchNorm",
        b1=inner.b1 * largest * up,
        b2=inner.b2 * largest * up,
        b3=inner.b3 * largest * up,
        b4=inner.b4 * largest * up,
        supremum=(inner.supremum * largest + offset) * up,
        at_zero=(inner.at_zero * largest + offset) * up,
        value=lambda x: scale * inner.value(x) + shift,
        d1=lambda x: scale * inner.d1(x),
        d2=lambda x: scale * inner.d2(x),
        d3=lambda x: scale * inner.d3(x),
    )


def _activation(name: str, module: nn.Module) -> Activation:
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        # an activation with weights of its own, attention, a normalisation, a module of the user's
        raise UnsupportedNetwork(
            f"{name} is a {type(module).__name__}, for which no bounds are known: {LINEAR_FORM}, or use the estimates, "
            "which take any model"
        )
    try:
        return activation_of(module)
    except TvgradError as error:
        raise UnsupportedNetwork(f"{name}: {error}") from None
