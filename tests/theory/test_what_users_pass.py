"""What users pass to the public functions works, or the sentence says what to pass instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad.bounds import FeedForward
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace


def recipe() -> Recipe:
    torch.manual_seed(0)
    data = torch.randn(12, 4), torch.arange(12) % 3
    return Recipe(nn.Linear(4, 3), nn.CrossEntropyLoss(), data, lr=0.1, epochs=2)


def test_predict_takes_the_optimizer_that_trains() -> None:
    objective = recipe().objective(torch.float64)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.05, momentum=0.5)
    found = tvgrad.predict(objective, optimizer, 3)
    rule = tvgrad.update_rules.Momentum(0.05, 0.5)
    assert found.rule == rule
    assert found.row == tvgrad.predict(objective, rule, 3).row


@pytest.mark.parametrize("rule", ["gd", 0.1, None, torch.optim.SGD], ids=str)
def test_predict_says_what_a_rule_is(rule: object) -> None:
    with pytest.raises(TvgradError, match=r"is no update rule: pass .*GD\(0.1\)"):
        tvgrad.predict(recipe().objective(), rule, 3)  # type: ignore[arg-type]


def test_an_optimizer_without_an_expansion() -> None:
    optimizer = torch.optim.Adam(nn.Linear(1, 1).parameters())
    with pytest.raises(TvgradError, match="adam is not a linear update rule"):
        tvgrad.predict(recipe().objective(), optimizer, 3)


def test_an_error_budget_takes_the_recipe(tmp_path: Path) -> None:
    made = recipe()
    run = trace(prepare(made, TraceOptions(device="cpu")), tmp_path / "run")
    budget = tvgrad.error_budget(run, made)
    assert budget.rows == tvgrad.error_budget(run, made.objective(torch.float64)).rows


def test_a_run_is_opened_by_its_path(tmp_path: Path) -> None:
    run = trace(prepare(recipe(), TraceOptions(device="cpu")), tmp_path / "run")
    assert tvgrad.Run(str(run.root)).epochs == run.epochs
    with pytest.raises(TvgradError, match="is not a run directory"):
        tvgrad.Run(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("third", "what"),
    [(nn.CrossEntropyLoss(), "a CrossEntropyLoss"), ("mse", "'mse'"), (nn.functional.mse_loss, "a function")],
    ids=["module", "name", "function"],
)
def test_a_loss_in_the_place_of_the_targets(third: object, what: str) -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with pytest.raises(TvgradError, match=rf"the targets are {what}: the order is \(module, inputs, targets, loss\)"):
        FeedForward(network, torch.eye(4, dtype=torch.float64), third)  # type: ignore[arg-type]


def test_what_is_no_run_no_objective_and_no_model(tmp_path: Path) -> None:
    made = recipe()
    run = trace(prepare(made, TraceOptions(device="cpu")), tmp_path / "run")
    assert tvgrad.Run(str(run.root)).epochs == run.epochs
    for path in (run.root, str(run.root)):
        with pytest.raises(TvgradError, match=r"run' is no run: pass tvgrad.Run\(directory\)"):
            tvgrad.error_budget(path, made)  # type: ignore[arg-type]
        with pytest.raises(TvgradError, match="is no run"):
            tvgrad.check_one_epoch(path)  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match="a Linear is no objective: pass the recipe"):
        tvgrad.error_budget(run, made.model)  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match=r"a Recipe is no objective: pass recipe\.objective\(\)"):
        tvgrad.predict(made, "gd", 3)  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match="a Recipe is no objective"):
        tvgrad.plan([made], tvgrad.update_rules.GD(0.1), 1)  # type: ignore[list-item]
    with pytest.raises(TvgradError, match=r"a generator is no model: pass the torch\.nn\.Module"):
        tvgrad.Recorder(tmp_path / "other", made.model.parameters())  # type: ignore[arg-type]
    with pytest.raises(TvgradError, match="'adam' is no optimizer"):
        tvgrad.Recorder(tmp_path / "other", made.model, "adam")  # type: ignore[arg-type]
