"""The quadratic model's way: an update rule followed on the second-order Taylor polynomial of the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from tvgrad.problem.objective import Objective
from tvgrad.theory.expansion import Expansion
from tvgrad.update_rules.linear import LinearRule
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import add_scaled, combination, to_float64
from tvgrad.vectors.parameters import Weights


def quadratic_path(
    objective: Objective,
    rule: LinearRule,
    epochs: int,
    expansion: Expansion,
    at: Mapping[str, torch.Tensor] | None = None,
) -> Iterator[Weights]:
    """Follow the rule on the quadratic model of the loss round theta_0.

    Args:
        objective: model, loss and data.
        rule: the update rule.
        epochs: k.
        expansion: round the same weights; its products serve the first two epochs.
        at: the pretrained weights; by default the objective's own.

    Yields:
        The quadratic model's task vector after 1 .. k epochs: one tensor a parameter, moved on in place.
    """
    gradient = to_float64(expansion.loss_gradient, objective.home)
    model = Trajectory(rule, expansion.start)
    for step in range(epochs):
        if step == 0:
            model.step(gradient)
        else:
            product = _first_product(rule, expansion) if step == 1 else objective.hvp(model.task_vector, at)
            model.step(combination((1.0, gradient), (1.0, product)))
        yield model.task_vector


def _first_product(rule: LinearRule, expansion: Expansion) -> Weights:
    """H_0 times the first displacement, without another Hessian-vector product."""
    # The first displacement is a combination of vectors whose products are known. Coupled decay's own part of the
    # expansion's product is subtracted, because the trajectory adds it.
    first = float(rule.first_order_weights(1)[1])
    product = combination((-first, expansion.hessian_gradient))
    if rule.coupled_decay:
        add_scaled(product, expansion.gradient, first * rule.coupled_decay)
    if expansion.hessian_start is not None:
        add_scaled(product, expansion.hessian_start, -float(rule.decay_shrinkages(1)[1]))
    return product
