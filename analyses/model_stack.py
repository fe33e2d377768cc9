"""Many small models of one architecture, trained and evaluated at once by `torch.func.vmap`.

The weights of L models are tensors whose first dimension is L. Every model has data of its own, so that what becomes of
one does not depend on which others are trained beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

Stack = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class ModelStack:
    """Models of one architecture, evaluated and trained side by side."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        """Stack the weights.

        Args:
            models: at least one; all have the same shapes and the same buffers.
        """
        weights, buffers = stack_module_state(list(models))  # type: ignore[arg-type]
        self.start: Stack = {name: tensor.detach() for name, tensor in weights.items()}
        self._module = models[0]
        self._buffers = {name: tensor[0] for name, tensor in buffers.items()}

    def outputs(self, weights: Stack, *inputs: torch.Tensor, shared: bool = False) -> torch.Tensor:
        """Evaluate all models.

        Args:
            weights: tensors of shape (L, ...).
            inputs: what the module takes: the first of shape (L, ...), or the same for all models where `shared`;
                further ones are the same for all.
            shared: all models see the same first input.

        Returns:
            Shape (L, ...).
        """
        axes = (0, None if shared else 0, *[None] * (len(inputs) - 1))
        with torch.no_grad():
            return vmap(self._call, in_dims=axes)(weights, *inputs)

    def trained(
        self,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        loss: Loss,
        lr: float,
        *further: torch.Tensor,
        start: Stack | None = None,
    ) -> Stack:
        """Train all models by gradient descent on mini-batches.

        Args:
            batches: of each step, inputs of shape (L, n, ...) and targets of shape (L, n).
            loss: callable(output, target) -> mean loss of one model.
            lr: the learning rate.
            further: inputs that are the same for all models and steps.
            start: where training begins; by default at the models' own weights.

        Returns:
            The weights after the last step.
        """

        def of_one(weights: Stack, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return loss(self._call(weights, inputs, *further), targets)

        of_all = vmap(of_one)
        weights = {name: tensor.clone() for name, tensor in (self.start if start is None else start).items()}
        for inputs, targets in batches:
            leaves = {name: tensor.requires_grad_() for name, tensor in weights.items()}
            # A model's weights are in its own loss alone: the gradient of the sum is the gradients of all.
            slopes = torch.autograd.grad(of_all(leaves, inputs, targets).sum(), list(leaves.values()))
            pairs = zip(leaves.items(), slopes, strict=True)
            weights = {name: tensor.detach() - lr * slope for (name, tensor), slope in pairs}
        return weights

    def _call(self, weights: Stack, *inputs: torch.Tensor) -> torch.Tensor:
        called: torch.Tensor = functional_call(self._module, (weights, self._buffers), inputs)
        return called


def chosen(weights: Stack, models: torch.Tensor | Sequence[int] | slice) -> Stack:
    """Take some models out of a stack.

    Args:
        weights: tensors of shape (L, ...).
        models: their places.

    Returns:
        A stack of these, in the given order.
    """
    return {name: tensor[models] for name, tensor in weights.items()}


def added(base: Stack, *terms: tuple[torch.Tensor, Stack]) -> Stack:
    """Add multiples of task vectors to the weights of every model.

    Args:
        base: tensors that broadcast with shape (L, ...).
        terms: coefficients, shape (L,), each with tensors that broadcast with shape (L, ...).

    Returns:
        The sum, a stack of L models.
    """
    total = dict(base)
    for coefficients, vectors in terms:
        for name, vector in vectors.items():
            total[name] = total[name] + coefficients.view(-1, *[1] * (vector.dim() - 1)) * vector
    return total
