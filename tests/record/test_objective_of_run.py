"""The objective of a run: its data is what was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.of_run import check_data, objective_of
from tvgrad.store.run import Run


def test_a_float64_objective_of_a_bfloat16_run_has_the_data_as_rounded_for_training(
    traced: Callable[..., Run], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe()
    run = traced(tmp_path / "run", recipe, dtype="bfloat16")
    wide = objective_of(run, recipe, torch.float64)
    given, trained = recipe.train.batch(0, 20)[0], wide.samples.batch(0, 20)[0]
    assert torch.equal(trained, given.bfloat16().double())
    assert not torch.equal(trained, given.double())
    own = objective_of(run, recipe).samples.batch(0, 20)[0]
    assert torch.equal(trained, own.double())
    check_data(run, wide)
