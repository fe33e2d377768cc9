"""`tvgrad plan` and `tvgrad merge --alpha plan` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tvgrad.cli.plan import _in_words

import tvgrad as package
from tvgrad.merging.evaluation import halves
from tvgrad.recipes.catalogue import load_recipes

WORDS = ("digits", "--tasks", "low,parity", "--chunk-size", "900", "--lr", "0.01", "--epochs", "3")


class Still(torch.nn.Module):
    """A model at the least of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.w * inputs


def test_before_training(tvgrad: Callable[..., Any], tmp_path: Path) -> None:
    done = tvgrad("plan", *WORDS, "--pairs", "--save", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "Merging after 3 epochs of gd 0.01 (estimates: about)" in done.out
    said = json.loads((tmp_path / "plan.json").read_text())
    last = done.out.splitlines()[-1]
    assert f"merge with coefficient {said['coefficient']:.3g}: the summed training loss is predicted" in last
    assert "and every task's loss with it" in last
    assert "predicted to be within" in last
    assert "rough guess" not in last
    assert said["holds"] is True
    assert set(said["coefficients"]) == {"low", "parity"}
    assert [row["task"] for row in said["tasks"]] == ["low", "parity"]
    assert len(said["pairs"]) == 2
    again = tvgrad("plan", *WORDS, "--pairs", "--json")
    assert json.loads(again.out) == said


def test_cost_is_told_and_nothing_computed(tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("plan", *WORDS, "--cost")
    losses = (
        "up to 5 losses (24 where the coefficient must be searched, 35 where it is above 1) for each of 2 tasks, about"
    )
    assert done.out.startswith(f"2 gradients, 3 Hessian-vector products and {losses}")
    assert "4 Hessian-vector products" in tvgrad("plan", *WORDS, "--cost", "--pairs").out


def test_after_training_and_in_a_merge(tvgrad: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert tvgrad("trace", *WORDS, "--out", runs, "--quiet").code == 0
    done = tvgrad("plan", runs, "--recipe", "digits", "--epoch", "1", "--json")
    after = json.loads(done.out)
    done = tvgrad("plan", runs, "--recipe", "digits")
    assert "Merging runs after epoch 3" in done.out
    for more, products in (((), 2), (("--pairs",), 2)):  # as many pairs as there are tasks
        told = tvgrad("plan", runs, "--recipe", "digits", "--cost", *more).out
        assert told.startswith(f"1 gradient, {products} Hessian-vector products and up to 5 losses (24 where"), told
    # after one epoch of gradient descent the forecast is the task vector itself
    before = json.loads(tvgrad("plan", *WORDS[:-1], "1", "--json").out)
    assert after["coefficient"] == pytest.approx(before["coefficient"], rel=1e-4)
    merge = ("merge", runs, "--epoch", "1", "--method", "task_arithmetic", "--recipe", "digits", "--alpha", "plan")
    done = tvgrad(*merge, "--evaluate", "--out", tmp_path / "m.safetensors")
    assert done.code == 0, done.err
    told = float(re.search(r"^alpha (\S+): told to be best", done.out, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert told == pytest.approx(after["coefficient"], rel=1e-3)
    assert f"alpha {told:g}" in done.out
    # two runs of one name are told apart, and one that is given twice does not count twice
    twice = tmp_path / "twice"
    assert tvgrad("trace", *WORDS, "--out", twice, "--quiet").code == 0
    said = json.loads(tvgrad("plan", runs / "low", twice / "low", "--recipe", "digits", "--json").out)
    assert list(said["coefficients"]) == [row["task"] for row in said["tasks"]] == ["runs/low", "twice/low"]
    assert "is given twice" in refused("plan", runs / "low", runs / "low", "--recipe", "digits")
    assert "leave it out with --recipe" in refused("plan", runs, "--recipe", "digits", "--lr", "0.1")
    assert "say which --recipe made them" in refused("plan", runs)
    assert "--recipe" in refused("merge", runs, "--alpha", "plan", "--out", tmp_path / "n.safetensors")


def test_on_validation_samples(tvgrad: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    """The command's coefficient is the best of those it tried, by metrics of its own on the validation half."""
    words = ("plan", "digits", "--tasks", "low,permuted", "--chunk-size", "900", "--lr", "0.1", "--epochs", "5")
    done = tvgrad(*words, "--on", "validation", "--json")
    said = json.loads(done.out)
    recipes = [one for one in load_recipes("digits") if one.name in {"low", "permuted"}]
    made = package.plan([one.objective() for one in recipes], package.update_rules.GD(0.1), 5)
    start = recipes[0].objective().initial
    merged = {name: sum(vector[name] for vector in made.task_vectors) for name in start}
    scores = []
    for a in said["held_out"]["coefficients"]:
        weights = {name: (tensor.double() + a * merged[name]).to(tensor.dtype) for name, tensor in start.items()}
        right = []
        for recipe in recipes:
            inputs, targets = halves(recipe.test)[0].batch(0, 10_000)
            outputs = torch.func.functional_call(recipe.model, weights, (inputs,), strict=False)
            right.append(float((outputs.argmax(1) == targets).double().mean()))
        scores.append(sum(right) / len(right))
    assert said["held_out"]["scores"] == pytest.approx(scores, abs=1e-9)
    best = max(range(16), key=lambda place: (scores[place], -place))
    assert said["coefficient"] == said["held_out"]["coefficients"][best] > 0
    assert 0 < said["coefficient"] < made.coefficient  # for samples that were not trained on, less far
    assert "the best on the validation samples of 16 tried" in tvgrad(*words, "--on", "validation").out
    assert "16 passes over its validation samples" in tvgrad(*words, "--on", "validation", "--cost").out
    assert "leave --on out" in refused(*words, "--on", "validation", "--save", tmp_path / "m.safetensors")


def test_refusals(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "for trained RUNs" in refused("plan", "digits", "--epoch", "1")
    assert "is no folder" in refused("plan", "digits", "--save", tmp_path / "none" / "plan.json")
    assert "give one TARGET" in refused("plan", "digits", "suite")


def test_a_coefficient_of_zero_is_no_merge() -> None:
    ones = torch.ones(4, dtype=torch.float64)
    still = package.Objective(Still(), torch.nn.MSELoss(), (ones, ones))
    made = package.plan([still], task_vectors=[{"w": torch.ones(1, dtype=torch.float64)}])
    assert made.coefficient == 0
    assert "leave their task vectors apart" in _in_words(made, ["one"])
    worse = replace(made, coefficient=1.0, predicted_losses=(made.rows[0].loss,))
    assert "with one no better than pretrained" in _in_words(worse, ["one"])
