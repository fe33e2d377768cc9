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

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.recipe import Recipe, accuracy
from tvgrad.tensor_files import TensorFile, write_tensors

__all__ = ["digits", "pretrained_encoder"]

SEED = 20250822
PRETRAINING_STEPS = 60
BASE_SAMPLES, TRAIN_SAMPLES = 599, 898  # and 300 for testing

Task = tuple[str, Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor], str]


def digits() -> list[Recipe]:
    """Make the six tasks.

    Returns:
        One recipe a task; all share one pretrained encoder.
    """
    images, labels = _images()
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
        model = nn.Sequential(OrderedDict(encoder=_copy(encoder), head=_fitted_head(encoder, *parts[0])))
        recipes.append(
            Recipe(
                model.float(),
                nn.CrossEntropyLoss(),
                train=parts[0],
                test=parts[1],
                name=name,
                metric=accuracy,
                optimizer="gd",
                lr=0.1,
                epochs=10,
                about=about,
            )
        )
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


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in [0, 1] in float64, shape (1797, 64), and labels."""
    data = load_digits()
    return torch.from_numpy(data.data / 16.0), torch.from_numpy(data.target.astype(np.int64))


def _encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()).double()


def _copy(encoder: nn.Sequential) -> nn.Sequential:
    twin = _encoder()
    twin.load_state_dict(encoder.state_dict())
    return twin


def pretrained_encoder(images: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    """Pretrain the encoder on the base task, or read it from the cache.

    Args:
        images: base samples, shape (n, 64), float64 in [0, 1].
        labels: digits, shape (n,).

    Returns:
        The encoder in float64.
    """
    encoder = _encoder()
    cache = cache_folder() / f"digits-encoder-{SEED}-{PRETRAINING_STEPS}-torch-{torch.__version__}.safetensors"
    try:
        with TensorFile(cache) as file:
            encoder.load_state_dict(file.read_all())
        return encoder
    except (TvgradError, RuntimeError):
        pass  # no cache yet, or a damaged one: pretrain again
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        encoder = _encoder()
        head = nn.Linear(32, 10).double()
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(encoder(images)), labels).backward()
        optimizer.step()
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(encoder.state_dict(), cache)
    except (TvgradError, OSError):
        pass  # a cache that cannot be written only costs the time to pretrain again
    return encoder


def cache_folder() -> Path:
    """Tell where pretrained encoders are kept.

    Returns:
        `$TVGRAD_CACHE`, or `tvgrad` in the user's cache folder.
    """
    given = os.environ.get("TVGRAD_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tvgrad"


@torch.no_grad()
def _fitted_head(encoder: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> nn.Linear:
    """A frozen linear classifier on the pretrained features, fitted by logistic regression."""
    features = encoder(images.double()).numpy()
    fitted = LogisticRegression(C=0.1, max_iter=2000, tol=1e-8).fit(features, labels.numpy())
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # two classes have one row of coefficients: half of it for each logit
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    head = nn.Linear(32, len(weight)).double()
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    return head.requires_grad_(False)
