"""GroupedRule: a rule for each group of parameters, as optimizers with parameter groups and several optimizers have.

Decay for matrices and none for biases and norms is the usual case. What a rule says of one parameter depends on no
other, so that a grouped rule is nothing but its parts side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import Array, Rate, UpdateRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.wording import listed


@dataclass(frozen=True)
class GroupedRule:
    """Update rules of groups of parameters; a parameter of no group is not moved.

    Args:
        parts: a rule for each group, in the order of the optimizers' parameter groups.
        members: the names of the parameters of each group; a group may be empty.

    Raises:
        TvgradError: there are not as many rules as groups, or a parameter is in two groups.

    Example:
        >>> from tvgrad.update_rules import AdamW, GroupedRule
        >>> rule = GroupedRule((AdamW(0.1), AdamW(0.1, weight_decay=0.0)), (("weight",), ("bias",)))
        >>> rule.name, rule.of("bias").weight_decay
        ('adamw', 0.0)
    """

    parts: tuple[UpdateRule, ...]
    members: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.members):
            raise TvgradError(f"{len(self.parts)} rules were given for {len(self.members)} groups of parameters")
        names = list(itertools.chain.from_iterable(self.members))
        twice = next((name for name in names if names.count(name) > 1), None) if len(names) > len(set(names)) else None
        if twice is not None:
            raise TvgradError(f"{twice} is in two groups of parameters, and one update rule moves it")

    @property
    def name(self) -> str:
        """The rules' names."""
        return listed(list(dict.fromkeys(part.name for part in self.used)))

    @property
    def used(self) -> tuple[UpdateRule, ...]:
        """The rules of groups that are not empty."""
        return tuple(part for part, names in zip(self.parts, self.members, strict=True) if names)

    @property
    def decays(self) -> bool:
        """Whether a rule has weight decay of either kind."""
        return any(part.decays for part in self.used)

    @cached_property
    def index(self) -> dict[str, int]:
        """Name of a parameter -> the number of its group."""
        return {name: place for place, names in enumerate(self.members) for name in names}

    def of(self, name: str) -> UpdateRule | None:
        """Look up the rule of one parameter.

        Args:
            name: of the parameter.

        Returns:
            Its rule, or None where it is not moved.
        """
        place = self.index.get(name)
        return None if place is None else self.parts[place]

    def with_lrs(self, rates: Sequence[Rate]) -> GroupedRule:
        """Change the learning rates.

        Args:
            rates: a rate or a schedule for each group.

        Returns:
            The same rules with these rates.
        """
        return self._changed(lambda part, place: part.with_lr(rates[place]))

    def until(self, steps: int) -> GroupedRule:
        """Cut the schedules off.

        Args:
            steps: how many steps are left of them.

        Returns:
            The same rules with the rates of the first steps.
        """
        return self._changed(lambda part, _: part.until(steps))

    def without_decay(self) -> GroupedRule:
        """Leave weight decay out.

        Returns:
            The same rules with weight decay 0.
        """
        return self._changed(lambda part, _: part.without_decay())

    def momentum_weights(self, k: int) -> Array:
        """Weigh each step's gradient in a k-step task vector, without decay and preconditioner.

        Args:
            k: the number of steps.

        Returns:
            `c[k,s]`, one row for each group.
        """
        return np.stack([part.momentum_weights(k) for part in self.parts])

    def simplified(self, names: Collection[str]) -> UpdateRule | GroupedRule:
        """Make one rule of it where all parameters have the same.

        Args:
            names: of all parameters.

        Returns:
            The rule that all have, or itself.
        """
        alike = len(set(self.used)) == 1 and all(name in self.index for name in names)
        return self.used[0] if alike else self

    def to_dict(self) -> dict[str, Any]:
        """Describe the rules for JSON.

        Returns:
            `name` and `groups`; `rule_from_dict` gives the same bits back.
        """
        pairs = zip(self.parts, self.members, strict=True)
        return {
            "name": self.name,
            "groups": [{"rule": part.to_dict(), "parameters": list(names)} for part, names in pairs],
        }

    def _changed(self, change: Callable[[UpdateRule, int], UpdateRule]) -> GroupedRule:
        return GroupedRule(tuple(change(part, place) for place, part in enumerate(self.parts)), self.members)


AnyRule = UpdateRule | GroupedRule
"""One rule for all parameters, or one for each group."""

Coefficient = float | Mapping[str, float]
"""One number for all parameters, or name -> number."""


def parts_of(rule: AnyRule) -> tuple[UpdateRule, ...]:
    """List the rules that move something.

    Args:
        rule: one for all, or grouped.

    Returns:
        At least one rule.
    """
    return rule.used if isinstance(rule, GroupedRule) else (rule,)


def rule_of(rule: AnyRule, name: str) -> UpdateRule | None:
    """Look up the rule of one parameter.

    Args:
        rule: one for all, or grouped.
        name: of the parameter.

    Returns:
        Its rule, or None where it is not moved.
    """
    return rule.of(name) if isinstance(rule, GroupedRule) else rule


def is_linear(rule: AnyRule) -> bool:
    """Tell whether a task vector is a weighted sum of gradients, in every group.

    Args:
        rule: one for all, or grouped.

    Returns:
        Whether it is.
    """
    return all(isinstance(part, LinearRule) for part in parts_of(rule))


def coefficients_by_name(rule: AnyRule, values: Array) -> Coefficient:
    """Hand a number of each group to its parameters.

    Args:
        rule: one for all, or grouped.
        values: a number, or one for each group.

    Returns:
        The number; or name -> number, without the parameters that are not moved.
    """
    if isinstance(rule, GroupedRule):
        return {name: float(values[place]) for name, place in rule.index.items()}
    return float(values)


def weighs_alike(rule: AnyRule, steps: int) -> bool:
    """Tell whether all groups weigh the steps alike, up to decay: then one Hessian-vector product does for all.

    Args:
        rule: one for all, or grouped.
        steps: how many.

    Returns:
        Whether they do.
    """
    weights = [part.momentum_weights(steps) for part in parts_of(rule)]
    return all(np.array_equal(one, weights[0]) for one in weights)


UNLIKE = (
    "curvature has no row of its own: groups of parameters weigh the steps differently, and one Hessian-vector product "
    "does not do for all"
)


class GroupedOptimizers:
    """PyTorch's optimizers for the groups of a rule, which step together.

    Attributes:
        optimizers: (rule, its optimizer) of each group that is not empty.
    """

    def __init__(self, rule: AnyRule, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        """Make them.

        Args:
            rule: one for all, or grouped.
            parameters: name -> parameter.
        """
        held: Iterable[tuple[UpdateRule, Iterable[str]]] = ((rule, parameters),) if isinstance(rule, UpdateRule) else ()
        if isinstance(rule, GroupedRule):
            held = [(part, names) for part, names in zip(rule.parts, rule.members, strict=True) if names]
        self.optimizers = [(part, part.make_optimizer([parameters[name] for name in names])) for part, names in held]

    def step(self, number: int) -> None:
        """Take a step.

        Args:
            number: of the step, from 0.
        """
        for rule, optimizer in self.optimizers:
            rule.set_rate(optimizer, number)
            optimizer.step()
