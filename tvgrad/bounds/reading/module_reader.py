"""Reading an `nn.Module` as a `Network`.

What is read is exactly what PyTorch computes. A Sequential and its parts are known by their classes. The forward of any
other module, above all a residual block, is traced (module forward_trace), and the network that comes of it is compared
with the module on samples (module verification). A hook, a parametrization and whatever else cannot be read so is
refused by name, because a bound for another function would be no bound.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of, is_registered
from tvgrad.bounds.network.network import Network, UnsupportedNetwork
from tvgrad.bounds.reading.builder import LINEAR_FORM, NetworkBuilder, Value, layer_of
from tvgrad.bounds.reading.convolutions import CONVOLUTIONS, POOLINGS, convolution, pooling
from tvgrad.bounds.reading.forward_trace import INPUT, SUM, trace_forward
from tvgrad.bounds.reading.verification import verify
from tvgrad.errors import TvgradError


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


@dataclass(frozen=True)
class _Part:
    """A layer, an activation, or another part that has a meaning of its own.

    Attributes:
        module: the part.
        name: for messages.
        prefix: of its parameters' names.
    """

    module: Any
    name: str
    prefix: str = ""


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
            return self._read_part(_Part(module, name, _below(path, "")), value)
        return self._read_traced(f"{name} ({type(module).__name__})" if path else name, path, module, value)

    def _read_traced(self, name: str, path: str, module: nn.Module, value: Value) -> Value:
        self.traced = True
        trace = trace_forward(name, module)
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
                made = self._read_part(_Part(call.part, call.path), given[0])
            values[call.result] = replace(made, alone=made.alone and call.result not in trace.shared)
        return values[trace.result]

    def _read_part(self, part: _Part, value: Value) -> Value:
        return _READERS.get(type(part.module), _Reader._read_activation)(self, part, value)

    def _read_linear(self, part: _Part, value: Value) -> Value:
        self._check_unused(part)
        if value.shape is not None:
            raise UnsupportedNetwork(
                f"{part.name} is given {len(value.shape)} dimensions a sample: put nn.Flatten() before it, or flatten "
                "the data"
            )
        if value.place and part.module.in_features != self.builder.width(value):
            raise UnsupportedNetwork(
                f"{part.name} takes {part.module.in_features} features and the layer before it gives "
                f"{self.builder.width(value)}: the Linear layers must follow one another"
            )
        return self.builder.affine(layer_of(part.module, part.prefix), value, None)

    def _read_convolution(self, part: _Part, value: Value) -> Value:
        self._check_unused(part)
        layer, shape = convolution(part.name, part.prefix, part.module, value.shape)
        return self.builder.affine(layer, value, shape)

    def _check_unused(self, part: _Part) -> None:
        """Refuse weights that stand at a second place."""
        used = {id(part.module), *(id(parameter) for parameter in part.module.parameters())}
        if used & self._seen:
            raise UnsupportedNetwork(
                f"{part.name} is used twice, and its weights move together: give it weights of its own"
            )
        self._seen |= used

    def _read_pooling(self, part: _Part, value: Value) -> Value:
        layer, shape = pooling(part.name, part.module, value.shape)
        return self.builder.affine(layer, value, shape)

    def _read_flatten(self, part: _Part, value: Value) -> Value:
        if part.module.start_dim != 1 or part.module.end_dim != -1:
            raise UnsupportedNetwork(
                f"{part.name} flattens dimensions {part.module.start_dim} to {part.module.end_dim}: use nn.Flatten()"
            )
        return replace(value, shape=None)

    def _read_batch_norm(self, part: _Part, value: Value) -> Value:
        return self.builder.normalised(part.name, value, *_batch_norm(part.name, part.module))

    def _read_dropout(self, part: _Part, value: Value) -> Value:
        if part.module.training and part.module.p > 0:
            raise UnsupportedNetwork(f"{part.name} drops units at random in train mode: call model.eval()")
        return value

    def _read_identity(self, _: _Part, value: Value) -> Value:
        return value

    def _read_activation(self, part: _Part, value: Value) -> Value:
        module = part.module
        if any(True for _ in module.children()) or any(True for _ in module.parameters()):
            # an activation with weights of its own, attention, a normalisation, a module of the user's
            raise UnsupportedNetwork(
                f"{part.name} is a {type(module).__name__}, for which no bounds are known: {LINEAR_FORM}, or use the "
                "estimates, which take any model"
            )
        try:
            activation = activation_of(module)
        except TvgradError as error:
            raise UnsupportedNetwork(f"{part.name}: {error}") from None
        return self.builder.activated(part.name, value, activation)


_READERS: dict[type[nn.Module], Callable[[_Reader, _Part, Value], Value]] = {
    nn.Linear: _Reader._read_linear,
    **dict.fromkeys(CONVOLUTIONS, _Reader._read_convolution),
    **dict.fromkeys(POOLINGS, _Reader._read_pooling),
    nn.Flatten: _Reader._read_flatten,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _Reader._read_batch_norm),
    **dict.fromkeys((nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d), _Reader._read_dropout),
    nn.Identity: _Reader._read_identity,
}


def _below(path: str, child: str) -> str:
    return f"{path}.{child}" if path else child


def _is_known(module: nn.Module) -> bool:
    """Whether a module is read by its class; of any other the forward is traced."""
    return type(module).__module__.startswith("torch.") or is_registered(type(module))


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
