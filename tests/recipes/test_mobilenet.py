"""MobileNetV2 with its ImageNet weights: the network against its definition, a photograph, and the tasks made of it."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tvgrad.errors import TvgradError
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import accuracy
from tvgrad.recipes import mobilenet
from tvgrad.recipes.catalogue import BUILT_IN, load_recipes
from tvgrad.recipes.mobilenet import MobileNetV2, imagenet_weights
from tvgrad.recipes.pretraining import SHARPNESS, class_means
from tvgrad.recipes.suite_data import package_file
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.equivalence import check_one_epoch


def missing_package():
    for package in (mobilenet.PACKAGE, "scikit-image", "mlxtend", "animal-mnist", "tensorly"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return package
    return None


needs_weights = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} carries weights or data")


@pytest.fixture(scope="module")
def weights():
    return imagenet_weights()


def published_network(weights, images):
    """The definition, layer by layer in float64, from the weights' names alone."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def layer(x, convolution, norm, stride=1, capped=True):
        kernel = w[f"{convolution}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        x = functional.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, variance, scale, shift = (
            w[f"{norm}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
        return x.clamp(0, 6) if capped else x

    x = layer(images.double(), "features.0.0", "features.0.1", stride=2)
    halved = {2, 4, 7, 14}  # the blocks that begin a stage of stride 2
    for number in range(1, 18):
        name, before, stride = f"features.{number}.conv", x, 2 if number in halved else 1
        if number == 1:
            x = layer(x, f"{name}.0.0", f"{name}.0.1")
            x = layer(x, f"{name}.1", f"{name}.2", capped=False)
        else:
            x = layer(x, f"{name}.0.0", f"{name}.0.1")
            x = layer(x, f"{name}.1.0", f"{name}.1.1", stride=stride)
            x = layer(x, f"{name}.2", f"{name}.3", capped=False)
        if x.shape == before.shape:
            x = x + before
    x = layer(x, "features.18.0", "features.18.1").mean(dim=(2, 3))
    return x @ w["classifier.1.weight"].T + w["classifier.1.bias"]


def test_the_network_has_the_published_size():
    model = MobileNetV2()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_504_872
    assert f"{sum(p.numel() for p in model.features.parameters()):,} parameters" in BUILT_IN["mobilenet"].size


@needs_weights
def test_logits_are_those_of_the_definition(weights):
    model = MobileNetV2()
    model.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = model.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images.double()), published_network(weights, images), rtol=1e-9, atol=1e-9)


@needs_weights
def test_photographs_are_recognised(weights):
    model = MobileNetV2()
    model.load_state_dict(weights)
    pixels = []
    for name in ("chelsea.png", "coffee.png"):
        with Image.open(package_file("scikit-image", "0.26.0", f"skimage/data/{name}")) as picture:
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            cut = picture.convert("RGB").crop((left, top, left + side, top + side)).resize((224, 224))
        pixels.append(torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255).permute(2, 0, 1))
    mean, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (mobilenet.MEAN, mobilenet.SPREAD))
    with torch.no_grad():
        best = model.eval()((torch.stack(pixels) - mean) / spread).argmax(dim=1)
    assert best.tolist() == [285, 967]  # Egyptian cat, espresso


def test_class_means_prefer_the_nearest_mean():
    generator = torch.Generator().manual_seed(1)
    features, labels = torch.randn(60, 5, generator=generator), torch.arange(60) % 4
    features = features + 2 * labels[:, None]
    head = class_means(features, labels, 4)
    means = np.stack([features[labels == label].double().numpy().mean(axis=0) for label in range(4)])
    distances = ((features.double().numpy()[:, None] - means) ** 2).sum(axis=2)
    within = distances[np.arange(60), labels].mean()
    truth = -SHARPNESS * distances / (2 * within)
    logits = head(features).detach().double().numpy()
    np.testing.assert_allclose(logits - logits[:, :1], truth - truth[:, :1], rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in head.parameters())


@pytest.mark.slow
@needs_weights
def test_a_task_starts_above_chance_and_one_epoch_is_exact(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(mobilenet, "DATA_SETS", {"digits": mobilenet.DATA_SETS["digits"]})
    (recipe,) = mobilenet.mobilenet()
    assert not recipe.model.training
    assert all(name.startswith("encoder.features.") for name, p in recipe.model.named_parameters() if p.requires_grad)
    recipe.train, recipe.test = recipe.train.subset(torch.arange(24)), recipe.test.subset(torch.arange(60))
    images, labels = recipe.test.batch(0, 60)
    with torch.no_grad():
        assert float(accuracy(recipe.model(images), labels)) > 0.3
    run = trace(prepare(recipe, TraceOptions(optimizer="gd", epochs=1)), tmp_path / "run")
    assert check_one_epoch(run).holds == "exact"
    objective = Objective(recipe.model, recipe.loss, recipe.train)
    gradient = objective.gradient()
    product = objective.hvp(gradient)
    assert set(product) == set(gradient)
    assert all(torch.isfinite(part).all() for part in product.values())


@needs_weights
def test_a_file_that_was_changed_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    monkeypatch.setattr(mobilenet, "package_file", lambda *_: path)
    with pytest.raises(TvgradError, match="not the published file"):
        imagenet_weights()


@pytest.mark.slow
@needs_weights
def test_all_six_tasks_share_one_encoder():
    recipes = load_recipes("mobilenet")
    assert tuple(recipe.name for recipe in recipes) == BUILT_IN["mobilenet"].tasks
