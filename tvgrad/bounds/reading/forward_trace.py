"""Forward traces: which modules, activations and sums the forward method of a module is made of, found by tracing it.

`torch.fx` runs the method once on stand-ins for tensors and writes down what is done with them. Only modules of its
own, elementwise activations, flattening and sums are known here; any other operation is refused by its name. What an
outline leaves out (values that depend on the data, operations in place, `torch.no_grad`) is for the reader to check on
real data.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from tvgrad.bounds.network.network import UnsupportedNetwork

INPUT, SUM = "the input", "a sum"
REMEDY = (
    "write forward with submodules, smooth activations, torch.flatten(x, 1) and sums such as x + self.body(x), or use "
    "the estimates, which take any model"
)


def _flattening(start_dim: int = 0, end_dim: int = -1) -> nn.Flatten:
    return nn.Flatten(start_dim, end_dim)


# what stands for a function: a module with its options, or the name of an activation
_FUNCTIONS: dict[str, Callable[..., nn.Module] | str] = {
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus,
    "logsigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink, "softsign": nn.Softsign, "elu": nn.ELU, "celu": nn.CELU,
    "sin": "sin", "flatten": _flattening, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip
_OF: dict[Callable[..., Any], str] = {
    getattr(place, name): name for place in (torch, functional) for name in _FUNCTIONS if hasattr(place, name)
}
_SUMS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class TracedCall:
    """One thing that forward does.

    Attributes:
        result: name of the value that it makes.
        part: a module, the name of an activation, or `SUM`.
        path: of a submodule, below the traced one; of anything else what to call it.
        own: whether the part is a submodule of the traced one.
        values: names of what goes in: one value, or the two terms of a sum.
    """

    result: str
    part: nn.Module | str
    path: str
    own: bool
    values: tuple[str, ...]


@dataclass(frozen=True)
class ForwardTrace:
    """What forward does with its input.

    Attributes:
        calls: in order.
        result: name of what it returns; `INPUT` for what was given.
        shared: names of values that more than one thing looks at.
    """

    calls: tuple[TracedCall, ...]
    result: str
    shared: frozenset[str]


class _Tracer(fx.Tracer):
    """Looks at one module's own forward; every module that it calls is a step."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - named by fx
        return True


def trace_forward(name: str, module: nn.Module) -> ForwardTrace:
    """Trace a module's forward.

    Args:
        name: of the module, for messages.
        module: the module; its forward runs once, without data.

    Returns:
        What it does.

    Raises:
        UnsupportedNetwork: forward cannot be traced, or does something else.
    """
    try:
        nodes = list(_Tracer().trace(module, _defaults(module)).nodes)
    except Exception as error:  # whatever a user's forward raises when it is given no data
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedNetwork(f"{name} cannot be traced ({first}): {REMEDY}") from None
    needed: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or any(user in needed for user in node.users):
            needed.add(node)
    names: dict[fx.Node, str] = {}
    calls: list[TracedCall] = []
    result = ""
    for node in (one for one in nodes if one in needed):
        if node.op == "placeholder":
            if node is not nodes[0]:
                raise UnsupportedNetwork(f"{name} takes more than one input: give it one tensor")
            names[node] = INPUT
        elif node.op == "output":
            returned = node.args[0]
            if not isinstance(returned, fx.Node):
                raise UnsupportedNetwork(f"{name} returns {type(returned).__name__}: return one tensor of logits")
            result = names[returned]
        else:
            names[node] = node.name
            calls.append(_call(name, module, node, names))
    shared = frozenset(names[node] for node in names if len(needed.intersection(node.users)) > 1)
    return ForwardTrace(tuple(calls), result, shared)


def _defaults(module: nn.Module) -> dict[str, Any]:
    """What forward's parameters beyond the first are where they are not given."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return {one.name: one.default for one in parameters[1:] if one.default is not one.empty}


def _call(name: str, module: nn.Module, node: fx.Node, names: dict[fx.Node, str]) -> TracedCall:
    """Say what a node of the graph is."""
    known = tuple(names[one] for one in node.args if isinstance(one, fx.Node))
    rest = node.args[len(known) :]
    lone = len(known) == len(node.all_input_nodes) == 1 and isinstance(node.args[0], fx.Node)
    if node.op == "call_module":
        if not lone or rest or node.kwargs:
            raise UnsupportedNetwork(f"{name} calls {node.target} with more than one tensor: {REMEDY}")
        return TracedCall(node.name, module.get_submodule(str(node.target)), str(node.target), True, known)
    if node.op == "get_attr":
        raise UnsupportedNetwork(
            f"{name} uses its tensor {node.target} directly: put it into a module of torch.nn, such as nn.Linear"
        )
    if node.op == "call_method":
        called = str(node.target)
        is_sum = called in {"add", "add_"}
    else:
        function: Any = node.target
        called = _OF.get(function, str(getattr(function, "__name__", function)))
        is_sum = function in _SUMS
        if not is_sum and function not in _OF:
            raise UnsupportedNetwork(f"{name} calls {called}, for which no bounds are known: {REMEDY}")
    if is_sum:
        if len(node.args) != 2 or len(known) != 2 or node.kwargs:
            raise UnsupportedNetwork(f"{name} adds something other than two of its own tensors: {REMEDY}")
        return TracedCall(node.name, SUM, f"{name}, in a sum,", False, known)
    builder = _FUNCTIONS.get(called)
    if builder is None or not lone:
        raise UnsupportedNetwork(f"{name} calls {called}, for which no bounds are known: {REMEDY}")
    try:
        if isinstance(builder, str) and (rest or node.kwargs):
            raise TypeError
        part = builder if isinstance(builder, str) else builder(*rest, **node.kwargs)
    except TypeError:
        raise UnsupportedNetwork(f"{name} calls {called} with options that are not known: {REMEDY}") from None
    return TracedCall(node.name, part, f"{name}, in {called},", False, known)
