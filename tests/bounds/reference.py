"""The reference case: three digits tasks on one pretrained 64-32-32-10 tanh network, all layers trained, float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tvgrad.recipes.catalogue import load_recipes

TASKS = ("rotated", "inverted", "permuted")


@dataclass
class Task:
    """One task of the reference case."""

    name: str
    model: nn.Sequential
    inputs: torch.Tensor
    targets: torch.Tensor

    def gradient(self, flat: torch.Tensor) -> torch.Tensor:
        """The full-batch gradient by autograd."""
        leaf = flat.clone().requires_grad_()
        state, begin = {}, 0
        for name, parameter in self.model.named_parameters():
            state[name] = leaf[begin : begin + parameter.numel()].reshape(parameter.shape)
            begin += parameter.numel()
        logits = torch.func.functional_call(self.model, state, (self.inputs,))
        (found,) = torch.autograd.grad(nn.functional.cross_entropy(logits, self.targets), leaf)
        return found

    @property
    def start(self) -> torch.Tensor:
        """theta_0."""
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@cache
def reference_tasks() -> tuple[Task, ...]:
    """The tasks; their common head is a linear classifier of the encoder's features on all three together."""
    recipes = load_recipes("digits", TASKS)
    data = []
    for recipe in recipes:
        inputs, targets = recipe.train.batch(0, len(recipe.train))
        data.append((inputs.double(), targets))
    encoder = copy.deepcopy(recipes[0].model.encoder).double()
    with torch.no_grad():
        features = encoder(torch.cat([x for x, _ in data])).numpy()
    fitted = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(features, torch.cat([y for _, y in data]).numpy())
    head = nn.Linear(32, 10).double()
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.coef_))
        head.bias.copy_(torch.from_numpy(fitted.intercept_))
    model = nn.Sequential(encoder, head).requires_grad_(True)
    return tuple(Task(recipe.name, model, *pair) for recipe, pair in zip(recipes, data, strict=True))


def true_error(task: Task, rate: float, epochs: int) -> float:
    """The error of the first-order prediction, from increments that are kept apart from the weights.

    tau + eta k g_0 is summed as -eta (g_e - g_0), so that neither the weights' size nor eta k g_0 hides it.
    """
    start = task.start
    first = task.gradient(start)
    moved, error = torch.zeros_like(start), torch.zeros_like(start)
    for epoch in range(epochs):
        difference = task.gradient(start + moved) - first if epoch else torch.zeros_like(first)
        error -= rate * difference
        moved = -(epoch + 1) * rate * first + error
    return float(error.norm())
