"""The update rule that a recipe and the options of a training ask for, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import OPTIMIZERS, Recipe, positive
from tvgrad.record.options import TraceOptions
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.grouped import AnyRule, GroupedRule
from tvgrad.update_rules.rules import make_rule
from tvgrad.wording import near


def planned_rule(recipe: Recipe, options: TraceOptions, epochs: int, batch_size: int | None) -> UpdateRule:
    """Make the rule of a training; that of decayed parameters, where a recipe has others too.

    Args:
        recipe: its optimizer, rate, decay and schedule count where the options say nothing else.
        options: how to train. Another optimizer than the recipe's has a constant rate and no decay but its own.
        epochs: of the whole training, over which the recipe's schedule goes.
        batch_size: samples in a batch; None is the full batch.

    Returns:
        The rule, with one rate for each step where it has a schedule.

    Raises:
        TvgradError: an option is out of range or does not go with another.
    """
    name = options.optimizer or recipe.optimizer
    if name not in OPTIMIZERS:
        raise TvgradError(f"unknown optimizer {name!r}: choose from {', '.join(OPTIMIZERS)}{near(name, OPTIMIZERS)}")
    lr = recipe.lr if options.lr is None else positive(options.lr, "--lr")
    own = name == recipe.optimizer
    decay = recipe.weight_decay if options.weight_decay is None and own else options.weight_decay
    rule = make_rule(name, lr, options.momentum, decay)
    if not own or recipe.schedule is None:
        return rule
    steps = epochs * math.ceil(len(recipe.train) / (batch_size or len(recipe.train)))
    return rule.with_lr(recipe.schedule.rates(lr, steps))


def require_representable(rule: UpdateRule, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse a rate or a decay that overflows in the format of a parameter, in which PyTorch multiplies with it.

    Args:
        rule: of the training.
        parameters: name -> parameter.

    Raises:
        TvgradError: it overflows.
    """
    rates = rule.lr if isinstance(rule.lr, tuple) else (rule.lr,)
    given = {"--lr": max(rates), "--weight-decay": max(rule.coupled_decay, rule.decoupled_decay)}
    for dtype in dict.fromkeys(parameter.dtype for parameter in parameters.values()):
        for option, value in given.items():
            if value > torch.finfo(dtype).max:
                name = str(dtype).removeprefix("torch.")
                wider = [one for one in (torch.float32, torch.float64) if value <= torch.finfo(one).max]
                other = f", or give --dtype {str(wider[0]).removeprefix('torch.')}" if wider else ""
                raise TvgradError(f"{option} {value:g} is beyond the largest {name} number: lower it{other}")


def rule_of_groups(recipe: Recipe, rule: UpdateRule, parameters: Mapping[str, nn.Parameter]) -> AnyRule:
    """Leave the decay of biases and norms out, where a recipe does.

    Args:
        recipe: the task.
        rule: of the decayed parameters.
        parameters: name -> parameter.

    Returns:
        The rule, or one for each of two groups.
    """
    vectors = tuple(name for name, parameter in parameters.items() if parameter.ndim < 2)
    if recipe.decay_vectors or not rule.decays or not vectors:
        return rule
    others = tuple(name for name in parameters if name not in set(vectors))
    return GroupedRule((rule, rule.without_decay()), (others, vectors))


def optimizer_of(rule: AnyRule, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Make PyTorch's optimizer, with a parameter group for each group of the rule.

    Args:
        rule: what `rule_of_groups` made.
        parameters: name -> parameter.

    Returns:
        The optimizer.
    """
    if isinstance(rule, UpdateRule):
        return rule.make_optimizer(list(parameters.values()))
    groups = [
        {"params": [parameters[name] for name in names], "weight_decay": part.coupled_decay + part.decoupled_decay}
        for part, names in zip(rule.parts, rule.members, strict=True)
    ]
    return rule.parts[0].make_optimizer(groups)


def require_one_rate(recipe: Recipe, rule: UpdateRule) -> None:
    """Refuse to predict a training whose rate or decay is not one for all steps and parameters.

    Args:
        recipe: the task.
        rule: that `planned_rule` made.

    Raises:
        TvgradError: it has a schedule, or leaves the decay of some parameters out.
    """
    if isinstance(rule.lr, Sequence) or (rule.decays and not recipe.decay_vectors):
        raise TvgradError(
            f"{recipe.name} has a schedule of its rate, or no decay of its biases and norms, which no prediction "
            "follows: give --optimizer gd and --lr, or trace it"
        )
