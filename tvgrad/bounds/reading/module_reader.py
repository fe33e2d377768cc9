"""Reading an `nn.Module` as a `Network`.

What is read is what PyTorch runs: a copy of the model is run and what it does is written down, call by call (module
forward_record). Layers and activations of `torch.nn` are steps that are known by their classes. A hook, weights in one
storage, and whatever else cannot be read so is refused by name (module module_state), because a bound for another
function would be no bound. The network that comes of it is also compared with the model's numbers (module
verification).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tvgrad.bounds.activations.registry import activation_of, check_forward, is_registered
from tvgrad.bounds.network.network import Network, UnsupportedNetwork
from tvgrad.bounds.reading.builder import LINEAR_FORM, NetworkBuilder, Value, layer_of
from tvgrad.bounds.reading.convolutions import CONVOLUTIONS, POOLINGS, convolution, pooling
from tvgrad.bounds.reading.forward_record import INPUT, SUM, ForwardRecord, as_one_step, record_forward
from tvgrad.bounds.reading.module_state import check_plain, check_storage
from tvgrad.bounds.reading.verification import SAMPLES, verify
from tvgrad.errors import TvgradError


def read_module(module: nn.Module, inputs: torch.Tensor) -> Network:
    """Read a model of Linear, convolutions, average pooling, Flatten, smooth activations, BatchNorm, and sums.

    Args:
        module: the model; a copy is run, and nothing in it is changed.
        inputs: the samples, (n, ...), channels first.

    Returns:
        Its layers, with trainable parameters named and ordered as in `named_parameters`.

    Raises:
        TvgradError: there are no samples.
        UnsupportedNetwork: the model holds something else, or its weights are not finite.
    """
    if not len(inputs):
        raise TvgradError("the data is empty: give at least one sample")
    for path, part in module.named_modules(remove_duplicate=False):
        check_plain(f"module {path}" if path else "the model", part)
    check_storage(module, inputs)
    copied = _copied(module).double().cpu()
    samples = inputs[:SAMPLES].detach().cpu().double()
    record = record_forward(copied, samples, as_one_step)
    if record.problem:
        raise UnsupportedNetwork(record.problem)
    shape = tuple(inputs.shape[1:])
    reader = _Reader(math.prod(shape))
    values = reader.read_calls(record, Value(0, shape if len(shape) > 1 else None))
    if record.failed:  # the reader has no better words for it
        raise UnsupportedNetwork(f"the model does not run on the data ({record.failed}): repair its forward")
    if record.random:
        raise UnsupportedNetwork("the model draws random numbers: leave chance out of its forward")
    if record.changed:
        raise UnsupportedNetwork(
            "the model changes its own parts or weights when it runs: leave that out of its forward"
        )
    result = values[record.result]
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
    _check_again(record, module, copied, inputs)
    verify(network, module, inputs)
    return network


def _check_again(record: ForwardRecord, module: nn.Module, copied: nn.Module, inputs: torch.Tensor) -> None:
    """Run forward again on fewer samples, and on as many as there are, without their numbers: nothing may change."""
    fewer = inputs[: max(1, min(SAMPLES, len(inputs)) // 2)].detach().cpu().double()
    all_of_them = torch.empty(inputs.shape, dtype=torch.float64, device="meta")
    for model, samples in [(copied, fewer), (_copied(module).double().to("meta"), all_of_them)]:
        again = record_forward(model, samples, as_one_step)
        if again.problem or again.failed or again.changed or again.told != record.told or again.result != record.result:
            why = again.problem or again.failed or "its steps are others"
            raise UnsupportedNetwork(
                f"the model computes something else when it is called again, or for another number of samples ({why}): "
                "leave chance and what changes from call to call out of its forward"
            )


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
        self._seen: set[int] = set()

    def read_calls(self, record: ForwardRecord, value: Value) -> dict[str, Value]:
        """Read what a model does with a value; of a forward that failed, what it began."""
        shared = record.shared
        values = {INPUT: replace(value, alone=INPUT not in shared)}
        for call in record.calls if record.failed else record.needed:
            given = [values[one] for one in call.values]
            if call.part == SUM:
                made = self.builder.added(call.path, *given)
            elif isinstance(call.part, str):
                made = self.builder.activated(call.path, given[0], activation_of(call.part, partly=True))
            else:
                name = (f"module {call.path}" if call.path else "the model") if call.own else call.path
                made = self._read_part(_Part(call.part, name, _below(call.path, "") if call.own else ""), given[0])
            values[call.result] = replace(made, alone=made.alone and call.result not in shared)
        return values

    def _read_part(self, part: _Part, value: Value) -> Value:
        return _READERS.get(type(part.module), _Reader._read_activation)(self, part, value)

    def _read_linear(self, part: _Part, value: Value) -> Value:
        self._check_unused(part)
        if value.shape is not None:
            raise UnsupportedNetwork(
                f"{part.name} is given {len(value.shape)} dimensions a sample: put nn.Flatten() before it, or flatten "
                "the data"
            )
        if part.module.in_features != self.builder.width(value):
            if not value.place:
                raise UnsupportedNetwork(
                    f"the inputs have {self.builder.width(value)} features and {part.name} takes "
                    f"{part.module.in_features}: give data of the model's shape"
                )
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
            activation = activation_of(module, partly=True)
            if is_registered(type(module)):
                check_forward(module, activation)
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


def _copied(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever a user's module holds
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedNetwork(
            f"the model ({type(module).__name__}) cannot be copied ({first}): keep what is no parameter out of it"
        ) from None


def _batch_norm(name: str, module: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale and shift of a BatchNorm that uses its running statistics, and the size of the shift's terms."""
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
    size = shift.abs()
    if module.bias is not None:
        bias = module.bias.detach().double().cpu()
        shift, size = shift + bias, size + bias.abs()
    if not bool((torch.isfinite(scale) & torch.isfinite(shift)).all()):
        raise UnsupportedNetwork(f"{name} has statistics or weights that are not finite: repair the checkpoint first")
    return scale, shift, size
