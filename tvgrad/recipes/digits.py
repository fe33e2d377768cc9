"""Six tasks on scikit-learn's digits that share one small encoder.

The data set has 1797 images of 8x8 pixels. A third of them is the base task (ten digits), on which the encoder is
pretrained; the rest is split into training and test samples, from which each task is derived:

    low       digits 0-4, five classes
    high      digits 5-9, five classes
    parity    odd or even, two classes
    rotated   ten digits, images turned by a quarter
    inverted  ten digits, ink and paper exchanged
    permuted  ten digits, pixels shuffled by one fixed permutation

Every task tunes the same encoder (64-32-32, tanh). Its head is a linear classifier fitted to the pretrained encoder's
features and frozen, so that task vectors are comparable and tuned encoders can be merged.

This file is plain Python: copy it as the start of a recipe of your own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.pretraining import cached_encoder, classification, fitted_head

SEED = 20250822
PRETRAINING_STEPS = 60
BASE_SAMPLES, TRAIN_SAMPLES = 599, 898  # and 300 for testing

Task = tuple[str, Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor], str]


def digits() -> list[Recipe]:
    """Make the six tasks.

    Returns:
        One recipe a task; all share one pretrained encoder.
    """
    data = load_digits()
    images, labels = torch.from_numpy(data.data / 16.0), torch.from_numpy(data.target.astype(np.int64))
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(images)))
    base, train, test = order.split([BASE_SAMPLES, TRAIN_SAMPLES, len(order) - BASE_SAMPLES - TRAIN_SAMPLES])
    encoder = pretrained_encoder(images[base], labels[base])
    recipes = []
    for name, change, relabel, about in _tasks():
        parts = []
        for chosen in (train, test):
            targets = relabel(labels[chosen])
            kept = targets >= 0
            parts.append((change(images[chosen])[kept].float(), targets[kept]))
        with torch.no_grad():
            head = fitted_head(encoder(parts[0][0].double()), parts[0][1], strength=0.01)
        layers = {"encoder": encoder, "head": head}
        recipes.append(classification(layers, *parts, name=name, lr=0.1, about=about))
    return recipes


def _tasks() -> list[Task]:
    pixels = torch.from_numpy(np.random.default_rng(SEED + 1).permutation(64))
    return [
        ("low", lambda x: x, lambda y: torch.where(y < 5, y, -1), "digits 0-4 of load_digits"),
        ("high", lambda x: x, lambda y: torch.where(y >= 5, y - 5, -1), "digits 5-9 of load_digits"),
        ("parity", lambda x: x, lambda y: y % 2, "odd or even, from load_digits"),
        ("rotated", _quarter_turn, lambda y: y, "load_digits turned by a quarter"),
        ("inverted", lambda x: 1 - x, lambda y: y, "load_digits with ink and paper exchanged"),
        ("permuted", lambda x: x[:, pixels], lambda y: y, "load_digits with shuffled pixels"),
    ]


def _quarter_turn(images: torch.Tensor) -> torch.Tensor:
    return images.reshape(-1, 8, 8).rot90(1, (1, 2)).reshape(-1, 64)


def _encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()).double()


def pretrained_encoder(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Pretrain the encoder on the base task, or read it from the cache.

    Args:
        images: base samples, shape (n, 64), float64 in [0, 1].
        labels: digits, shape (n,).

    Returns:
        The encoder in float64.
    """

    def pretrain(encoder: nn.Module) -> None:
        head = nn.Linear(32, 10).double()
        optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(PRETRAINING_STEPS):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(encoder(images)), labels).backward()
            optimizer.step()

    return cached_encoder(f"digits-{PRETRAINING_STEPS}-steps", _encoder, pretrain, seed=SEED)
