"""Forecast: the task vector of any update rule, told from the pretrained weights before training.

The rule is followed on the quadratic model of the loss (`tvgrad.theory.quadratic_model`): its own steps, as many as
training will take, each with the model's gradient in the place of a mini-batch's. Sampling noise enters Adam's v, where
it decides how long a step is, and nowhere else. One gradient at the forecast's end then shows what the model misses,
which is put back as a term that grows with the square of the way gone; where the miss is larger than the gradient
itself, the model is left as it is, and the forecast says so. It is an estimate, for no particular order of
mini-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import positive_integer
from tvgrad.results import Shown
from tvgrad.theory.adam_path import AdamPath
from tvgrad.theory.quadratic_model import QuadraticModel, full_batch, quadratic_model
from tvgrad.update_rules.base import UpdateRule
from tvgrad.update_rules.given import Given, as_rule
from tvgrad.update_rules.rules import Adam
from tvgrad.update_rules.trajectory import Trajectory
from tvgrad.vectors.algebra import add_scaled, difference, to_float64
from tvgrad.vectors.parameters import Weights, inner_product, norm

WORTHLESS = 1.0
"""Miss of the model's gradient at the forecast's end, over the first gradient, from which on it is not corrected."""

STRETCH = 2.0
"""Factor of length from which on a corrected forecast is not believed."""

GradientAt = Callable[[Weights], Weights]


@dataclass(frozen=True, repr=False)
class Forecast(Shown):
    """A task vector before training; an estimate.

    Attributes:
        task_vector: name -> float64 tensor.
        model: the quadratic model that it was made on.
        steps: how many steps the rule takes.
        relative_second_order_error: `||tau - tau_1|| / ||tau_1||`, tau_1 being the rule followed on the gradient at
            theta_0 alone: how far training is from the regime in which the task vector is the gradient.
        miss: `||g(theta_0 + tau) - model's|| / ||g_0||` at the end of the uncorrected forecast.
        corrected: whether the miss was taken into account.
    """

    task_vector: Weights
    model: QuadraticModel
    steps: int
    relative_second_order_error: float
    miss: float
    corrected: bool


def forecast(objective: Objective, rule: Given, epochs: int, batch_size: int | None = None) -> Forecast:
    """Tell the task vector of training from the pretrained weights: two gradients and two Hessian-vector products.

    Args:
        objective: model, loss and data of the task.
        rule: the update rule, or an optimizer that follows one.
        epochs: k.
        batch_size: samples in a mini-batch; None is the full batch.

    Returns:
        The forecast.

    Raises:
        TvgradError: the schedule is too short, or the gradient or a product is not finite.

    Example:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.forecast import forecast
        >>> model, data = torch.nn.Linear(3, 1, bias=False).double(), (torch.eye(3).double(), torch.ones(3, 1).double())
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), data)
        >>> told = forecast(objective, tvgrad.update_rules.GD(0.1), epochs=5)
        >>> weights = objective.initial
        >>> for _ in range(5):
        ...     weights = {"weight": weights["weight"] - 0.1 * objective.gradient(weights)["weight"]}
        >>> bool(torch.allclose(told.task_vector["weight"], weights["weight"] - objective.initial["weight"]))
        True
    """
    rule = as_rule(rule)
    positive_integer(epochs, "epochs")
    samples = len(objective.samples)
    if full_batch(rule, batch_size, samples):
        batch_size = None
    steps = epochs * (1 if batch_size is None else math.ceil(samples / batch_size))
    rule.rates(steps)  # before any work, whether the schedule is long enough
    model = quadratic_model(objective, rule, batch_size)
    start = to_float64(objective.initial, objective.home)
    first = _followed(rule, start, steps, model, lambda moved: model.gradient)
    plain = _followed(rule, start, steps, model, model.gradient_at)
    if not all(torch.isfinite(tensor).all() for tensor in (*plain.values(), *first.values())):
        raise TvgradError(
            "the quadratic model diverges at these weights and this rate, or its gradient is not finite: lower the "
            "rate or the epochs, or check model, loss and data"
        )
    reached = {name: (start[name] + plain[name]).to(tensor.dtype) for name, tensor in objective.initial.items()}
    missed = difference(to_float64(objective.gradient(reached), objective.home), model.gradient_at(plain))
    length, size = norm(model.gradient), inner_product(plain, plain)
    miss = norm(missed) / length if length else 0.0
    vector, corrected = plain, False
    if 0 < miss <= WORTHLESS and size > 0:

        def with_miss(moved: Weights) -> Weights:
            gradient = model.gradient_at(moved)
            add_scaled(gradient, missed, max(0.0, inner_product(plain, moved) / size) ** 2)
            return gradient

        better = _followed(rule, start, steps, model, with_miss)
        if 1 / STRETCH < norm(better) / norm(plain) < STRETCH:
            vector, corrected = better, True
    straight = norm(first)
    error = norm(difference(vector, first)) / straight if straight else 0.0
    return Forecast(vector, model, steps, error, miss, corrected)


def _followed(rule: UpdateRule, start: Weights, steps: int, model: QuadraticModel, gradient_at: GradientAt) -> Weights:
    """The rule's steps on a gradient that is a function of the displacement."""
    if isinstance(rule, Adam):
        adam = AdamPath(rule, start, model.variance)
        for _ in range(steps):
            adam.step(gradient_at(adam.moved))
        return adam.moved
    path = Trajectory(rule, start)
    for _ in range(steps):
        path.step(gradient_at(path.task_vector))
    return path.task_vector
