"""Finds the module that an optimizer's parameters belong to, and so their names.

An optimizer holds tensors without names. The module is found among the objects that Python's garbage collector tracks,
once, at the first step. A global forward hook would see it being called, but `torch.compile` compiles such a hook into
the model and recompiles when it goes, which costs time and may change the last bits of the script's numbers.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.integrations.script.joined_modules import joined_modules

WRAPPERS = {"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module", "DataParallel": "module"}


@dataclass(frozen=True)
class TrainedModule:
    """What one optimizer trains.

    Attributes:
        optimizer: the optimizer.
        root: the outermost module of the script that owns all its parameters; wrappers of torch are taken off. Where
            no module does, one that holds those which own them by the script's names.
        parameters: name in the root -> parameter, for those that require a gradient, in the root's order; all of an
            optimizer's where none does.
        label: the name that `--model` picks it by: that of the variable or attribute that holds the module.
        whole: the same, also where `label` tells apart the optimizers of one module.
        part: the same for the smallest module that owns the parameters, where another optimizer trains another part.
        more: further optimizers of the root, where all of them are recorded as one run.
    """

    optimizer: torch.optim.Optimizer
    root: nn.Module
    parameters: dict[str, nn.Parameter]
    label: str
    whole: str
    part: str
    more: tuple[torch.optim.Optimizer, ...] = ()

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """All optimizers of it."""
        return (self.optimizer, *self.more)

    @property
    def frozen(self) -> bool:
        """Whether none of its parameters requires a gradient at present."""
        return not any(parameter.requires_grad for parameter in self.parameters.values())

    @property
    def description(self) -> str:
        """For the list that an error shows."""
        count = sum(parameter.numel() for parameter in self.parameters.values())
        kinds = " and ".join(dict.fromkeys(type(one).__name__ for one in self.optimizers))
        return f"{self.label} ({count:,} parameters of a {type(self.root).__name__}, {kinds})"


def trained_modules(
    optimizer: torch.optim.Optimizer, frame: FrameType | None = None, past: Collection[torch.optim.Optimizer] = ()
) -> list[TrainedModule]:
    """Describe the optimizer that steps, and every other that could.

    Optimizers that hold the same tensors (one that wraps another, say) count as one.

    Args:
        optimizer: the one that steps.
        frame: where the step is called from, to find the script's own names.
        past: optimizers whose training is over.

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
    rest = [_trained(one, modules, contents, frame) for one in others if one not in past]
    found = [one for one in rest if one is not None and (one.root is first.root or not one.frozen)]
    return _with_own_labels([first, *found])


def choose(found: list[TrainedModule], name: str | None) -> TrainedModule | None:
    """Pick what is to be recorded: a model with all its optimizers, or the part of one that an optimizer trains.

    Args:
        found: what the optimizers train, the stepping one's first.
        name: the value of `--model`.

    Returns:
        What to record, or None where it is not what is trained now.

    Raises:
        TvgradError: there are several models and none is named, or there is none of that name.
    """
    models = whole_models(found)
    listed = "; ".join(one.description for one in models)
    if name is None:
        if len(models) > 1:
            raise TvgradError(
                f"the script trains {len(models)} models, and one is recorded: pick by --model ({listed})"
            )
        return models[0]
    picked = [one for one in models if name == one.label]
    picked = picked or [one for one in found if name == one.label]
    picked = picked or [one for one in models if name == type(one.root).__name__]
    if len(picked) != 1:
        what = "several models" if picked else "no model"
        raise TvgradError(f"the script trains {what} called {name!r}: pick by --model one of {listed}")
    return picked[0] if any(one is found[0].optimizer for one in picked[0].optimizers) else None


def whole_models(found: Sequence[TrainedModule]) -> list[TrainedModule]:
    """Put the optimizers of each model together.

    Args:
        found: what the optimizers train.

    Returns:
        Each model once, with all its optimizers.
    """
    models = []
    for first in found:
        same = [one for one in found if one.root is first.root]
        if first is not same[0]:
            continue
        held = {id(parameter) for one in same for parameter in one.parameters.values()}
        parameters = {name: tensor for name, tensor in first.root.named_parameters() if id(tensor) in held}
        more = tuple(one.optimizer for one in same[1:])
        models.append(first if not more else replace(first, parameters=parameters, label=first.whole, more=more))
    return models


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
    frozen = gc.get_freeze_count()
    if frozen:  # what a script has frozen is not listed
        gc.unfreeze()
    try:
        everything = gc.get_objects()
    finally:
        if frozen:
            gc.freeze()
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
    contents: dict[int, set[int]],
    frame: FrameType | None,
) -> TrainedModule | None:
    all_of_it = held_by(optimizer)
    held = {key for key, tensor in all_of_it.items() if tensor.requires_grad}
    # Where all is frozen, that is for the moment: as while the other part of a GAN takes its step.
    held = held or set(all_of_it)
    if not held:
        return None
    owning = [module for module in modules if held <= {id(tensor) for tensor in module.parameters()}]
    if not owning:
        return _of_several(optimizer, modules, contents, held, frame)
    outermost = [one for one in owning if not any(id(one) in contents[id(o)] for o in owning if o is not one)]
    # Two wrappers round one model, neither in the other: what both contain is the model.
    shared = [one for one in owning if all(id(one) in contents[id(outer)] for outer in outermost)] or outermost
    root = max(shared, key=lambda one: len(contents[id(one)]))
    root = _unwrapped(root)
    nearest = min(owning, key=lambda one: len(contents[id(one)]))
    parameters = {name: tensor for name, tensor in root.named_parameters() if id(tensor) in held}
    whole = _label(root, owning, frame)
    return TrainedModule(optimizer, root, parameters, whole, whole, _label(nearest, owning, frame))


def _of_several(
    optimizer: torch.optim.Optimizer,
    modules: list[nn.Module],
    contents: dict[int, set[int]],
    held: set[int],
    frame: FrameType | None,
) -> TrainedModule | None:
    """What an optimizer trains whose tensors are of several modules, which are put into one."""

    def name_of(module: nn.Module) -> str:
        # The outermost name: a function that trains may call the modules otherwise than the script does.
        return _label(module, [one for one in modules if _unwrapped(one) is module], frame, outermost=True)

    bare = [module for module in modules if type(module).__name__ not in WRAPPERS]
    root = joined_modules(bare, contents, held, name_of)
    if root is None:
        return None
    # Where another optimizer trains a part of it, they are found to share it.
    contents[id(root)] = {id(inner) for inner in root.modules()}
    contents[id(root)] |= {id(one) for one in modules if id(_unwrapped(one)) in contents[id(root)]}
    modules.append(root)
    parameters = {name: tensor for name, tensor in root.named_parameters() if id(tensor) in held}
    label = "+".join(root)
    return TrainedModule(optimizer, root, parameters, label, label, label)


def _unwrapped(module: nn.Module) -> nn.Module:
    while type(module).__name__ in WRAPPERS:
        module = getattr(module, WRAPPERS[type(module).__name__])
    return module


def _label(module: nn.Module, owning: list[nn.Module], frame: FrameType | None, *, outermost: bool = False) -> str:
    """The shortest of the script's names for a module or a wrapper of it, or its class."""
    for wanted in (module, *(one for one in owning if type(one).__name__ in WRAPPERS)):
        names = []
        walked = frame
        while walked is not None:
            names += _names_in(dict(walked.f_locals), wanted)[:1]
            walked = walked.f_back
        if names:
            return names[-1 if outermost else 0]
    return type(module).__name__


def _names_in(scope: dict[str, Any], wanted: nn.Module) -> list[str]:
    """A module's names in a scope: those of variables first, then of attributes of what they hold."""
    names = [n for n, value in scope.items() if value is wanted and n != "self" and not n.startswith("_")]
    for value in scope.values():
        inside = getattr(value, "__dict__", None) if not isinstance(value, type(sys)) else None
        if isinstance(inside, dict):
            attributes = {**inside, **(inside.get("_modules") or {})}
            names += [n for n, v in attributes.items() if v is wanted and not n.startswith("_")]
    return names


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
        result.append(replace(one, label=label))
    return result
