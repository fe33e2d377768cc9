r"""The tangent model: a network that is linear in its weights, $f_0(x) + J(x) (\theta - \theta_0)$ (arXiv 2305.12827).

Tuned in it, weights are tuned in the tangent space of the pretrained ones. One product with the Jacobian in forward
mode gives its outputs; its gradient is one backward pass through that product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.objective import Objective
from tvgrad.problem.outputs import rows_of
from tvgrad.problem.samples import Batch
from tvgrad.vectors.algebra import difference
from tvgrad.vectors.parameters import Weights, trainable_parameters

PREFIX = "model."


class TangentForward:
    """A `forward` for recipes and objectives, under which a model's outputs are those of its tangent model.

    Names and shapes of the weights stay the model's. The point of tangency is where the model is when this is made.

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.tangent_space import TangentForward
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Tanh()).double()
        >>> torch.nn.init.zeros_(model[0].weight) is not None  # at 0, where tanh is the identity
        True
        >>> data = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), data, forward=TangentForward(model))
        >>> objective.outputs({"0.weight": torch.full((1, 1), 5.0)}).tolist()
        [[5.0]]
    """

    def __init__(self, model: nn.Module, forward: Callable[[nn.Module, Batch], Any] | None = None) -> None:
        """Take the point of tangency.

        Args:
            model: at the pretrained weights; it is copied.
            forward: callable(model, batch) -> output, of the model itself; by default the model is called.
        """
        self._frozen = BatchLoss(copy.deepcopy(model).requires_grad_(False), None, forward)
        names = trainable_parameters(model)
        self._start = {name: part for name, part in self._frozen.model.named_parameters() if name in names}

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        r"""Evaluate the tangent model.

        Args:
            model: has the weights in question.
            batch: of its inputs.

        Returns:
            $f_0 + J (\theta - \theta_0)$, one row a sample.
        """
        now = dict(model.named_parameters())
        start = {name: part.to(now[name]) for name, part in self._start.items()}
        change = {name: now[name] - part for name, part in start.items()}

        def outputs(point: Weights) -> torch.Tensor:
            weights = {PREFIX + name: tensor for name, tensor in point.items()}
            made = functional_call(self._frozen, weights, (batch,), {"of_output": lambda output: output})
            return rows_of(made, len(made) if isinstance(made, torch.Tensor) else len(made.logits))

        value, slope, *_ = torch.func.jvp(outputs, (start,), (change,))
        return torch.as_tensor(value + slope)


def tangent_outputs(objective: Objective, at: Mapping[str, torch.Tensor]) -> torch.Tensor:
    r"""Evaluate the tangent model of an objective over its data.

    Args:
        objective: at the point of tangency, its initial weights.
        at: weights.

    Returns:
        $f_0(x) + J(x) (\theta - \theta_0)$, shape (samples, ...).

    Examples:
        >>> import torch, tvgrad
        >>> from tvgrad.theory.tangent_space import tangent_outputs
        >>> model, data = torch.nn.Linear(2, 1, bias=False).double(), (torch.eye(2).double(), torch.ones(2, 1).double())
        >>> objective = tvgrad.Objective(model, torch.nn.MSELoss(), data)
        >>> tangent_outputs(objective, {"weight": torch.tensor([[3.0, 5.0]])}).round(decimals=6).tolist()
        [[3.0], [5.0]]
    """
    slope = objective.jvp(difference(at, objective.initial))
    return objective.outputs() + slope
