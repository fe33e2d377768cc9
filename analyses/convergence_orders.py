"""The order of convergence: with which power of the learning rate does a prediction's residual fall?

A Taylor expansion stands or falls with its order. For every linear update rule, and for an epoch of mini-batches in
their recorded order, training is done by `torch.optim` in float64 at falling rates, and a line is fitted through the
logarithms of what the predictions leave of the task vector: slope 2 for order 1, slope 3 for order 2 and for the
quadratic model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes

from tvgrad.problem.objective import Objective
from tvgrad.record.batch_order import batches_of
from tvgrad.theory.batch_predictions import batch_view, predict_batches
from tvgrad.theory.second_order import predict
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.rules import GD, SGD, Momentum, Nesterov
from tvgrad.vectors.algebra import combination, difference
from tvgrad.vectors.parameters import Weights, norm

from .analysis_result import AnalysisResult, outcome_of
from .falling_rates import draw_falling, falling_rates, fitted_orders, objectives_of

STEPS, HALVINGS = 4, 5
FACTORS = (1.0, 0.3, 1.6, 0.7)  # a schedule that goes down and up
DECAY, MOMENTUM = 0.1, 0.9
LARGEST_ERROR = 0.003
SLACK = 0.1
THEOREM = {"order 1": 2, "order 2": 3, "quadratic": 3}
FULL, BATCHES = "full batch", "mini-batches"

RULES: dict[str, Callable[[float], LinearRule]] = {
    "gd": GD,
    "gd, schedule": lambda lr: GD([lr * factor for factor in FACTORS]),
    "momentum": lambda lr: Momentum(lr, MOMENTUM),
    "momentum, dampened": lambda lr: Momentum(lr, MOMENTUM, dampening=0.4),
    "momentum, schedule": lambda lr: Momentum([lr * factor for factor in FACTORS], MOMENTUM),
    "nesterov": lambda lr: Nesterov(lr, MOMENTUM),
    "sgd, coupled decay": lambda lr: SGD(lr, DECAY),
    "nesterov, coupled decay": lambda lr: Nesterov(lr, MOMENTUM, DECAY),
    "sgd, decoupled decay": lambda lr: SGD(lr, DECAY, decoupled=True),
    "momentum, decoupled decay": lambda lr: Momentum(lr, MOMENTUM, weight_decay=DECAY, decoupled=True),
}


def analyse(target: str = "digits", rates: int = HALVINGS, samples: int = 400) -> AnalysisResult:
    """Train with every rule at falling rates, and fit the orders of what the predictions leave.

    Args:
        target: a recipe; its first task is used.
        rates: how many rates, each half the one before; the largest is that of a predicted relative error of 0.3 %.
        samples: the most training samples.

    Returns:
        The result.
    """
    whole = next(iter(objectives_of(target).values()))
    objective = whole.subset(range(min(samples, len(whole.samples))))
    table = pd.DataFrame([row for name in RULES for row in _residuals(objective, name, rates)])
    orders = fitted_orders(table, ("rule", "training"), THEOREM)
    off = {which: float((orders[which] - theorem).abs().max()) for which, theorem in THEOREM.items()}
    evidence = f"over {rates} rates of {len(RULES)} rules, full batch and mini-batches, " + "; ".join(
        f"{which}: fitted {orders[which].min():.2f} to {orders[which].max():.2f} (theorem {theorem})"
        for which, theorem in THEOREM.items()
    )
    claim = (
        "What order 1 leaves of the task vector falls with the second power of the learning rate, what order 2 and the "
        f"quadratic model leave with the third, for every linear rule and in recorded batch order, on {target}."
    )
    held = all(one <= SLACK for one in off.values())
    return AnalysisResult(claim, outcome_of(held), evidence, orders, partial(_draw, table, target))


def _residuals(objective: Objective, name: str, count: int) -> Iterator[dict[str, object]]:
    """What the predictions of one rule leave of task vectors at falling rates, full batch and in mini-batches."""
    # As many batches as steps, so that one schedule serves both; the last one is short.
    size = -(-len(objective.samples) // STEPS) + 1
    batches = list(batches_of(len(objective.samples), size, seed=0, epoch=0))
    rates = falling_rates([objective], RULES[name], STEPS, relative_error=LARGEST_ERROR, count=count)
    scale = norm(_trained(objective, RULES[name](rates[0]), None))
    for halving, rate in enumerate(rates):
        rule = RULES[name](rate)
        made = predict(objective, rule, STEPS)
        *_, cut = predict_batches(objective, rule, [batches], quadratic=True)
        for training, found, order in ((FULL, made, None), (BATCHES, cut, batches)):
            tau = _trained(objective, rule, order)
            predicted = dict(zip(THEOREM, (found.order1, found.order2, found.quadratic), strict=True))
            known = {which: vector for which, vector in predicted.items() if vector is not None}
            residuals = {which: norm(difference(tau, vector)) / scale for which, vector in known.items()}
            yield {"rule": name, "training": training, "lr": 1 / 2**halving, **residuals}


def _draw(table: pd.DataFrame, target: str, ax: Axes) -> None:
    long = table[table["training"] == FULL].melt(["rule", "lr"], list(THEOREM))
    shared = {"units": "rule", "estimator": None, "linewidth": 0.9, "markersize": 4}
    draw_falling(ax, long, {"order 1": 2, "quadratic": 3}, **shared)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="learning rate / largest", ylabel="residual / task vector at the largest")
    ax.set_title(f"What predictions leave: {len(RULES)} update rules, {STEPS} epochs, {target}")
    sns.move_legend(ax, "upper left", title=None, frameon=False)


def _trained(objective: Objective, rule: LinearRule, batches: Sequence[torch.Tensor] | None) -> Weights:
    """A task vector by `torch.optim` (decoupled decay, which SGD lacks, by hand before each step)."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in objective.initial.items()}
    decay = rule.decoupled_decay
    plain = rule.without_decay() if decay else rule
    optimizer = plain.make_optimizer(list(theta.values()))
    for step in range(STEPS):
        here = objective if batches is None else batch_view(objective, batches[step])
        gradient = here.gradient(theta)
        for name, tensor in theta.items():
            tensor.grad = gradient[name]
            tensor.data.mul_(1 - rule.rate(step) * decay)
        plain.set_rate(optimizer, step)
        optimizer.step()
    return combination((1.0, theta), (-1.0, objective.initial))
