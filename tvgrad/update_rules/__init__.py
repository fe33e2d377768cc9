"""Update rules: gradient descent, momentum, Nesterov, Adam and AdamW, their step weights, stability and rounding."""

from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.from_optimizer import rule_from_optimizer
from tvgrad.update_rules.grouped import GroupedRule
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import (
    GD,
    SGD,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    linear_rule,
    make_rule,
    rule_from_dict,
)

__all__ = [
    "GD",
    "SGD",
    "Adam",
    "AdamW",
    "GroupedRule",
    "LinearRule",
    "Momentum",
    "Nesterov",
    "UpdateRule",
    "linear_rule",
    "make_rule",
    "rule_from_dict",
    "rule_from_optimizer",
]
