"""The digits tasks: what they are made of, one pretrained model, and the cache of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.digits import digits

SIZES = {"low": 5, "high": 5, "parity": 2, "rotated": 10, "inverted": 10, "permuted": 10}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in digits()}


def data(recipe: Recipe, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    samples = getattr(recipe, part)
    inputs, targets = samples.batch(0, len(samples))
    return inputs.numpy(), targets.numpy()


def original(part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """The same samples, from scikit-learn and the documented split."""
    bunch = load_digits()
    order = np.random.default_rng(20250822).permutation(len(bunch.data))
    chosen = order[599 : 599 + 898] if part == "train" else order[599 + 898 :]
    return (bunch.data[chosen] / 16).astype(np.float32), bunch.target[chosen]


def test_six_tasks_with_frozen_heads_of_their_own(tasks: dict[str, Recipe]) -> None:
    assert list(tasks) == list(SIZES)
    for name, recipe in tasks.items():
        assert recipe.model.head.out_features == SIZES[name]
        assert not any(parameter.requires_grad for parameter in recipe.model.head.parameters())
        assert sum(p.numel() for p in recipe.model.parameters() if p.requires_grad) == 3136
        assert {p.dtype for p in recipe.model.parameters()} == {torch.float32}
        assert recipe.about
        assert recipe.optimizer == "gd"


def test_all_tasks_share_one_encoder(tasks: dict[str, Recipe]) -> None:
    first, *others = (recipe.model.encoder.state_dict() for recipe in tasks.values())
    for other in others:
        assert all(torch.equal(tensor, other[name]) for name, tensor in first.items())
    tensors = [recipe.model.encoder[0].weight.data_ptr() for recipe in tasks.values()]
    assert len(set(tensors)) == len(tensors)


@pytest.mark.parametrize("part", ["train", "test"])
def test_the_data_is_what_the_names_say(tasks: dict[str, Recipe], part: str) -> None:
    images, labels = original(part)
    for name, kept, target in (("low", labels < 5, labels), ("high", labels >= 5, labels - 5)):
        inputs, targets = data(tasks[name], part)
        assert np.array_equal(inputs, images[kept])
        assert np.array_equal(targets, target[kept])
    inputs, targets = data(tasks["parity"], part)
    assert np.array_equal(targets, labels % 2)
    assert np.array_equal(inputs, images)
    turned, targets = data(tasks["rotated"], part)
    assert np.array_equal(turned.reshape(-1, 8, 8), np.rot90(images.reshape(-1, 8, 8), axes=(1, 2)))
    assert np.array_equal(targets, labels)
    assert np.array_equal(data(tasks["inverted"], part)[0], 1 - images)
    shuffled = data(tasks["permuted"], part)[0]
    assert not np.array_equal(shuffled, images)
    assert np.array_equal(np.sort(shuffled), np.sort(images))
    assert len({tuple(np.argsort(row, kind="stable")) for row in shuffled}) > 1


def test_training_and_test_samples_do_not_meet() -> None:
    train, test = original("train")[0], original("test")[0]
    assert (len(train), len(test)) == (898, 300)


def test_there_is_something_left_to_learn(tasks: dict[str, Recipe]) -> None:
    """Pretrained features are useful and not perfect, and a few epochs lower the loss."""
    for recipe in tasks.values():
        inputs, targets = recipe.train.batch(0, len(recipe.train))
        model = recipe.model
        before = nn.functional.cross_entropy(model(inputs), targets).item()
        assert 0.01 < before < np.log(10)
        parameters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), parameters)
        moved = {
            name: p - recipe.lr * g
            for (name, p), g in zip(
                ((n, p) for n, p in model.named_parameters() if p.requires_grad), gradients, strict=True
            )
        }
        after = nn.functional.cross_entropy(torch.func.functional_call(model, moved, (inputs,)), targets).item()
        assert after < before


def cached() -> Path:
    (found,) = Path(os.environ["TVGRAD_CACHE"]).glob("digits*.safetensors")
    return found


@pytest.mark.parametrize("damage", ["missing", "truncated", "another model"])
def test_the_same_bits_with_any_cache(tasks: dict[str, Recipe], damage: str) -> None:
    from tvgrad.files.writing import write_tensors

    path = cached()
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[:-9])
    else:
        write_tensors({"0.weight": torch.zeros(3)}, path)
    again = digits()
    for recipe in again:
        state = tasks[recipe.name].model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in recipe.model.state_dict().items())
        assert recipe.train.fingerprint() == tasks[recipe.name].train.fingerprint()
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path / "file" / "cache"))
    assert len(digits()) == 6


def test_the_callers_random_numbers_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path))
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    digits()
    assert torch.equal(torch.rand(3), expected)
