"""What users pass for an update rule: a rule, or the optimizer that they train with."""

from __future__ import annotations

import torch

from tvgrad.errors import TvgradError
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.from_optimizer import rule_from_optimizer

Given = UpdateRule | torch.optim.Optimizer


def as_rule(given: object) -> UpdateRule:
    """Make a rule of what was passed for one.

    Args:
        given: a rule, or an optimizer of PyTorch whose rule is read.

    Returns:
        The rule.

    Raises:
        TvgradError: it is anything else (the name of a rule alone says no learning rate), or no known optimizer.

    Example:
        >>> import torch
        >>> from tvgrad.update_rules.given import as_rule
        >>> as_rule(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1, momentum=0.9)).name
        'momentum'
    """
    if isinstance(given, UpdateRule):
        return given
    if isinstance(given, torch.optim.Optimizer):
        return rule_from_optimizer(given)
    what = repr(given) if isinstance(given, (str, int, float)) else f"a {type(given).__name__}"
    raise TvgradError(
        f"{what} is no update rule: pass one with its learning rate, as tvgrad.update_rules.GD(0.1) or "
        "tvgrad.update_rules.make_rule('momentum', 0.1), or an optimizer of torch.optim"
    )
