"""Domains of digits: what is done to the images is what the names say, and one head serves all."""

from __future__ import annotations

import pytest
import torch

from tests.recipes.few_samples import few, tasks_of_few
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes import domains
from tvgrad.recipes.catalogue import BUILT_IN
from tvgrad.recipes.domains import CHANGES
from tvgrad.vectors.parameters import trainable_parameters


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Recipe]:
    made = tasks_of_few("domains", "domains", tmp_path_factory.mktemp("cache"))
    return {recipe.name: recipe for recipe in made}


def test_all_start_from_one_model_with_one_head(tasks: dict[str, Recipe]) -> None:
    assert list(tasks) == list(CHANGES) == list(BUILT_IN["domains"].tasks) == list(BUILT_IN["domains-vit"].tasks)
    first = tasks["mirrored"].model.state_dict()
    size = sum(parameter.numel() for parameter in trainable_parameters(tasks["noisy"].model).values())
    assert BUILT_IN["domains"].size.startswith(f"{size:,} parameters")
    for recipe in tasks.values():
        assert all(torch.equal(first[name], tensor) for name, tensor in recipe.model.state_dict().items())
        assert not any(name.startswith("head") for name in trainable_parameters(recipe.model))
        images, labels = recipe.train.batch(0, 200)
        assert torch.equal(labels, few("mnist").train[1])
        assert images.shape == (200, 1, 28, 28)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1


def spot(row: int, column: int) -> torch.Tensor:
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, row - 1 : row + 2, column - 1 : column + 2] = 1.0
    return image


def centre(image: torch.Tensor) -> tuple[float, float]:
    """Of the brightness, from the middle of the image."""
    place = torch.arange(28) - 13.5
    mass = image[0, 0] / image.sum()
    return float((mass.sum(1) * place).sum()), float((mass.sum(0) * place).sum())


def test_images_are_changed_as_the_names_say() -> None:
    here = spot(8, 20)  # 5.5 above the middle, 6.5 to the right
    assert centre(here) == pytest.approx((-5.5, 6.5))
    assert centre(CHANGES["mirrored"][0](here)) == pytest.approx((-5.5, -6.5))
    assert centre(CHANGES["shifted"][0](here)) == pytest.approx((-5.5 + domains.SHIFT, 6.5 + domains.SHIFT))
    row, column = centre(CHANGES["turned"][0](here))
    assert row**2 + column**2 == pytest.approx(5.5**2 + 6.5**2, rel=0.02)  # sampling between pixels
    assert row * -5.5 + column * 6.5 == pytest.approx((5.5**2 + 6.5**2) * 0.5**0.5, rel=0.02)
    shrunk = CHANGES["shrunk"][0](here)
    assert centre(shrunk) == pytest.approx((-5.5 / 1.5, 6.5 / 1.5), abs=0.3)
    assert float(shrunk.sum()) == pytest.approx(9 / 2.25, rel=0.15)
    assert CHANGES["faint"][0](here).unique().tolist() == [0.25, 0.75]
    noisy = CHANGES["noisy"][0]
    assert torch.equal(noisy(here), noisy(here))  # the same each time
    grey = torch.full((400, 1, 28, 28), 0.5)
    assert float((noisy(grey) > 0.5).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float((noisy(grey) == 1).double().mean()) == pytest.approx(0.1587, abs=0.01)  # over one standard deviation
