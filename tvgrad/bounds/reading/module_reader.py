"""Reading an `nn.Module`, or plain matrices, as a `Network`.

What is read is exactly what PyTorch computes. A Sequential and its parts are known by their classes; of any other
module, a residual block above all, the forward is traced (module trace), and the network that comes of it is compared
with the module on samples (module verification). What cannot be read so, a hook or a parametrization is refused by
name, because a bound for another function would be no bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of, is_registered
from tvgrad.bounds.activations.smooth import Activation
from tvgrad.bounds.network.network import Layer, Network, UnsupportedNetwork
from tvgrad.bounds.reading.builder import IDENTITY, LINEAR_FORM, NetworkBuilder, Value
from tvgrad.bounds.reading.convolutions import CONVOLUTIONS, POOLINGS, convolution, pooling
from tvgrad.bounds.reading.forward_trace import INPUT, SUM, trace_forward
from tvgrad.bounds.reading.verification import verify
from tvgrad.errors import TvgradError

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
DROPOUTS = (nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d)


def read_module(module: nn.Module, inputs: torch.Tensor) -> Network:
    """Read Sequentials of Linear, convolutions, average pooling, Flatten, smooth activations, BatchNorm, and sums.

    Args:
        module: the model; nothing in it is changed.
        inputs: the samples, (n, ...), channels first; those of a traced model are also given to it.

    Returns:
        Its layers, with trainable parameters named and ordered as in `named_parameters`.

    Raises:
        UnsupportedNetwork: it holds something else, or its weights are not finite.
    """
    shape = tuple(inputs.shape[1:])
    if not all(_is_known(part) for part in module.modules()):
        module = _copied(module)  # a forward that is traced may change its module
    reader = _Reader(math.prod(shape))
    result = reader.read("", module, Value(0, shape if len(shape) > 1 else None))
    if result.shape is not None:
        raise UnsupportedNetwork("the model ends with images: end it with nn.Flatten(), so that there are logits")
    order = tuple(name for name, parameter in module.named_parameters() if parameter.requires_grad)
    network = reader.builder.network(result)
    unused = sorted(set(order) - set(network.names))
    if unused:
        raise UnsupportedNetwork(
            f"{unused[0]} is trainable and what the model computes does not depend on it: set requires_grad to False"
        )
    network = replace(network, order=order)
    if reader.traced:
        verify(network, module, inputs)
    return network


class _Reader:
    """Goes through a module and puts the layers together."""

    def __init__(self, inputs: int) -> None:
        self.builder = NetworkBuilder(inputs)
        self.traced = False
        self._seen: set[int] = set()

    def read(self, path: str, module: nn.Module, value: Value) -> Value:
        """Read a module that is applied to a value."""
        name = f"module {path}" if path else f"the model ({type(module).__name__})"
        _check_plain(name if path else "the model", module)
        if type(module) is nn.Sequential:
            for child, part in module._modules.items():  # named_children would list a repeated module once
                if part is not None:
                    value = self.read(_below(path, child), part, value)
            return value
        if _is_known(module):
            return self._part(name, path, module, value)
        self.traced = True
        trace = trace_forward(f"{name} ({type(module).__name__})" if path else name, module)
        values = {INPUT: replace(value, alone=value.alone and INPUT not in trace.shared)}
        for call in trace.calls:
            given = [values[one] for one in call.values]
            if call.part == SUM:
                made = self.builder.added(call.path, *given)
            elif isinstance(call.part, str):
                made = self.builder.activated(call.path, given[0], activation_of(call.part))
            elif call.own:
                made = self.read(_below(path, call.path), call.part, given[0])
            else:
                made = self._part(call.path, path, call.part, given[0])
            values[call.result] = replace(made, alone=made.alone and call.result not in trace.shared)
        return values[trace.result]

    def _part(self, name: str, path: str, part: nn.Module, value: Value) -> Value:
        """Read one layer, activation, or other part that has a meaning of its own."""
        builder, shape = self.builder, value.shape
        if type(part) is nn.Linear or type(part) in CONVOLUTIONS:
            if id(part) in self._seen or any(id(p) in self._seen for p in part.parameters()):
                raise UnsupportedNetwork(
                    f"{name} is used twice, and its weights move together: give it weights of its own"
                )
            self._seen.update([id(part), *(id(p) for p in part.parameters())])
        if type(part) is nn.Linear:
            if shape is not None:
                raise UnsupportedNetwork(
                    f"{name} is given {len(shape)} dimensions a sample: put nn.Flatten() before it, or flatten the data"
                )
            if value.place and part.in_features != builder.width(value):
                raise UnsupportedNetwork(
                    f"{name} takes {part.in_features} features and the layer before it gives "
                    f"{builder.width(value)}: the Linear layers must follow one another"
                )
            return builder.affine(_linear(path, part), value, None)
        if isinstance(part, (nn.Conv1d, nn.Conv2d)) and type(part) in CONVOLUTIONS:
            layer, shape = convolution(name, path and f"{path}.", part, shape)
            return builder.affine(layer, value, shape)
        if type(part) in POOLINGS:
            layer, shape = pooling(name, part, shape)
            return builder.affine(layer, value, shape)
        if isinstance(part, nn.Flatten):
            if part.start_dim != 1 or part.end_dim != -1:
                raise UnsupportedNetwork(
                    f"{name} flattens dimensions {part.start_dim} to {part.end_dim}: use nn.Flatten()"
                )
            return replace(value, shape=None)
        if isinstance(part, BATCH_NORMS):
            return builder.normalised(name, value, *_batch_norm(name, part))
        if isinstance(part, DROPOUTS):
            if part.training and part.p > 0:
                raise UnsupportedNetwork(f"{name} drops units at random in train mode: call model.eval()")
            return value
        if isinstance(part, nn.Identity):
            return value
        return builder.activated(name, value, _activation(name, part))


def _below(path: str, child: str) -> str:
    return f"{path}.{child}" if path else child


def _is_known(module: nn.Module) -> bool:
    """Whether a module is read by its class; of any other the forward is traced."""
    return type(module).__module__.startswith("torch.") or is_registered(type(module))


def read_matrices(
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None] | None,
    activation: str | nn.Module | Activation,
    trainable: Sequence[bool] | None = None,
    skips: Sequence[tuple[int, int]] = (),
) -> Network:
    """Put matrices together, with one activation between them, and identity skips.

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
    between = activation if isinstance(activation, Activation) else activation_of(activation)
    given = [None] * len(weights) if biases is None else list(biases)
    moving = [True] * len(weights) if trainable is None else list(trainable)
    if len(given) != len(weights) or len(moving) != len(weights):
        raise UnsupportedNetwork(
            f"there are {len(weights)} weights, {len(given)} biases and {len(moving)} trainable flags: "
            "give one of each a layer"
        )
    for first, last in skips:
        if not 1 <= first <= last <= len(weights):
            raise UnsupportedNetwork(
                f"the skip ({first}, {last}) must lead from a layer to itself or a later one, of 1 to {len(weights)}"
            )
    builder: NetworkBuilder | None = None
    entering: list[Value] = []
    for index, (matrix, bias, moves) in enumerate(zip(weights, given, moving, strict=True)):
        matrix = torch.as_tensor(matrix).detach().double()
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise UnsupportedNetwork(
                f"weights[{index}] has shape {tuple(matrix.shape)}: give an (outputs, inputs) matrix"
            )
        if builder is None:
            builder, value = NetworkBuilder(matrix.shape[1]), Value(0, None)
        if builder.width(value) != matrix.shape[1]:
            raise UnsupportedNetwork(
                f"weights[{index}] takes {matrix.shape[1]} inputs and weights[{index - 1}] gives "
                f"{builder.width(value)}: give matrices that follow one another"
            )
        vector = torch.zeros(len(matrix), dtype=torch.float64)
        if bias is not None:
            vector = torch.as_tensor(bias).detach().double()
            if vector.shape != (len(matrix),):
                raise UnsupportedNetwork(
                    f"biases[{index}] has shape {tuple(vector.shape)} beside {len(matrix)} outputs: "
                    "give one number for each"
                )
        names = f"weights.{index}" if moves else None, f"biases.{index}" if moves and bias is not None else None
        entering.append(value)
        value = builder.affine(Layer(matrix, vector, activation_of(IDENTITY), *names), value, None)
        for first, last in skips:
            if last == index + 1:
                value = builder.added(f"the skip ({first}, {last})", entering[first - 1], value)
        if index < len(weights) - 1:
            value = builder.activated(f"layer {index + 1}", value, between)
    if builder is None:
        raise UnsupportedNetwork("there are no matrices: give at least one")
    return builder.network(value)


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever a user's module holds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedNetwork(
            f"the model ({type(module).__name__}) cannot be copied ({first}): keep what is no parameter out of it"
        ) from None


def _check_plain(name: str, module: nn.Module) -> None:
    """Refuse what changes a module's function without changing its class."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks):
        raise UnsupportedNetwork(f"{name} has hooks, which may change what it computes: remove them")
    if "forward" in vars(module):
        raise UnsupportedNetwork(f"{name} has a forward of its own: {LINEAR_FORM}")


def _linear(path: str, module: nn.Linear) -> Layer:
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
