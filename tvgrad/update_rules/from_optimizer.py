"""The rule that PyTorch's optimizers follow, read from the optimizers themselves."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import Rate, UpdateRule
from tvgrad.update_rules.grouped import AnyRule, GroupedRule
from tvgrad.update_rules.rules import SGD, Adam, AdamW, Momentum, Nesterov

OPTIONS = ("lr", "momentum", "dampening", "nesterov", "betas", "eps", "amsgrad", "weight_decay", "maximize")


def rule_from_optimizer(optimizer: torch.optim.Optimizer) -> UpdateRule:
    """Read the rule that a PyTorch optimizer follows, at its present learning rate.

    A rate of 0, which warm-up starts with, is read as a schedule of that one step: put the true rates in its place
    with `with_lr`.

    Args:
        optimizer: a `torch.optim.SGD`, `Adam` or `AdamW`, or a subclass that steps like it.

    Returns:
        SGD, Momentum, Nesterov, Adam or AdamW.

    Raises:
        TvgradError: it is another optimizer, it maximizes, or its parameter groups differ in an option.

    Examples:
        >>> import torch
        >>> from tvgrad.update_rules import rule_from_optimizer
        >>> rule_from_optimizer(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)).name
        'sgd'
    """
    _require_known(optimizer)
    first, *others = [group for group in optimizer.param_groups if group["params"]] or optimizer.param_groups
    for option in OPTIONS:
        if any(group.get(option) != first.get(option) for group in others):
            raise TvgradError(
                f"the optimizer's parameter groups differ in {option}, and one update rule has one: "
                "give all groups the same"
            )
    return _rule_of_group(optimizer, first)


def rule_of_parameters(optimizers: Sequence[torch.optim.Optimizer], names: Mapping[int, str]) -> AnyRule:
    """Read the rules by which optimizers move the parameters of one model.

    Args:
        optimizers: of one model.
        names: id of a parameter -> its name.

    Returns:
        One rule where there is one group with all parameters, else a `GroupedRule` whose groups are the optimizers'
        parameter groups in their order, empty ones among them.

    Raises:
        TvgradError: an optimizer is not known, it maximizes, or a parameter is held twice.
    """
    parts, members = list[UpdateRule](), list[tuple[str, ...]]()
    for optimizer in optimizers:
        _require_known(optimizer)
        for group in optimizer.param_groups:
            parts.append(_rule_of_group(optimizer, group))
            members.append(tuple(names[id(tensor)] for tensor in group["params"] if id(tensor) in names))
    if len(parts) == 1 and set(members[0]) == set(names.values()):
        return parts[0]
    return GroupedRule(tuple(parts), tuple(members))


def _require_known(optimizer: torch.optim.Optimizer) -> None:
    own_step = inspect.unwrap(type(optimizer).step)
    families = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
    if not any(isinstance(optimizer, family) and own_step is inspect.unwrap(family.step) for family in families):
        raise TvgradError(
            f"the update rule of {type(optimizer).__name__} is not known: use torch.optim.SGD, Adam or AdamW"
        )


def _rule_of_group(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> UpdateRule:
    if group["maximize"]:
        raise TvgradError("the optimizer maximizes: negate the loss and leave maximize out")
    lr: Rate = float(group["lr"]) or (0.0,)
    decay = float(group["weight_decay"])
    if not isinstance(optimizer, torch.optim.SGD):
        decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return (AdamW if decoupled else Adam)(lr, group["betas"], group["eps"], decay, group["amsgrad"])
    if not group["momentum"]:
        return SGD(lr, decay)
    if group["nesterov"]:
        return Nesterov(lr, group["momentum"], decay)
    return Momentum(lr, group["momentum"], group["dampening"], decay)
