"""Recorded gradients computed again from the recipe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.traced_runs import Tampered, Traced
from tvgrad.errors import TvgradError
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.recipes.of_run import objective_of, recipe_of
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run
from tvgrad.theory.chunk_rounding import chunk_rounding
from tvgrad.theory.replay import replay_gradients

RECIPE = """
import torch
from torch import nn
import tvgrad

def recipe(shift=0.0, frozen=0.0, width=4):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))
    model[2].bias.requires_grad_(False)
    inputs, targets = torch.randn(30, 6) + shift, torch.randint(0, 2, (30,))
    return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name="{name}", lr=0.1, epochs=2)

def other_data():
    return recipe(shift=0.5)

def other_model():
    return recipe(width=5)

def without_bias():
    made = recipe()
    made.model[2] = nn.Linear(4, 2, bias=False)
    return made

def two():
    return [recipe(), tvgrad.Recipe(recipe().model, nn.CrossEntropyLoss(), (torch.ones(3, 6), torch.tensor([0, 1, 0])),
                                    name="second")]
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(RECIPE.replace("{name}", "task"))
    return str(path)


@pytest.fixture
def run(target: str, tmp_path: Path) -> Run:
    return trace(prepare(load_recipes(target)[0], TraceOptions(target=target)), tmp_path / "run")


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_same_machine_gives_the_same_bits(traced: Traced, dtype: str) -> None:
    outcome = replay_gradients(traced("rotated", dtype=dtype), "digits")
    assert outcome.agrees
    assert outcome.gradients == 4
    assert outcome.sentence == "all 4 gradients have the same bits"
    assert (outcome.recorded_error, outcome.replayed_error) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_chunks_of_another_size_differ_by_rounding_alone(traced: Traced, dtype: str) -> None:
    """The truth: the gradient in float64 and one chunk, of the recipe's own model, by autograd alone."""
    run = traced("rotated", dtype=dtype)
    chunks = replay_gradients(run, "digits").chunks
    assert chunks is not None
    assert chunks.agrees, chunks.sentence
    recipe, unit = recipe_of(run, "digits"), torch.finfo(getattr(torch, dtype)).eps / 2
    assert (chunks.chunk_size, chunks.other) == (len(recipe.train), len(recipe.train) // 2)
    model = recipe.model.double()
    model.load_state_dict(run.complete(0))
    inputs, targets = recipe.train.batch(0, len(recipe.train), torch.device("cpu"))
    inputs = inputs.to(getattr(torch, dtype)).double()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    truth = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), trained)
    length = math.sqrt(sum(float(part.square().sum()) for part in truth))
    far = math.sqrt(
        sum(float((a - b.double()).square().sum()) for a, b in zip(truth, run.gradient(0).values(), strict=True))
    )
    assert 0 < chunks.difference <= chunks.bound
    assert chunks.bound == pytest.approx(10 * max(far / length, unit), rel=0.01 if dtype != "float64" else 20)
    if dtype == "float64":  # where the measured error is float32's, scaled
        assert chunks.bound < 1e-13


def test_where_chunks_say_nothing(target: str, tmp_path: Path) -> None:
    recipe = load_recipes(target)[0]
    single = trace(prepare(recipe, TraceOptions(target=target, chunk_size=1, epochs=1)), tmp_path / "run")
    assert replay_gradients(single, target).chunks is None
    zero = {"w": torch.zeros(2)}
    assert chunk_rounding((2, 1), (zero, zero), zero, 0.0, 0) is None


@pytest.mark.parametrize(("change", "agrees"), [(9e-7, True), (1.1e-6, False)])
def test_chunks_that_differ_by_more_than_is_stated(change: float, agrees: bool) -> None:
    one = {"w": torch.ones(4, dtype=torch.float64)}
    other = {"w": one["w"] * (1 + change)}
    found = chunk_rounding((2, 1), (one, other), one, 1e-7, 0)
    assert found is not None
    assert found.agrees == agrees
    assert found.difference == pytest.approx(change)
    assert f"{'within' if agrees else 'more than'} 1e-06 (an estimate" in found.sentence


def test_epochs_that_were_dropped_are_left_out(traced: Traced) -> None:
    assert replay_gradients(traced("rotated", keep="epochs:0,3"), "digits").gradients == 2


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_rounding_of_the_same_size_agrees(traced: Traced, tampered: Tampered, dtype: str) -> None:
    """Another library's last bit: every coordinate moved to its neighbour, or not."""

    def jitter(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        far = {name: torch.full_like(tensor, math.inf) for name, tensor in content.items()}
        return {
            name: torch.where(
                torch.rand(tensor.shape, generator=generator) < 0.5, torch.nextafter(tensor, far[name]), tensor
            )
            for name, tensor in content.items()
        }

    outcome = replay_gradients(tampered(traced("rotated", dtype=dtype), "gradient", 2, jitter), "digits")
    assert "1 of 4 gradients differ in bits" in outcome.sentence
    assert outcome.agrees, outcome.sentence
    assert outcome.recorded_error > 0
    assert outcome.replayed_error > 0


@pytest.mark.parametrize(("dtype", "change"), [("float32", 1e-4), ("float64", 1e-12), ("bfloat16", 2.0)])
def test_more_than_rounding_does_not_agree(traced: Traced, tampered: Tampered, dtype: str, change: float) -> None:
    def stretch(content: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: (tensor.double() * (1 + change)).to(tensor.dtype) for name, tensor in content.items()}

    outcome = replay_gradients(tampered(traced("rotated", dtype=dtype), "gradient", 1, stretch), "digits")
    assert not outcome.agrees
    assert outcome.recorded_error == pytest.approx(change, rel=0.2)
    assert "more than rounding" in outcome.sentence


def test_a_recipe_of_ones_own(run: Run, target: str) -> None:
    assert replay_gradients(run, target).sentence == "all 3 gradients have the same bits"
    assert replay_gradients(run, f"{target}:two").agrees


def test_other_data_is_named_by_its_fingerprint(run: Run, target: str) -> None:
    with pytest.raises(TvgradError, match=r"training data is not what .* was recorded on: its fingerprint differs"):
        replay_gradients(run, f"{target}:other_data")


def test_another_model_is_refused(run: Run, target: str) -> None:
    with pytest.raises(TvgradError, match="has other parameters than"):
        replay_gradients(run, f"{target}:other_model")


def test_other_frozen_parameters_are_refused(run: Run, target: str) -> None:
    recipe = recipe_of(run, target)
    recipe.model[2] = nn.Linear(4, 3)
    recipe.model[2].bias.requires_grad_(False)
    with pytest.raises(TvgradError, match="holds other frozen parameters or buffers"):
        objective_of(run, recipe)


def test_a_task_that_the_target_does_not_have(traced: Traced, run: Run, target: str) -> None:
    with pytest.raises(TvgradError, match="has no task called 'rotated'"):
        replay_gradients(traced("rotated"), f"{target}:two")


def test_a_run_without_gradients_is_refused(traced: Traced) -> None:
    with pytest.raises(TvgradError, match="records no full-batch gradients"):
        replay_gradients(traced("rotated", record=()), "digits")


def test_the_recipe_is_left_as_it_is(run: Run, target: str) -> None:
    recipe = recipe_of(run, target)
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    objective = objective_of(run, recipe, torch.float64)
    objective.gradient(run.weights(2))
    after = recipe.model.state_dict()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
