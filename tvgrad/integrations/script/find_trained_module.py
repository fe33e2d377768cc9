"""Finds the module that an optimizer's parameters belong to, and so their names.

An optimizer holds tensors without names. The module is found among the objects that Python's garbage collector tracks,
once, at the first step. A global forward hook would see it being called, but `torch.compile` compiles such a hook into
the model and recompiles when it goes, which costs time and may change the last bits of the script's numbers.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError

WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}


@dataclass(frozen=True)
class TrainedModule:
    """What one optimizer trains.

    Attributes:
        optimizer: the optimizer.
        root: the outermost module of the script that owns all its parameters; wrappers of torch are taken off.
        parameters: name in the root -> parameter, for those that require a gradient, in the root's order.
        label: the name that `--model` picks it by: that of the variable or attribute that holds the module.
        part: the same for the smallest module that owns the parameters, where another optimizer trains another part.
    """

    optimizer: torch.optim.Optimizer
    root: nn.Module
    parameters: dict[str, nn.Parameter]
    label: str
    part: str

    @property
    def description(self) -> str:
        """For the list that an error shows."""
        count = sum(parameter.numel() for parameter in self.parameters.values())
        return f"{self.label} ({count:,} parameters of a {type(self.root).__name__}, {type(self.optimizer).__name__})"


def trained_modules(optimizer: torch.optim.Optimizer, frame: FrameType | None = None) -> list[TrainedModule]:
    """Describe the optimizer that steps, and every other that could.

    Optimizers that hold the same tensors (one that wraps another, say) count as one.

    Args:
        optimizer: the one that steps.
        frame: where the step is called from, to find the script's own names.

    Returns:
        What each trains, the stepping optimizer's first.

    Raises:
        TvgradError: the stepping optimizer's tensors belong to no module.
    """
    modules, others = _living(optimizer)
    if others:
        gc.collect()  # what is only garbage takes no step
        modules, others = _living(optimizer)
    contents = _contents(modules)
    first = _trained(optimizer, modules, contents, frame)
    if first is None:
        raise TvgradError(
            f"the tensors of the script's {type(optimizer).__name__} belong to no torch.nn.Module, so that they have "
            "no names: hold them in a module"
        )
    found = [_trained(one, modules, contents, frame) for one in others]
    return _with_own_labels([first, *(one for one in found if one is not None)])


def choose(found: list[TrainedModule], name: str | None) -> TrainedModule | None:
    """Pick what is to be recorded.

    Args:
        found: what the optimizers train, the stepping one's first.
        name: the value of `--model`.

    Returns:
        The one to record, or None where it is not the one that steps now.

    Raises:
        TvgradError: there are several and none is named, or there is none of that name.
    """
    listed = "; ".join(one.description for one in found)
    if name is None:
        if len(found) > 1:
            raise TvgradError(
                f"the script has {len(found)} optimizers, and one is recorded: pick by --model ({listed})"
            )
        return found[0]
    picked = [one for one in found if name in {one.label, type(one.root).__name__}]
    exact = [one for one in found if name == one.label] or picked
    if len(exact) != 1:
        what = "several models" if exact else "no model"
        raise TvgradError(f"the script trains {what} called {name!r}: pick by --model one of {listed}")
    return exact[0] if exact[0] is found[0] else None


def held_by(optimizer: torch.optim.Optimizer) -> dict[int, torch.Tensor]:
    """List what an optimizer moves.

    Args:
        optimizer: any optimizer.

    Returns:
        id -> tensor.
    """
    return {id(tensor): tensor for group in optimizer.param_groups for tensor in group["params"]}


def _living(stepping: torch.optim.Optimizer) -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
    """All modules, and the optimizers of other tensors than those of the one that steps."""
    everything = gc.get_objects()
    # `type` is asked, because an `isinstance` may wake somebody's lazy proxy; and each class once, because there are
    # hundreds of thousands of objects, and the script waits.
    classes = set(map(type, everything))
    of_modules = {one for one in classes if issubclass(one, nn.Module)}
    of_optimizers = {one for one in classes if issubclass(one, torch.optim.Optimizer)}
    modules = [one for one in everything if type(one) in of_modules and "_modules" in one.__dict__]
    optimizers = [one for one in everything if type(one) in of_optimizers]
    own = frozenset(held_by(stepping))
    others = {frozenset(held_by(one)): one for one in optimizers if "param_groups" in one.__dict__}
    return modules, [one for held, one in others.items() if held and held != own]


def _contents(modules: Iterable[nn.Module]) -> dict[int, set[int]]:
    """Ids of modules -> ids of all modules in them, themselves among them."""
    return {id(module): {id(inner) for inner in module.modules()} for module in modules}


def _trained(
    optimizer: torch.optim.Optimizer,
    modules: list[nn.Module],
    contents: Mapping[int, set[int]],
    frame: FrameType | None,
) -> TrainedModule | None:
    held = {key for key, tensor in held_by(optimizer).items() if tensor.requires_grad}
    if not held:
        return None
    owning = [module for module in modules if held <= {id(tensor) for tensor in module.parameters()}]
    if not owning:
        return None
    outermost = [one for one in owning if not any(id(one) in contents[id(o)] for o in owning if o is not one)]
    # Two wrappers round one model, neither in the other: what both contain is the model.
    shared = [one for one in owning if all(id(one) in contents[id(outer)] for outer in outermost)] or outermost
    root = max(shared, key=lambda one: len(contents[id(one)]))
    while type(root).__name__ in WRAPPERS:
        root = getattr(root, WRAPPERS[type(root).__name__])
    nearest = min(owning, key=lambda one: len(contents[id(one)]))
    parameters = {name: tensor for name, tensor in root.named_parameters() if id(tensor) in held}
    return TrainedModule(optimizer, root, parameters, _label(root, owning, frame), _label(nearest, owning, frame))


def _label(module: nn.Module, owning: list[nn.Module], frame: FrameType | None) -> str:
    """The shortest of the script's names for a module or a wrapper of it, or its class."""
    for wanted in (module, *(one for one in owning if type(one).__name__ in WRAPPERS)):
        names = []
        walked = frame
        while walked is not None:
            scope: dict[str, Any] = dict(walked.f_locals)
            names += [n for n, value in scope.items() if value is wanted and n != "self" and not n.startswith("_")]
            for value in scope.values():
                inside = getattr(value, "__dict__", None) if not isinstance(value, type(sys)) else None
                if isinstance(inside, dict):
                    attributes = {**inside, **(inside.get("_modules") or {})}
                    names += [n for n, v in attributes.items() if v is wanted and not n.startswith("_")]
            walked = walked.f_back
        if names:
            return names[0]
    return type(module).__name__


def _with_own_labels(found: list[TrainedModule]) -> list[TrainedModule]:
    """Optimizers that share a module are told apart by their classes, or by numbers."""
    result: list[TrainedModule] = []
    for one in found:
        shared = sum(other.root is one.root for other in found) > 1
        label = one.part if shared else one.label
        if sum((other.part if shared else other.label) == label for other in found) > 1:
            label = f"{label}.{type(one.optimizer).__name__}"
        number = 2
        plain = label
        while any(other.label == label for other in result):
            label, number = f"{plain}.{number}", number + 1
        result.append(TrainedModule(one.optimizer, one.root, one.parameters, label, one.part))
    return result
