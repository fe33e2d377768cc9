"""Joined modules: one optimizer may train several modules that no module holds together, an encoder and a head say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn


def joined_modules(
    modules: Sequence[nn.Module],
    contents: Mapping[int, set[int]],
    held: set[int],
    name_of: Callable[[nn.Module], str],
) -> nn.ModuleDict | None:
    """Put the outermost modules that own an optimizer's tensors into one.

    Args:
        modules: all modules of the process.
        contents: ids of modules -> ids of all modules in them.
        held: ids of the optimizer's tensors.
        name_of: the script's name for a module.

    Returns:
        Name -> module, sorted by name, so that it is the same in another start of the script; None where some tensor
        belongs to no module, or modules overlap.
    """
    owned = {id(module): held & {id(tensor) for tensor in module.parameters()} for module in modules}
    owning = [module for module in modules if owned[id(module)]]
    owning.sort(key=lambda one: (len(owned[id(one)]), len(contents[id(one)])), reverse=True)
    parts: list[nn.Module] = []
    covered: set[int] = set()
    for module in owning:
        if not owned[id(module)] & covered:
            parts.append(module)
            covered |= owned[id(module)]
    if covered != held:
        return None
    named: dict[str, nn.Module] = {}
    for module in sorted(parts, key=name_of):
        name, number = name_of(module), 2
        while name in named or hasattr(nn.ModuleDict, name):  # `keys`, say
            name, number = f"{name_of(module)}_{number}", number + 1
        named[name] = module
    return nn.ModuleDict(named)
