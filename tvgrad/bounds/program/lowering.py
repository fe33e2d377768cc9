"""Lowering: from the nodes of an exported program to steps with known bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn

from tvgrad.bounds.program.affine import Linear
from tvgrad.bounds.program.graph import Graph, Step
from tvgrad.bounds.program.operation import Operation, UnsupportedProgram
from tvgrad.bounds.program.rearrangements import Real, Rearrangement

aten = torch.ops.aten

SUPPORTED = (
    "Linear and matrix products, sums, products and quotients by constants, squares, views, slices and concatenations, "
    "sums and means, inverse roots, embeddings, convolutions and average pooling, tanh, sigmoid, silu, gelu, softplus, "
    "ReLU, ReLU6, leaky ReLU, hardtanh and clamp away from their kinks, layer, group and RMS norm, frozen batch norm, "
    "softmax, scaled dot-product attention, cross-entropy of classes or with logits, and mean squared error"
)

Rule = Callable[["Lowering", fx.Node], int]


def line_of(node: fx.Node) -> str:
    """The line of the program that a node comes from.

    Args:
        node: of an exported graph.

    Returns:
        File, line and code, as far as they are known.
    """
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    for at in range(len(lines) - 1, -1, -1):
        if lines[at].startswith("File "):
            file, number = lines[at].split('"')[1], lines[at].split(", line ")[1].split(",")[0]
            code = lines[at + 1] if at + 1 < len(lines) else ""
            return f"{Path(file).name}, line {number}: {code}"
    return f"node {node.name}"


def _is_whole(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.dtype.is_floating_point


class Lowering:
    """The steps of one exported program, in the making."""

    def __init__(self, exported: torch.export.ExportedProgram, module: nn.Module, rules: Mapping[Any, Rule]) -> None:
        """Walk over the nodes.

        Args:
            exported: decomposed; its inputs are parameters, buffers, constants, one sample and its target.
            module: that was exported.
            rules: what becomes of each operation.
        """
        self._rules = rules
        self._constants: dict[int, torch.Tensor] = {}
        self._steps: dict[int, Step] = {}
        self._place: dict[fx.Node, int] = {}
        self._parts: dict[Any, list[int]] = {}
        self._trained: set[int] = set()
        self._shapes: dict[int, torch.Size] = {}
        self._node: fx.Node
        parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
        self._names: list[str] = []
        self._trainable: list[int] = []
        given: list[int] = []
        specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
        nodes = [node for node in exported.graph.nodes if node.op == "placeholder"]
        self._next = 0
        ordered = sorted(nodes, key=lambda node: specs[node.name].kind.name not in ("PARAMETER", "BUFFER"))
        first_name = {id(tensor): name for name, tensor in reversed(list(parameters.items()))}
        every = dict(module.named_parameters(remove_duplicate=False))
        places = dict[str, int]()
        for node in ordered:
            spec = specs[node.name]
            kind, name = spec.kind.name, str(spec.target)
            if name in every:  # tied parameters have several names, and one place
                name = first_name[id(every[name])]
            if kind in ("PARAMETER", "BUFFER") and name in places:
                self._place[node] = places[name]
                continue
            place = self._place[node] = self._new()
            if kind in ("PARAMETER", "BUFFER"):
                places[name] = place
                self._names.append(name)
                if name in parameters and parameters[name].requires_grad:
                    self._trained.add(place)
                elif name not in parameters and not buffers[name].is_floating_point():
                    self._constants[place] = buffers[name][None]
            elif kind == "USER_INPUT":
                given.append(place)
            else:
                self._constants[place] = exported.constants[name][None]
        order = {name: number for number, name in enumerate(parameters)}
        self._trainable = sorted(self._trained, key=lambda place: order[self._names[place]])
        self._inputs, self._targets = given
        self._output = -1
        for node in exported.graph.nodes:
            if node.op == "call_function":
                self._node = node
                self._lower(node)
            elif node.op == "output":
                self._finish(node)

    def graph(self) -> Graph:
        """The program.

        Returns:
            Its steps.
        """
        used, steps = {self._output}, dict[int, Step]()
        for place in sorted(self._steps, reverse=True):
            if place in used:
                steps[place] = self._steps[place]
                used.update(steps[place].inputs)
        return Graph(
            tuple(self._names),
            tuple(self._trainable),
            self._inputs,
            self._targets,
            self._constants,
            dict(sorted(steps.items())),
            self._output,
        )

    def _finish(self, node: fx.Node) -> None:
        outputs = node.args[0]
        if not isinstance(outputs, (tuple, list)) or len(outputs) != 1 or not isinstance(outputs[0], fx.Node):
            raise UnsupportedProgram("the program changes its own buffers or parameters, or returns more than its loss")
        if outputs[0].meta["val"].numel() != 1:
            raise UnsupportedProgram(
                f"the loss of one sample has shape {tuple(outputs[0].meta['val'].shape)}: give a mean"
            )
        self._output = self._place[outputs[0]]

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _lower(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            if source in self._parts:
                self._place[node] = self._parts[source][index]  # type: ignore[index]
                return
            if index == 0 and isinstance(source, fx.Node) and source in self._place:
                self._place[node] = self._place[source]
                return
            raise UnsupportedProgram(f"a second result of {source} is used ({line_of(node)}), which has no bounds")
        if node.target is aten._assert_tensor_metadata.default:  # of the type, which is checked below
            return
        value = node.meta["val"]
        if _is_whole(node):
            self._place[node] = self._whole(node)
            return
        if (
            isinstance(value, torch.Tensor)
            and value.dtype != torch.float64
            and node.target is not aten._to_copy.default
        ):
            raise UnsupportedProgram(
                f"{node.target} computes in {value.dtype} ({line_of(node)}): bounds are of real numbers"
            )
        rule = self._rules.get(node.target)
        if rule is None:
            raise UnsupportedProgram(f"{node.target} has no bounds here ({line_of(node)}): supported are {SUPPORTED}")
        self._place[node] = rule(self, node)

    def _whole(self, node: fx.Node) -> int:
        """Whole numbers are computed as the program computes them."""
        sources = list(node.all_input_nodes)
        inputs = tuple(self._place[one] for one in sources)
        if not sources:
            return self.constant(node.target(*node.args, **node.kwargs))  # type: ignore[operator]
        if any(place in self._trained for place in inputs):
            raise UnsupportedProgram(
                f"{node.target} rounds to whole numbers ({line_of(node)}), which has no derivative"
            )
        if not all(_is_whole(one) for one in sources):
            raise UnsupportedProgram(
                f"{node.target} makes whole numbers of real ones ({line_of(node)}), which their rounding may decide: "
                "compute them before, as data"
            )

        def compute(*tensors: torch.Tensor) -> torch.Tensor:
            known = dict(zip(sources, tensors, strict=True))
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda one: known[one])
            result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
            return result

        return self._put(compute, inputs)

    def step(self, operation: Operation, *inputs: int) -> int:
        """Add a step.

        Args:
            operation: what is computed.
            *inputs: places of its arguments.

        Returns:
            The place of its result.
        """
        return self._put(operation, inputs)

    def _put(self, operation: Operation | Callable[..., torch.Tensor], inputs: tuple[int, ...]) -> int:
        place = self._new()
        trained = any(one in self._trained for one in inputs)
        if trained:
            self._trained.add(place)
        self._steps[place] = Step(operation, inputs, self._node.name, line_of(self._node), trained)
        return place

    def split(self, node: fx.Node, places: list[int]) -> int:
        """Note the results of a node that has several.

        Args:
            node: the node.
            places: of its results.

        Returns:
            The first place.
        """
        self._parts[node] = places
        return places[0]

    def constant(self, tensor: torch.Tensor) -> int:
        """Add a constant.

        Args:
            tensor: without samples.

        Returns:
            Its place.
        """
        place = self._new()
        self._constants[place] = (tensor.double() if tensor.is_floating_point() else tensor)[None]
        return place

    def place(self, argument: Any) -> int:
        """The place of an argument.

        Args:
            argument: a node.

        Returns:
            Its place.
        """
        return self._place[argument]

    def real(self, argument: fx.Node) -> int:
        """The place of an argument as real numbers: truth values that multiply, say.

        Args:
            argument: a node.

        Returns:
            Its place, or that of its numbers as real ones.
        """
        place = self.place(argument)
        return self.step(Real(), place) if _is_whole(argument) else place

    def layer(self, shape: torch.Size, *inputs: int) -> int:
        """Add a Linear layer.

        Args:
            shape: of its result for one sample.
            *inputs: places of its arguments.

        Returns:
            The place of its result.
        """
        place = self.step(Linear(), *inputs)
        self._shapes[place] = shape
        return place

    def selected(self, place: int) -> int:
        """Take only the rows of a Linear layer's matrix that a chain of slices keeps: their norm is smaller.

        Args:
            place: of the end of the chain.

        Returns:
            The same numbers, from a smaller layer where there is one.
        """
        chain, at = list[Rearrangement](), place
        while at in self._steps and isinstance(self._steps[at].operation, Rearrangement):
            chain.insert(0, cast("Rearrangement", self._steps[at].operation))
            (at,) = self._steps[at].inputs
        if at not in self._steps or not isinstance(self._steps[at].operation, Linear):
            return place
        x, weight, *bias = self._steps[at].inputs
        shape = self._shapes[at]
        index = torch.arange(shape.numel()).reshape(shape)
        for one in chain:
            index = one.move(index)
        rows, within = index // shape[-1], index % shape[-1]
        kept = within.unique()
        if len(kept) == shape[-1] or bool((index < 0).any()):
            return place
        source = rows * len(kept) + torch.searchsorted(kept, within.contiguous())
        taken = [self.step(Rearrangement(lambda part: part[kept]), one) for one in (weight, *bias)]
        layer = self.step(Linear(), x, *taken)
        return self.step(Rearrangement(lambda part: part.flatten()[source]), layer)

    def exact(self, place: int) -> bool:
        """Whether a tensor is given, so that it carries no rounding.

        Args:
            place: of the tensor.

        Returns:
            Whether it is.
        """
        return place not in self._steps and place not in self._trained
