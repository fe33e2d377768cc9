"""From a TARGET to recipes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.recipes.catalogue import BUILT_IN, load_recipes

SOURCE = """
import torch
from torch import nn
import tvgrad
from dataclasses import dataclass

@dataclass
class Settings:
    lr: float = 0.5

def recipe():
    torch.manual_seed(0)
    data = torch.ones(4, 2), torch.ones(4, 2)
    return tvgrad.Recipe(nn.Linear(2, 2), nn.MSELoss(), data, name="own", lr=Settings().lr)

def other():
    return [recipe()]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own_recipes.py"
    path.write_text(SOURCE)
    return path


def test_a_built_in_recipe_is_what_the_list_says() -> None:
    said = BUILT_IN["digits"]
    made = load_recipes("digits")
    assert tuple(recipe.name for recipe in made) == said.tasks
    assert f"{sum(p.numel() for p in made[0].model.parameters() if p.requires_grad):,} parameters" in said.size
    assert f"up to {max(len(recipe.train) for recipe in made)} samples" in said.size


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_target_exists(name: str) -> None:
    import importlib

    module, _, function = BUILT_IN[name].target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert all((BUILT_IN[name].data, BUILT_IN[name].model, BUILT_IN[name].size, BUILT_IN[name].tasks))


def test_tasks_are_picked_in_the_targets_order() -> None:
    assert [recipe.name for recipe in load_recipes("digits", ["rotated", "low"])] == ["low", "rotated"]
    with pytest.raises(TvgradError, match="digits has no task called 'middle': choose from low, high, parity"):
        load_recipes("digits", ["low", "middle"])


@pytest.mark.parametrize("function", ["", ":recipe", ":other"])
def test_a_file(file: Path, function: str) -> None:
    (made,) = load_recipes(f"{file}{function}")
    assert isinstance(made, Recipe)
    assert (made.name, made.lr) == ("own", 0.5)


def test_a_module(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    path = list(sys.path)
    assert load_recipes("own_recipes:recipe")[0].name == "own"
    assert sys.path == path
    del sys.modules["own_recipes"]


def test_a_file_leaves_the_search_path_as_it_was(file: Path) -> None:
    path = list(sys.path)
    load_recipes(str(file))
    file.write_text("1 / 0")
    with pytest.raises(TvgradError, match=r"ZeroDivisionError: division by zero \(own_recipes.py, line 1\)"):
        load_recipes(str(file))
    assert sys.path == path
    assert "tvgrad_target_own_recipes" not in sys.modules


def test_a_changed_file_is_read_again(file: Path) -> None:
    load_recipes(str(file))
    file.write_text(SOURCE.replace('"own"', '"newer"'))
    assert load_recipes(str(file))[0].name == "newer"


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_imports_its_neighbours(file: Path, inside: bool) -> None:
    name = f"neighbour_{int(inside)}"
    (file.parent / f"{name}.py").write_text("NAME = 'from-next-door'")
    line = f"    from {name} import NAME\n" if inside else f"from {name} import NAME\n"
    source = SOURCE.replace("def recipe():\n", f"def recipe():\n{line}") if inside else line + SOURCE
    file.write_text(source.replace('name="own"', "name=NAME"))
    path = list(sys.path)
    assert load_recipes(str(file))[0].name == "from-next-door"
    assert sys.path == path
    del sys.modules[name]


def test_an_error_is_placed_in_the_users_code(file: Path) -> None:
    """Not in the line of tvgrad that called the model, wherever tvgrad is installed."""
    file.write_text(SOURCE.replace("nn.Linear(2, 2)", "nn.Linear(3, 2)"))
    with pytest.raises(TvgradError, match=r"RuntimeError: mat1 and mat2 .* \(own_recipes.py, line 14\)$"):
        load_recipes(str(file))


def test_a_sentence_of_tvgrads_own_passes_through(file: Path) -> None:
    file.write_text(SOURCE.replace("lr=Settings().lr", "lr=-1"))
    with pytest.raises(TvgradError, match=r"^lr must be a positive number, not -1$"):
        load_recipes(str(file))


def test_an_interrupt_is_not_caught(file: Path) -> None:
    file.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        load_recipes(str(file))


def test_no_name_in_a_run_makes_its_file_run(file: Path, tmp_path: Path) -> None:
    """A run directory may come from anybody: what it names as its target is never imported."""
    from tvgrad.cli.main import main

    main(["trace", str(file), "--out", str(tmp_path / "run"), "--quiet", "--epochs", "1"])
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + SOURCE)
    for arguments in (["verify"], ["report"]):
        main([*arguments, str(tmp_path / "run")])
    assert not (tmp_path / "ran").exists()
