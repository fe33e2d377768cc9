"""Agreement: whether a captured program is what its module computes, wherever export alone would not tell.

What export cannot see is compared: hooks and functions with gradients of their own, which a zero weight behind them
hides, at a second place near the first; forwards that look at the number of samples, on all of them and on a few; that
count their calls, by their attributes; that look at their format, by the graph that is captured in the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from tvgrad.bounds.program.operation import UnsupportedProgram
from tvgrad.bounds.program.point import PointBounds

COMPARED = 16  # samples whose loss and gradient are compared with the module's own
AGREEMENT = 1e-8  # relative; two evaluations in float64 differ by far less, two different functions by far more
NEAR = 1e-3  # how far the second place is, relative to each parameter

Measured = Callable[[dict[str, torch.Tensor]], PointBounds]


def compare(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, measured: Measured) -> None:
    """Compare a program with its module, at the module's weights and at a place near them.

    Args:
        module: model and loss in float64; its parameters are moved.
        inputs: all samples.
        targets: all targets.
        measured: the program's loss and gradient for the first `COMPARED` samples, with parameters by name.

    Raises:
        UnsupportedProgram: they differ.
    """
    before = _attributes(module)
    _compare_here(module, inputs[:COMPARED], targets[:COMPARED], measured)
    _compare_numbers_of_samples(module, inputs, targets)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad and parameter.numel():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                size = float(parameter.square().mean().sqrt())
                parameter.add_(NEAR * (size or 1.0) * noise)
    _compare_here(module, inputs[:COMPARED], targets[:COMPARED], measured)
    changed = sorted(name for name, value in _attributes(module).items() if before.get(name, value) != value)
    if changed or len(_attributes(module)) != len(before):
        raise UnsupportedProgram(
            f"calling the model changes its attribute {', '.join(changed) or 'by adding one'}: "
            "a loss that depends on earlier calls has no bounds"
        )


def _compare_here(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, measured: Measured) -> None:
    """The program of each sample alone, averaged, has to be the module's own loss of all of them."""
    found = measured({name: one.detach() for name, one in module.named_parameters()})
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss = module(inputs, targets)
    try:
        parts = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
    except RuntimeError as problem:  # a value that a gradient needs was changed in place, say
        raise UnsupportedProgram(
            f"PyTorch has no gradient of the loss: {str(problem).strip().splitlines()[0]}"
        ) from problem
    own = torch.cat([part.flatten() for part in parts])
    if not (bool(torch.isfinite(loss)) and bool(torch.isfinite(own).all())):
        raise UnsupportedProgram(
            f"the loss of {len(inputs)} samples is {float(loss.detach()):.3g} and its gradient "
            f"{float(own.norm()):.3g} long: bounds need finite numbers"
        )
    size = max(float(own.norm()), float(found.gradient.hi.norm()))
    apart = float((own - found.gradient.hi).norm())
    if not (
        apart <= AGREEMENT * size + 1e-12
        and abs(float(loss.detach()) - found.loss) <= AGREEMENT * (1 + abs(found.loss))
    ):
        raise UnsupportedProgram(
            f"the loss of {len(inputs)} samples is {float(loss.detach()):.9g} and the mean of their own losses "
            f"{found.loss:.9g} (gradients are {apart:.2g} apart): samples depend on each other, the loss is not a mean "
            "over them, or a hook or a function of its own changes gradients"
        )


def _compare_numbers_of_samples(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
    """The loss of all samples has to be the mean of the losses of a few."""
    if len(inputs) <= COMPARED:
        return
    # with gradients, because a forward may look at whether they are wanted
    whole = float(module(inputs, targets).detach())
    pieces = zip(inputs.split(COMPARED), targets.split(COMPARED), strict=True)
    mean = sum(float(module(x, y).detach()) * len(x) for x, y in pieces) / len(inputs)
    if not abs(whole - mean) <= AGREEMENT * (1 + abs(mean)):
        raise UnsupportedProgram(
            f"the loss of {len(inputs)} samples is {whole:.9g}, and that of {COMPARED} at a time {mean:.9g}: "
            "the model looks at the number of samples, or samples depend on each other"
        )


def _attributes(module: nn.Module) -> dict[str, object]:
    """Plain attributes of all modules, by name; containers by their lengths."""
    found: dict[str, object] = {}
    for name, one in module.named_modules():
        for key, value in vars(one).items():
            if isinstance(value, (bool, int, float, complex, str, type(None))):
                found[f"{name}.{key}".strip(".")] = value
            elif isinstance(value, (list, dict, set)) and not key.startswith("_"):
                found[f"{name}.{key}".strip(".")] = len(value)
    return found


def compare_formats(
    exported: torch.export.ExportedProgram, module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> None:
    """Compare the graph in float64 with the one in the model's own format.

    Args:
        exported: in float64.
        module: model and loss in their own format; a copy is exported.
        inputs: one sample.
        targets: its target.

    Raises:
        UnsupportedProgram: the model looks at its format.
    """
    formats = {one.dtype for one in module.parameters() if one.is_floating_point()}
    if formats <= {torch.float64} or len(formats) > 1:
        return
    (own,) = formats
    given = [one.to(own) if one.is_floating_point() else one for one in (inputs, targets)]
    try:
        other = torch.export.export(copy.deepcopy(module), tuple(given))
    except Exception:  # noqa: BLE001 - what cannot run in its own format has no other graph
        return
    pairs = zip(_calls(exported.graph), _calls(other.graph), strict=False)
    for (mine, node), (theirs, _) in pairs:
        if mine != theirs:
            raise UnsupportedProgram(
                f"in {str(own).removeprefix('torch.')} the model computes {theirs[0]}{theirs[1]} where it computes "
                f"{mine[0]}{mine[1]} in float64 ({node.name}): what looks at the format has no bounds; give a number"
            )


def _calls(graph: fx.Graph) -> list[tuple[tuple[str, str], fx.Node]]:
    """Targets and arguments, without formats."""
    return [
        ((str(node.target), f"{_plain(node.args)}{_plain(node.kwargs)}"), node)
        for node in graph.nodes
        if node.op == "call_function"
    ]


def _plain(argument: Any) -> Any:
    if isinstance(argument, (tuple, list)):
        return tuple(_plain(one) for one in argument)
    if isinstance(argument, dict):
        return {key: _plain(one) for key, one in argument.items()}
    return "" if isinstance(argument, torch.dtype) else argument
