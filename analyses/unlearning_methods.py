"""Ways to make a language model forget a text: its task vector negated, whole or cut, and training against the text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from tvgrad.merging.magnitude_ranks import largest
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.recipe import Recipe
from tvgrad.problem.samples import Batch
from tvgrad.vectors.parameters import Weights

PREFIX = "model."
MODEL_RATE = 1.0
"""Of AdamW, in rates of the recipe."""
ASCENT_RATE = 0.3
"""The same for gradient ascent, whose loss has no lower end."""
LORA_RATE = 10.0
"""The same for the factors of an adapter, as in common use."""


@dataclass(frozen=True)
class Lesson:
    """How long and on what a model is trained.

    Attributes:
        epochs: passes over the data.
        rate: in rates of the recipe.
        seed: of the order of mini-batches.
        sign: 1 to learn, -1 to forget by gradient ascent.
    """

    epochs: int
    rate: float = MODEL_RATE
    seed: int = 0
    sign: float = 1.0


def load(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put weights into a model.

    Args:
        model: the model.
        weights: name -> tensor, for each trainable parameter.
    """
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)


def taken(model: nn.Module) -> Weights:
    """Copy a model's trainable weights.

    Args:
        model: the model.

    Returns:
        Name -> tensor.
    """
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def batches(recipes: Sequence[Recipe], generator: torch.Generator) -> Iterator[tuple[Recipe, Batch]]:
    """Go once through the data of tasks, in mini-batches of one task each, in random order.

    Args:
        recipes: the tasks.
        generator: of the order.

    Yields:
        The task and a mini-batch of it.
    """
    cut = []
    for recipe in recipes:
        order = torch.randperm(len(recipe.train), generator=generator)
        cut += [(recipe, part) for part in order.split(recipe.batch_size or len(order))]
    for place in torch.randperm(len(cut), generator=generator).tolist():
        recipe, part = cut[place]
        yield recipe, recipe.train.subset(part).batch(0, len(part))


def train(model: nn.Module, recipes: Sequence[Recipe], lesson: Lesson) -> Iterator[int]:
    """Train a model in place by AdamW without decay.

    Args:
        model: with the weights to begin from.
        recipes: tasks, whose losses are mixed batch by batch.
        lesson: how long.

    Yields:
        Epochs done, after each.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lesson.rate * recipes[0].lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(lesson.seed)
    for epoch in range(1, lesson.epochs + 1):
        for recipe, batch in batches(recipes, generator):
            optimizer.zero_grad(set_to_none=True)
            (lesson.sign * recipe.batch_loss(model)(batch)).backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield epoch


def lora_vector(model: nn.Module, recipe: Recipe, rank: int, lesson: Lesson) -> Weights:
    """Train LoRA factors of every linear layer's matrix from the model's weights, and return their change.

    Args:
        model: with the weights to begin from; it is left as it is.
        recipe: the task.
        rank: of the factors.
        lesson: how long.

    Returns:
        Name -> `B A` for the adapted matrices, 0 for the other weights.
    """
    generator = torch.Generator().manual_seed(lesson.seed)
    start = taken(model)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = [name for name in start if name in linear]
    first = {
        name: (torch.randn(rank, start[name].shape[1], generator=generator) / rank**0.5).requires_grad_()
        for name in chosen
    }
    second = {name: torch.zeros(start[name].shape[0], rank, requires_grad=True) for name in chosen}
    optimizer = torch.optim.AdamW(
        [*first.values(), *second.values()], lr=LORA_RATE * lesson.rate * recipe.lr, weight_decay=0.0
    )
    loss: BatchLoss = recipe.batch_loss(model)
    for _ in range(lesson.epochs):
        for _, batch in batches([recipe], generator):
            optimizer.zero_grad()
            moved = {PREFIX + name: start[name] + second[name] @ first[name] / rank**0.5 for name in chosen}
            functional_call(loss, moved, (batch,)).backward()
            optimizer.step()
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        return {
            name: second[name] @ first[name] / rank**0.5 if name in first else torch.zeros_like(tensor)
            for name, tensor in start.items()
        }


def low_rank(vector: Mapping[str, torch.Tensor], rank: int) -> Weights:
    """Cut each matrix to its largest singular values.

    Args:
        vector: name -> tensor.
        rank: how many of them; other tensors are kept whole.

    Returns:
        Name -> tensor.
    """
    cut = {}
    for name, tensor in vector.items():
        if tensor.ndim != 2 or min(tensor.shape) <= rank:
            cut[name] = tensor
            continue
        # The singular vectors of the short side are the eigenvectors of its Gram matrix.
        wide = tensor.double() if tensor.shape[0] <= tensor.shape[1] else tensor.double().T
        axes = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:]
        kept = axes @ (axes.T @ wide)
        cut[name] = (kept if tensor.shape[0] <= tensor.shape[1] else kept.T).to(tensor.dtype)
    return cut


def sparse(vector: Mapping[str, torch.Tensor], share: float) -> Weights:
    """Keep the largest entries of each tensor.

    Args:
        vector: name -> tensor.
        share: how many of them.

    Returns:
        Name -> tensor, 0 elsewhere.
    """
    return {name: tensor * largest(tensor, share) for name, tensor in vector.items()}
