"""Shares of samples against a training that keeps every sample's part by itself; counterfactuals against trainings."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import clipped_run, recipe, record
from tvgrad import TvgradError
from tvgrad.recipes.of_run import objective_of
from tvgrad.theory.attribution import Attribution
from tvgrad.theory.counterfactual import Without

RULES: dict[str, dict[str, Any]] = {
    "gd": {"optimizer": "gd", "lr": 0.1, "epochs": 3},
    "momentum with decay": {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.1, "epochs": 3},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "batch_size": 10},
    "nesterov": {"optimizer": "nesterov", "lr": 0.05, "batch_size": 10},
}


def parts_by_sample(made: tvgrad.Recipe, batches: list[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """A displacement and a momentum buffer for every sample, moved by its own gradients: (samples, parameters)."""
    model = copy.deepcopy(made.model).double()
    parameters = list(model.parameters())
    x, y = made.train.batch(0, len(made.train))
    x = x.double()
    mu = {"momentum": 0.9, "nesterov": 0.9}.get(options["optimizer"], 0.0)
    size = sum(p.numel() for p in parameters)
    moved, buffers = torch.zeros(2, len(x), size, dtype=torch.float64)
    decay, decay_buffer = torch.zeros(2, size, dtype=torch.float64)
    for batch in batches:
        fresh = torch.zeros_like(moved)
        for i in batch.tolist():
            loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]) / len(batch)
            fresh[i] = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])
        flat = torch.cat([p.detach().flatten() for p in parameters])
        shrink = options.get("weight_decay", 0.0) * flat
        buffers, decay_buffer = mu * buffers + fresh, mu * decay_buffer + shrink
        ahead = options["optimizer"] == "nesterov"
        moved = moved - options["lr"] * (fresh + mu * buffers if ahead else buffers)
        decay = decay - options["lr"] * decay_buffer
        start = torch.cat([p.detach().flatten() for p in made.model.double().parameters()])
        torch.nn.utils.vector_to_parameters(start + moved.sum(0) + decay, parameters)
    return moved


@pytest.mark.parametrize("name", RULES)
def test_every_sample_has_the_part_that_its_gradients_moved(name: str, tmp_path: Path) -> None:
    options, made = RULES[name], recipe()
    run = record(made, tmp_path, dtype="float64", **options)
    last = run.epochs[-1]
    whole = torch.arange(len(made.train))
    batches = [one for e in range(1, last + 1) for one in (run.batches(e) if "batch_size" in options else [whole])]
    found = tvgrad.attribution(run, made)
    moved = parts_by_sample(made, batches, options)
    vector = torch.cat([part.flatten() for part in run.task_vector(last).values()])
    truth = moved @ vector / (vector @ vector)
    assert np.abs(found.shares - truth.numpy()).max() < 1e-12
    assert found.shares.sum() + found.rest == pytest.approx(1, abs=1e-12)
    assert found.closure < 1e-12  # the parts sum to the task vector, vector by vector
    assert (abs(found.rest) < 1e-12) == ("weight_decay" not in options)
    labels = made.train.batch(0, len(made.train))[1]
    assert [row.label for row in found.rows] == sorted(set(labels.tolist()))
    for row in found.rows:
        own = truth[labels == row.label]
        assert (row.samples, row.share) == (len(own), pytest.approx(float(own.sum()), abs=1e-12))
    order = np.argsort(truth.numpy())
    assert found.most_aligned(3) == tuple(order[::-1][:3])
    assert found.least_aligned(2) == tuple(order[:2])


def test_an_earlier_epoch_and_a_rounded_run(tmp_path: Path) -> None:
    run = record(recipe(), tmp_path, optimizer="sgd", lr=0.1, batch_size=10, dtype="float32")
    objective = objective_of(run, recipe(), torch.float64)
    for epoch in (1, 2):
        found = tvgrad.attribution(run, objective, epoch)
        assert found.shares.sum() == pytest.approx(1, abs=1e-5)
        assert 1e-12 < found.closure < 1e-4  # rounding of a float32 step
    with pytest.raises(TvgradError, match="keeps no weights after epoch 7"):
        tvgrad.attribution(run, objective, 7)


def test_clipped_steps_count_as_they_were_consumed(tmp_path: Path) -> None:
    made = recipe()
    made.model.double()
    data = made.train.with_dtype(torch.float64)
    made = tvgrad.Recipe(made.model, nn.CrossEntropyLoss(), data.batch(0, len(data)), name="small", lr=0.1, epochs=2)
    run, seen = clipped_run(made, tmp_path, 0.05, 10, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9))
    assert any(not torch.equal(one.consumed["0.weight"], one.unclipped["0.weight"]) for one in seen)
    found = tvgrad.attribution(run, made)
    assert found.shares.sum() == pytest.approx(1, abs=1e-6)
    assert found.closure < 1e-5  # the clip factor is noted in float32
    with pytest.raises(TvgradError, match="clipped its gradients"):
        Without(run, objective_of(run, made), 2)


def test_targets_that_are_no_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(9, 4).double(), torch.randn(9, 2).double()
    made = tvgrad.Recipe(nn.Linear(4, 2).double(), nn.MSELoss(), data, lr=0.1, epochs=2)
    found = tvgrad.attribution(record(made, tmp_path, dtype="float64"), made)
    assert found.labels is None
    assert found.rows == ()
    assert list(found.to_frame().columns) == ["sample", "share"]
    assert list(found.to_frame()["share"]) == list(found.shares)
    assert len(found.plot().lines) == 2  # one curve, and zero


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam", "lr": 0.01}, "trained by adam, whose step is no weighted sum of gradients"),
        ({"optimizer": "sgd", "lr": 0.1, "batch_size": 8, "record": ("gradients",)}, "--record batches"),
        ({"optimizer": "gd", "lr": 0.1, "epochs": 3, "keep": "epochs:0,3"}, "does not keep the weights and gradients"),
    ],
)
def test_what_has_no_shares_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    run = record(recipe(), tmp_path, **options)
    with pytest.raises(TvgradError, match=said):
        tvgrad.attribution(run, recipe())


def trained(model: nn.Module, x: torch.Tensor, y: torch.Tensor, lr: float, batches: list[torch.Tensor]) -> torch.Tensor:
    """PyTorch's own loop."""
    model, loss = copy.deepcopy(model).double(), nn.MSELoss() if y.is_floating_point() else nn.CrossEntropyLoss()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for batch in batches:
        optimizer.zero_grad()
        loss(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach() - start


def flat(vector: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in vector.values()])


def test_two_steps_on_a_quadratic_are_told_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(12, 4).double(), torch.randn(12, 2).double()
    made = tvgrad.Recipe(nn.Linear(4, 2).double(), nn.MSELoss(), (x, y), lr=0.1, epochs=2)
    run = record(made, tmp_path, dtype="float64")
    kept = torch.tensor([i for i in range(12) if i not in {2, 5}])
    truth = trained(made.model, x, y, 0.1, [kept] * 2)
    told = Without(run, objective_of(run, made), 2).tell([5, 2])
    assert float((flat(told.task_vector) - truth).norm()) < 1e-13
    end = {name: made.model.state_dict()[name] + part for name, part in told.task_vector.items()}
    outputs = nn.functional.linear(x, end["weight"], end["bias"])
    assert told.row.predicted_loss == pytest.approx(float((outputs - y).square().mean()), rel=1e-12)
    gone = [2, 5]
    assert told.row.predicted_removed_loss == pytest.approx(float((outputs - y)[gone].square().mean()), rel=1e-12)
    assert (told.row.removed, told.row.kind) == (2, "estimate")


@pytest.mark.parametrize("batch_size", [None, 10])
def test_what_is_missed_is_of_third_order(batch_size: int | None, tmp_path: Path) -> None:
    made, gone, errors = recipe(), [3, 4, 17], []
    x, y = (part.double() if part.is_floating_point() else part for part in made.train.batch(0, len(made.train)))
    for number, lr in enumerate((0.04, 0.02, 0.01)):
        options = {"optimizer": "sgd", "batch_size": batch_size} if batch_size else {"optimizer": "gd"}
        run = record(made, tmp_path / str(number), lr=lr, epochs=3, dtype="float64", **options)
        objective = objective_of(run, made)
        all_batches = [one for e in (1, 2, 3) for one in (run.batches(e) if batch_size else [torch.arange(len(x))])]
        batches = [torch.tensor([i for i in batch.tolist() if i not in gone]) for batch in all_batches]
        truth = trained(made.model, x, y, lr, batches)
        teller = Without(run, objective, 3)
        assert float((flat(teller.retrained(gone)) - truth).norm()) < 1e-13
        errors.append(float((flat(teller.tell(gone).task_vector) - truth).norm()))
    orders = [np.log2(errors[i] / errors[i + 1]) for i in range(2)]
    assert orders[-1] == pytest.approx(3, abs=0.15), orders


def test_what_the_prediction_misses_of_the_training_tells_what_it_misses_of_a_change(tmp_path: Path) -> None:
    made, gone = recipe(), [3, 4, 17]
    x, y = (part.double() if part.is_floating_point() else part for part in made.train.batch(0, len(made.train)))
    kept = torch.tensor([i for i in range(len(x)) if i not in gone])
    for number, lr in enumerate((0.01, 0.1, 0.5, 2.0)):
        run = record(made, tmp_path / str(number), lr=lr, epochs=5, dtype="float64")
        objective = objective_of(run, made)
        told = Without(run, objective, 5).tell(gone)
        vector = flat(run.task_vector(5))
        before = flat(tvgrad.predict(objective, tvgrad.update_rules.GD(lr), 5).order2)
        assert told.row.missed == pytest.approx(float((before - vector).norm() / vector.norm()), rel=1e-9)
        truth = trained(made.model, x, y, lr, [kept] * 5)
        error = float((flat(told.task_vector) - truth).norm() / (truth - vector).norm())
        assert told.row.missed / 2 < error < 2 * told.row.missed, (lr, error, told.row.missed)


def test_a_batch_of_ignored_labels_is_a_step_without_a_gradient(tmp_path: Path) -> None:
    """As PyTorch has it: momentum goes on. Every batch was refused as a data set without weight."""
    plain = recipe()
    x, y = plain.train.batch(0, len(plain.train))
    y[5:9] = -100
    made = tvgrad.Recipe(
        plain.model, nn.CrossEntropyLoss(), (x, y), name="small", count=lambda batch: (batch[1] != -100).sum()
    )
    options = {"optimizer": "momentum", "lr": 0.02, "epochs": 1, "dtype": "float64"}
    run = record(made, tmp_path, batch_size=2, **options)
    objective = objective_of(run, made)
    batches = list(run.batches(1))
    ignored = next(one for one in batches if (y[one] == -100).any() and (y[one] != -100).any())
    partners = [int(one) for one in ignored if y[one] != -100]  # without them the batch is of ignored labels alone
    teller = Without(run, objective, 1)
    model = copy.deepcopy(made.model).double()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for batch in batches:
        kept = torch.tensor([i for i in batch.tolist() if i not in partners])
        if len(kept):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[kept].double()), y[kept]).backward()
            optimizer.step()
    truth = nn.utils.parameters_to_vector(model.parameters()).detach() - start
    assert float((flat(teller.retrained(partners)) - truth).norm()) < 1e-13
    told = teller.tell(partners)
    change = (truth - flat(run.task_vector(1))).norm()
    assert float((flat(told.task_vector) - truth).norm()) < 0.2 * float(change)
    whole = next(one for one in batches if (y[one] != -100).all())
    assert told.row.removed_loss == told.row.removed_loss
    nothing = teller.tell([5])  # an ignored sample alone changes nothing and has no loss
    assert nothing.row.removed_loss != nothing.row.removed_loss
    assert nothing.row.change_norm == pytest.approx(0, abs=1e-15)
    # a training in which a batch was of ignored labels from the start
    y[whole] = -100
    again = record(made, tmp_path / "again", batch_size=2, **options)
    assert any((y[one] == -100).all() for one in again.batches(1))
    found = tvgrad.attribution(again, objective_of(again, made))
    assert found.shares.sum() + found.rest == pytest.approx(1, abs=1e-12)
    assert found.closure < 1e-13
    assert Without(again, objective_of(again, made), 1).missed < 0.1


@pytest.mark.parametrize(
    ("gone", "said"),
    [([], "no samples to leave out"), ([0, 32], "from 0 to 31: 32 is none"), (range(32), "an epoch has none left")],
)
def test_samples_that_cannot_be_left_out(gone: Any, said: str, tmp_path: Path) -> None:
    run = record(recipe(), tmp_path)
    with pytest.raises(TvgradError, match=said):
        Without(run, objective_of(run, recipe()), 2).tell(gone)


def test_the_picture_has_a_curve_for_each_class() -> None:
    shares, labels = np.array([0.5, -0.1, 0.4, 0.2]), np.array([0, 0, 3, 3])
    ax = Attribution("a", 2, shares, 0.0, 0.0, labels, ()).plot()
    curves = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert curves["class 0"] == pytest.approx([0, 0.5, 0.4])
    assert curves["class 3"] == pytest.approx([0, 0.4, 0.6])
    assert ax.get_title() == "a, epoch 2"


@pytest.mark.slow
def test_a_hundred_retrainings_correlate() -> None:
    """On digits, by gradient descent and on mini-batches: r is at least 0.95."""
    leave_out = importlib.import_module("tvgrad.analyses.leave_out")
    for options in ({}, {"rate": 0.05, "epochs": 2, "batch_size": 50}):
        result = leave_out.analyse("digits", retrainings=100, **options)
        assert result.outcome == "holds", result.evidence
        for effect in ("test", "removed"):
            assert np.corrcoef(result.table[f"told_{effect}"], result.table[f"true_{effect}"])[0, 1] >= 0.95
