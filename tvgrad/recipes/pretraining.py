"""What the built-in recipes share: a cache of pretrained encoders, frozen heads on their features, and the recipe."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tvgrad.errors import TvgradError
from tvgrad.files.tensors import TensorFile
from tvgrad.files.user_cache import cache_folder
from tvgrad.files.writing import write_tensors
from tvgrad.problem.recipe import Recipe, accuracy

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]

BATCH, PASSES = 64, 12  # of pretraining on classes
SHARPNESS = 1.0  # of a head of class means


def cached_encoder(
    key: str, build: Callable[[], nn.Module], pretrain: Callable[[nn.Module], None], *, seed: int
) -> nn.Module:
    """Read a pretrained encoder from the cache, or pretrain it and keep it there.

    Args:
        key: names everything that the weights depend on, besides the version of torch.
        build: makes the encoder; random numbers are seeded before.
        pretrain: trains it in place.
        seed: for the start and for `pretrain`; the caller's random numbers are left alone.

    Returns:
        The pretrained encoder.
    """
    path = cache_folder() / f"{key}-{seed}-torch-{torch.__version__}.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build()
        try:
            with TensorFile(path) as file:
                encoder.load_state_dict(file.read_all())
            return encoder
        except (TvgradError, RuntimeError):
            pretrain(encoder)  # no cache yet, or a damaged one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(encoder.state_dict(), path)
    except (TvgradError, OSError):
        pass  # a cache that cannot be written only costs the time to pretrain again
    return encoder


def pretrain_on_classes(
    encoder: nn.Module, images: torch.Tensor, labels: torch.Tensor, classes: int, *, passes: int = PASSES
) -> None:
    """Pretrain an encoder in place, by Adam at rate 2e-3, together with a linear head that is left behind.

    Args:
        encoder: maps images to features.
        images: shape (n, ...).
        labels: class indices from 0, shape (n,).
        classes: how many there are.
        passes: over the images.
    """
    with torch.no_grad():
        width = encoder(images[:1]).shape[1]
    head = nn.Linear(width, classes)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for _ in range(passes):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(encoder(images[batch])), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def fitted_head(features: torch.Tensor, labels: torch.Tensor, strength: float = 0.1) -> nn.Linear:
    """Fit a frozen linear classifier to pretrained features, by logistic regression.

    Args:
        features: shape (n, width).
        labels: class indices from 0, shape (n,).
        strength: inverse of the ridge penalty.

    Returns:
        A float64 Linear layer that requires no gradient.
    """
    wide = features.double()
    mean, scale = wide.mean(dim=0), wide.std(dim=0).clamp(min=1e-6)
    # Features of one scale make the solver converge; the scaling is folded into the layer afterwards.
    fitted = LogisticRegression(C=strength, max_iter=2000, tol=1e-6).fit(
        ((wide - mean) / scale).numpy(), labels.numpy()
    )
    weight = torch.from_numpy(fitted.coef_) / scale
    bias = torch.from_numpy(fitted.intercept_) - weight @ mean
    if len(weight) == 1:  # two classes have one row of coefficients: half of it for each logit
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return _frozen_linear(weight, bias)


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> nn.Linear:
    """Make a frozen linear head that prefers the class whose mean feature is the nearest.

    The logits are `-SHARPNESS ||f - mu_c||^2 / (2 D)` up to a term that is the same for all classes, D the mean squared
    distance of a sample from its class's mean: a linear function of f, as a zero-shot head is. It is weaker than a
    fitted head, and leaves tuning something to do.

    Args:
        features: shape (n, width).
        labels: class indices, shape (n,), each class at least once.
        classes: how many.

    Returns:
        A float32 Linear layer that requires no gradient.
    """
    wide = features.double()
    means = torch.stack([wide[labels == label].mean(dim=0) for label in range(classes)])
    spread = (wide - means[labels]).pow(2).sum(dim=1).mean()
    centre = wide.mean(dim=0)
    weight = SHARPNESS * (means - centre) / spread  # without the centre's part, which all classes share
    return _frozen_linear(weight.float(), (-(weight * (means + centre)).sum(dim=1) / 2).float())


def _frozen_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    # Without initial values, which would be drawn from the caller's random numbers.
    head: nn.Linear = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), dtype=weight.dtype)
    head.load_state_dict({"weight": weight, "bias": bias})
    return head.requires_grad_(False)


def classification(
    layers: Mapping[str, nn.Module],
    train: Pair,
    test: Pair,
    *,
    name: str,
    lr: float,
    about: str,
    optimizer: str = "gd",
    epochs: int = 10,
    batch_size: int | None = None,
) -> Recipe:
    """Make the recipe of an image classifier: cross-entropy and accuracy.

    Args:
        layers: name -> layer, from the pixels over the encoder to the head; copied, in the encoder's mode.
        train: training samples and labels.
        test: test samples and labels.
        name: the task's name.
        lr: learning rate.
        about: one line on where the task comes from.
        optimizer: by default full-batch gradient descent.
        epochs: passes over the data.
        batch_size: samples in a mini-batch; None is the full batch.

    Returns:
        The recipe, in float32.
    """
    model = copy.deepcopy(nn.Sequential(OrderedDict(layers))).float()
    return Recipe(
        model.train(layers["encoder"].training),
        nn.CrossEntropyLoss(),
        train,
        test=test,
        name=name,
        metric=accuracy,
        optimizer=optimizer,
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        about=about,
    )


def normalised(images: torch.Tensor, mean: Sequence[float], spread: Sequence[float]) -> torch.Tensor:
    """Shift and scale the channels of images.

    Args:
        images: shape (..., channels, height, width).
        mean: one number a channel, which is subtracted.
        spread: one number a channel, by which the rest is divided.

    Returns:
        The same shape.
    """
    shift, scale = (images.new_tensor(values)[:, None, None] for values in (mean, spread))
    return (images - shift) / scale
