"""Six vision tasks on real data, with a small MLP or a small vision transformer as the shared encoder.

The encoder is pretrained on the base samples of all six data sets at once (one classifier over all their classes).
Each task then tunes it with a frozen linear head on the pretrained features: fitted to the task's training samples, or
made of the class means of its base samples, which is a weaker start, as a zero-shot head is, and leaves tuning
something to gain. See `suite_data` for the data.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.pretraining import (
    PASSES,
    cached_encoder,
    class_means,
    classification,
    fitted_head,
    pretrain_on_classes,
)
from tvgrad.recipes.suite_data import DATA_SETS, Split, load

SEED = 20250905
PIXELS = 28
LR = 2e-3
"""One rate for all tasks, so that the sum of their first task vectors is a step of joint training. Full-batch descent
lowers the loss of every task in each of twenty epochs at this rate; at 5e-3 the loss of satellite rises on the way."""


def suite() -> list[Recipe]:
    """Make the six tasks with the MLP (784-96-96, GELU, 84,672 parameters).

    Returns:
        One recipe a data set.
    """
    return _recipes("suite-mlp", mlp_encoder)


def suite_vit() -> list[Recipe]:
    """Make the six tasks with a vision transformer (16 patches, width 48, 3 blocks, 60,144 parameters).

    Returns:
        One recipe a data set.
    """
    return _recipes("suite-vit", VisionTransformer)


def suite_means() -> list[Recipe]:
    """Make the six tasks with the MLP of `suite` and heads of class means.

    Returns:
        One recipe a data set.
    """
    return _recipes("suite-mlp", mlp_encoder, fitted=False)


def suite_vit_means() -> list[Recipe]:
    """Make the six tasks with the transformer of `suite_vit` and heads of class means.

    Returns:
        One recipe a data set.
    """
    return _recipes("suite-vit", VisionTransformer, fitted=False)


def mlp_encoder() -> nn.Module:
    """Make the encoder of `suite` with random weights.

    Returns:
        From images (n, 1, 28, 28) to features (n, 96).
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(PIXELS * PIXELS, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU())


class TransformerBlock(nn.Module):
    """A pre-norm transformer block: attention, then a two-layer MLP."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the block.

        Args:
            width: of a token.
            heads: attention heads.
        """
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mix the tokens.

        Args:
            tokens: shape (n, tokens, width).

        Returns:
            The same shape.
        """
        n, length, width = tokens.shape
        mixed = self.qkv(self.norm1(tokens)).reshape(n, length, 3, self.heads, width // self.heads)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project(heads.transpose(1, 2).reshape(n, length, width))
        return tokens + torch.as_tensor(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Patches of 7x7, learned positions, three blocks, and the mean over tokens as the features."""

    WIDTH, HEADS, DEPTH, PATCH = 48, 4, 3, 7

    def __init__(self, channels: int = 1) -> None:
        """Make the encoder with random weights.

        Args:
            channels: of an image.
        """
        super().__init__()
        count = (PIXELS // self.PATCH) ** 2
        self.channels = channels
        self.embed = nn.Linear(channels * self.PATCH**2, self.WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(count, self.WIDTH))
        self.blocks = nn.Sequential(*(TransformerBlock(self.WIDTH, self.HEADS) for _ in range(self.DEPTH)))
        self.norm = nn.LayerNorm(self.WIDTH)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            images: shape (n, channels, 28, 28).

        Returns:
            Features, shape (n, 48).
        """
        side = PIXELS // self.PATCH
        patches = images.reshape(-1, self.channels, side, self.PATCH, side, self.PATCH).permute(0, 2, 4, 1, 3, 5)
        tokens = self.embed(patches.reshape(-1, side * side, self.channels * self.PATCH**2)) + self.positions
        features: torch.Tensor = self.norm(self.blocks(tokens)).mean(dim=1)
        return features


def _recipes(key: str, build: Callable[[], nn.Module], *, fitted: bool = True) -> list[Recipe]:
    splits = {name: load(name) for name in DATA_SETS}
    encoder = cached_encoder(f"{key}-{PASSES}-passes", build, lambda encoder: _pretrain(encoder, splits), seed=SEED)
    recipes = []
    for name, split in splits.items():
        images, labels = split.train if fitted else split.base
        with torch.no_grad():
            features = encoder(images)
        head = fitted_head(features, labels) if fitted else class_means(features, labels, split.classes)
        layers, about = {"encoder": encoder, "head": head}, DATA_SETS[name].about
        recipes.append(classification(layers, split.train, split.test, name=name, lr=LR, about=about))
    return recipes


def _pretrain(encoder: nn.Module, splits: dict[str, Split]) -> None:
    """Adam on the base samples of all data sets, over the union of their classes."""
    images = torch.cat([split.base[0] for split in splits.values()])
    *offsets, total = accumulate((split.classes for split in splits.values()), initial=0)
    labels = torch.cat([split.base[1] + offset for split, offset in zip(splits.values(), offsets, strict=True)])
    pretrain_on_classes(encoder, images, labels, total)
