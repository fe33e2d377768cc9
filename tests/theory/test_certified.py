"""Bounds of recorded runs: never below the error that the files say, close to it, and absent with a reason.

The oracle reads the run's files with numpy and has formulas of its own for the sums of coefficients.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import recipe, record
from tvgrad import TvgradError
from tvgrad.bounds import FeedForward
from tvgrad.recipes.of_run import objective_of
from tvgrad.theory.certified import bounds_of_run
from tvgrad.theory.explain import explain, with_bounds

EPOCHS = 4


def flat(weights: dict[str, torch.Tensor]) -> np.ndarray:
    return np.concatenate([weights[name].double().numpy().ravel() for name in sorted(weights)])


def first_order(optimizer: str, lr: float, momentum: float, epochs: int) -> float:
    """S_k: gradient descent eta k; PyTorch's buffers otherwise, written out step by step."""
    if optimizer == "gd":
        return lr * epochs
    buffer, total = 0.0, 0.0
    for _ in range(epochs):
        buffer = momentum * buffer + 1.0
        total += lr * (1 + momentum * buffer if optimizer == "nesterov" else buffer)
    return total


def measured(run: tvgrad.Run, optimizer: str, lr: float, momentum: float, epoch: int) -> float:
    tau = flat(run.weights(epoch)) - flat(run.weights(0))
    return float(np.linalg.norm(tau + first_order(optimizer, lr, momentum, epoch) * flat(run.gradient(0))))


def bounded(run: tvgrad.Run, made: tvgrad.Recipe) -> tuple[dict[int, float], str | None]:
    return bounds_of_run(run, made, objective_of(run, made, torch.float64))


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "gd": {}, "momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("lr", [1e-7, 1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bounds_exceed_what_was_recorded(optimizer: str, lr: float, dtype: str, tmp_path: Path) -> None:
    made = recipe()
    options = OPTIMIZERS[optimizer]
    run = record(made, tmp_path, optimizer=optimizer, lr=lr, epochs=EPOCHS, dtype=dtype, **options)
    found, reason = bounded(run, made)
    assert reason is None
    assert list(found) == list(range(1, EPOCHS + 1))
    size = float(np.linalg.norm(flat(run.weights(0))))
    grain = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}[dtype]
    for epoch, bound in found.items():
        error = measured(run, optimizer, lr, options.get("momentum", 0.0), epoch)
        assert error <= bound
        # the rest is rounding: of the stored weights once an epoch, and of the gradient that the run consumed
        weight = first_order(optimizer, lr, options.get("momentum", 0.0), epoch)
        rounding = 40 * grain * (size * epoch + weight)
        assert bound <= 1.01 * error + rounding * (1 + lr) ** (10 * epoch)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_disturbed_files_stay_below_their_bounds(dtype: str, tmp_path: Path, tampered: Callable[..., Any]) -> None:
    """Weights, or the first gradient, that no training has made: the bound says what can be said of them."""
    made = recipe()
    run = record(made, tmp_path, lr=0.05, epochs=EPOCHS, dtype=dtype)
    before, _ = bounded(run, made)
    for kind, number in (("weights", 2), ("weights", EPOCHS), ("gradient", 0)):
        changed = tampered(run, kind, number, lambda file: {name: tensor + 0.01 for name, tensor in file.items()})
        after, _ = bounded(changed, made)
        errors = {epoch: measured(changed, "gd", 0.05, 0.0, epoch) for epoch in after}
        touched = [epoch for epoch in after if kind == "gradient" or epoch >= number]
        for epoch in after:
            assert errors[epoch] <= after[epoch]
        # what was disturbed is far above the bounds of the run as it was: a bound that ignored it would be wrong
        assert any(errors[epoch] > before[epoch] for epoch in touched)
        shutil.rmtree(changed.root)


def test_a_schedule_of_the_users_own_is_followed(tmp_path: Path) -> None:
    made = recipe()
    model = made.model.double()
    inputs, targets = made.train.batch(0, len(made.train))
    inputs = inputs.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    loss = nn.CrossEntropyLoss()
    objective = tvgrad.Objective(model, loss, (inputs, targets))
    with tvgrad.Recorder(tmp_path / "own", model, optimizer, objective) as recorder:
        for _ in range(3):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
            recorder.note_step(lr=scheduler.get_last_lr()[0], batch_size=len(inputs))
            recorder.end_epoch()
            scheduler.step()
    run = tvgrad.Run.open(tmp_path / "own")
    found, reason = bounded(run, recipe())
    assert reason is None
    gradient, start = flat(run.gradient(0)), flat(run.weights(0))
    for epoch, weight in enumerate((0.1, 0.15, 0.175), start=1):
        error = float(np.linalg.norm(flat(run.weights(epoch)) - start + weight * gradient))
        assert error <= found[epoch] <= 1.01 * error + 1e-13


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_recorded_batches_are_bounded(dtype: str, tmp_path: Path) -> None:
    made = recipe()
    options: dict[str, Any] = {"optimizer": "momentum", "momentum": 0.5, "batch_size": 10, "epochs": 3, "lr": 0.02}
    run = record(made, tmp_path, dtype=dtype, record=("gradients", "batches"), **options)
    found, reason = bounded(run, made)
    assert reason is None
    ends = [point.steps for point in run.points]
    assert ends[1] > 1
    for epoch, bound in found.items():
        tau = flat(run.weights(epoch)) - flat(run.weights(0))
        weight = first_order("momentum", 0.02, 0.5, ends[epoch])
        error = float(np.linalg.norm(tau + weight * flat(run.gradient(0))))
        assert error <= bound <= error * (1 + (1e-3 if dtype == "float32" else 1e-7))
    assert list(found) == [1, 2, 3]


def test_the_bound_stands_beside_the_error_in_the_table(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, lr=0.1, epochs=3)
    objective = objective_of(run, made, torch.float64)
    found, _ = bounds_of_run(run, made, objective)
    rows = with_bounds(explain(run, objective), found).second_order
    for row in rows:
        assert row.bound == found[row.epoch] >= row.error_norm == pytest.approx(measured(run, "gd", 0.1, 0, row.epoch))


def test_little_time_bounds_two_epochs_and_says_so(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, lr=0.01, epochs=5)
    objective = objective_of(run, made, torch.float64)
    everything, _ = bounds_of_run(run, made, objective, seconds=1000.0)
    assert everything == bounds_of_run(run, made, objective)[0]
    few, why = bounds_of_run(run, made, objective, seconds=1e-9)
    # a tube round two epochs is not quite the one round five
    assert few == pytest.approx({epoch: everything[epoch] for epoch in (1, 2)}, rel=0.01)
    assert all(measured(run, "gd", 0.01, 0, epoch) <= bound for epoch, bound in few.items())
    assert why is not None
    assert why.startswith("no bound from epoch 3 on: the later ones take up to about ")


def test_no_bound_says_why(tmp_path: Path) -> None:
    made = recipe()

    def reason(folder: str, given: tvgrad.Recipe = made, **options: Any) -> str:
        bounds, why = bounded(record(given, tmp_path / folder, **options), given)
        assert bounds == {}
        assert why is not None
        assert "\n" not in why
        return why

    assert "without weight decay" in reason("decay", optimizer="sgd", weight_decay=0.1, epochs=2)
    assert "linear update rules" in reason("adam", optimizer="adam", lr=1e-3, epochs=2)
    assert "one full-batch step" in reason("batches", optimizer="sgd", batch_size=10, epochs=2, record=("gradients",))
    assert "weights of every epoch" in reason("kept", keep="epochs:0,2", epochs=2)
    assert "ReLU" in reason("relu", recipe(activation=nn.ReLU), epochs=2)
    run = record(made, tmp_path / "wild", lr=1e4, epochs=3, dtype="float64")
    bounds, why = bounded(run, made)
    if why is not None:
        assert f"from epoch {len(bounds) + 1} on" in why
    for epoch, bound in bounds.items():
        assert measured(run, "gd", 1e4, 0.0, epoch) <= bound


def cross_entropy(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A function with the name of PyTorch's, and twice its value."""
    return 2 * nn.functional.cross_entropy(output, target)


def with_loss(loss: Any, **options: Any) -> tvgrad.Recipe:
    made = recipe()
    batch = made.train.batch(0, len(made.train))
    return tvgrad.Recipe(made.model, loss, batch, name="small", lr=1e-3, epochs=2, **options)


def test_losses_are_known_by_what_they_are_and_not_by_their_name() -> None:
    assert FeedForward.of_recipe(with_loss(nn.functional.cross_entropy)).loss.name == "cross_entropy"
    with pytest.raises(TvgradError, match="no bounds are known for the loss cross_entropy of small"):
        FeedForward.of_recipe(with_loss(cross_entropy))
    with pytest.raises(TvgradError, match="its own forward or count"):
        FeedForward.of_recipe(with_loss(nn.CrossEntropyLoss(), forward=lambda model, batch: model(batch[0])))


def test_a_float64_run_is_read_without_rounding(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, lr=0.1, epochs=1, dtype="float64")
    problem = FeedForward.of_recipe(made, run.complete(1))
    expected = torch.cat([run.weights(1)[name].flatten() for name in problem.network.names])
    assert torch.equal(problem.network.flat, expected)
    assert not math.isnan(problem.gradient.error)
