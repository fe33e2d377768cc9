"""Recipes are checked when they are made, and several share one pretrained model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import CLASSES, FEATURES, REFUSED, MustFail, N, mlp
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import OPTIMIZERS, Recipe, accuracy, check_recipes
from tvgrad.update_rules.rules import RULES


def parts(**rest: Any) -> dict[str, Any]:
    x, y = torch.randn(N, FEATURES), torch.arange(N) % CLASSES
    return {"model": mlp().float(), "loss": F.cross_entropy, "train": (x, y)} | rest


def test_defaults() -> None:
    recipe = Recipe(**parts())
    assert (recipe.name, recipe.optimizer, recipe.epochs, recipe.batch_size, recipe.test) == (
        "sequential",
        "gd",
        5,
        None,
        None,
    )
    assert len(recipe.train) == N
    batch = recipe.train.batch(0, N)
    assert recipe.batch_loss()(batch) == F.cross_entropy(recipe.model(batch[0]), batch[1])
    other = copy.deepcopy(recipe.model)
    assert recipe.batch_loss(other).model is other


def test_numbers_of_numpy_are_numbers() -> None:
    recipe = Recipe(**parts(lr=np.float32(0.5), epochs=np.int64(3), batch_size=np.int32(2)))
    assert (recipe.lr, recipe.epochs, recipe.batch_size) == (0.5, 3, 2)
    assert [type(x) for x in (recipe.lr, recipe.epochs, recipe.batch_size)] == [float, int, int]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": F.relu}, "must be an nn.Module, not function"),
        ({"loss": "cross_entropy"}, "must be callable.*not str"),
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs': choose from gd, sgd"),
        ({"lr": 0.0}, "lr must be a positive number, not 0.0"),
        ({"lr": float("nan")}, "lr must be a positive number, not nan"),
        ({"lr": float("inf")}, "lr must be a positive number"),
        ({"lr": True}, "lr must be a positive number, not True"),
        ({"lr": "0.1"}, "lr must be a positive number, not '0.1'"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"epochs": 2.0}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"batch_size": -1}, "batch_size must be a whole number"),
        ({"name": "a/b"}, "cannot be called 'a/b'"),
        ({"name": ".."}, "cannot be called"),
        ({"name": ".hidden"}, "cannot be called"),
        ({"name": "a\0b"}, "cannot be called"),
        ({"model": nn.Linear(FEATURES, CLASSES).requires_grad_(False)}, "no trainable parameters"),
        ({"test": (torch.zeros(2, 3), torch.zeros(3))}, "different lengths"),
        ({"allow": ["nothing"]}, "nothing called 'nothing' can be allowed"),
    ],
)
def test_wrong_parts_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        Recipe(**parts(**wrong))


NOT_FOR_RECIPES = {"unknown device", "no device", "meta device", "absent device", "chunk size"}


@pytest.mark.parametrize(
    "wanted", [w for w in REFUSED if w.name not in NOT_FOR_RECIPES], ids=lambda wanted: wanted.name
)
def test_what_an_objective_refuses_a_recipe_refuses(wanted: MustFail) -> None:
    given = wanted.make()
    given["train"] = given.pop("data")
    with pytest.raises(wanted.error, match=wanted.cause):
        Recipe(**given)


def test_an_objective_is_on_a_copy_of_the_model_in_the_type_asked_for() -> None:
    recipe = Recipe(**parts(allow=("dropout",)))
    plain, wide = recipe.objective(), recipe.objective(torch.float64, "cpu", chunk_size=2)
    assert plain.model is not recipe.model
    assert plain.allowed == ("dropout",)
    assert {tensor.dtype for tensor in plain.initial.values()} == {next(recipe.model.parameters()).dtype}
    assert {tensor.dtype for tensor in wide.gradient().values()} == {torch.float64}
    assert wide.chunk_size == 2
    some = recipe.objective(samples=recipe.train.subset([0, 2]), allow=())
    assert (len(some.samples), some.allowed) == (2, ())
    given = copy.deepcopy(recipe.model)
    assert recipe.objective(model=given, device="cpu").model is given


def test_accuracy() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [5.0, 1.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)


def test_recipes_share_one_model() -> None:
    one = Recipe(**parts(name="one"))
    two = Recipe(**parts(name="two", model=copy.deepcopy(one.model)))
    assert check_recipes(one, "x.py") == [one]
    assert check_recipes((one, two), "x.py") == [one, two]


def test_tasks_that_do_not_fit_together() -> None:
    one = Recipe(**parts(name="one"))

    def other(change: Any) -> Recipe:
        return Recipe(**parts(name="two", model=change))

    moved, small, frozen = copy.deepcopy(one.model), nn.Linear(FEATURES, CLASSES), copy.deepcopy(one.model)
    with torch.no_grad():
        moved[4].bias[0] += 1e-6
    frozen[0].weight.requires_grad_(False)
    for recipes, words in [
        (None, "returned NoneType: return a tvgrad.Recipe"),
        ([], "returned an empty list"),
        ("one", "returned str"),
        ([one, 3], "returned list"),
        ([one, one], "two tasks called 'one'"),
        ([one, other(moved)], "'one' and 'two' of x.py do not share one pretrained model: their values differ"),
        ([one, other(small)], "is in one and not in the other"),
        ([one, other(frozen)], "'0.weight' is in one and not in the other"),
    ]:
        with pytest.raises(TvgradError, match=words):
            check_recipes(recipes, "x.py")
    double = Recipe(
        **parts(
            name="two",
            model=copy.deepcopy(one.model).double(),
            train=(torch.randn(N, FEATURES).double(), torch.zeros(N).long()),
        )
    )
    with pytest.raises(TvgradError, match="dtypes differ"):
        check_recipes([one, double], "x.py")


def test_optimizers_are_those_of_the_contract() -> None:
    assert tuple(RULES) == OPTIMIZERS
