"""The loop of `tvgrad trace`: what it trains on, what it records, and how it goes on."""

from __future__ import annotations

import copy
import csv
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe, accuracy
from tvgrad.record.batch_order import batches_of
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

Traced = Callable[..., Run]
MakeRecipe = Callable[..., Recipe]
Bits = Callable[[Path], dict[str, bytes]]


def gradient_of(recipe: Recipe, weights: Mapping[str, torch.Tensor], rows: Any) -> dict[str, torch.Tensor]:
    """The gradient of the mean loss over some samples, by autograd alone."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    inputs, targets = recipe.train.subset(rows).batch(0, len(rows))
    inputs = inputs.to(next(iter(weights.values())).dtype)
    loss = nn.functional.cross_entropy(torch.func.functional_call(recipe.model, leaves, (inputs,)), targets)
    return dict(zip(leaves, torch.autograd.grad(loss, tuple(leaves.values())), strict=True))


def test_batches_cover_every_sample_once_and_depend_on_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): torch.cat(list(batches_of(20, 6, seed, epoch))) for seed in (0, 1, -3) for epoch in range(3)
    }
    assert [len(batch) for batch in batches_of(20, 6, 0, 0)] == [6, 6, 6, 2]
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders.values())
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9
    assert torch.equal(torch.cat(list(batches_of(20, 6, 1, 2))), orders[1, 2])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "nesterov"])
def test_recorded_batches_replay_the_run(
    tmp_path: Path, traced: Traced, make_recipe: MakeRecipe, optimizer: str
) -> None:
    """From theta_0, the sample order and the rates, PyTorch's own optimizer walks to the same bits."""
    record = ("gradients", "epoch-gradients", "batches")
    run = traced(tmp_path, optimizer=optimizer, batch_size=6, record=record, dtype="float64", lr=0.05)
    assert [len(batch) for batch in run.batches(1)] == [6, 6, 6, 2]
    recipe = make_recipe()
    model = make_recipe().model.double()
    rule = run.rule
    assert rule is not None
    stepper = rule.make_optimizer([p for p in model.parameters() if p.requires_grad])
    for epoch in range(1, 4):
        total = {name: torch.zeros_like(tensor) for name, tensor in run.weights(0).items()}
        for rows in run.batches(epoch):
            inputs, targets = recipe.train.subset(rows).batch(0, len(rows))
            stepper.zero_grad()
            nn.functional.cross_entropy(model(inputs.double()), targets).backward()
            for name in total:
                total[name] += model.get_parameter(name).grad
            stepper.step()
        for name, tensor in run.weights(epoch).items():
            assert torch.equal(tensor, model.get_parameter(name).detach())
            assert torch.equal(run.epoch_gradient(epoch)[name], total[name])
    assert run.steps()["batch_size"].tolist() == [6, 6, 6, 2] * 3
    assert run.info["consumes_recorded_gradient"] is False


def test_full_batch_epoch_gradients_are_the_recorded_gradients(tmp_path: Path, traced: Traced) -> None:
    run = traced(tmp_path, record=("gradients", "epoch-gradients"), optimizer="momentum")
    for epoch in range(3):
        before, consumed = run.gradient(epoch), run.epoch_gradient(epoch + 1)
        assert all(torch.equal(before[name], consumed[name]) for name in before)
    assert run.info["consumes_recorded_gradient"] is True


@pytest.mark.parametrize(
    ("optimizer", "batch_size"), [("gd", None), ("momentum", None), ("momentum", 8), ("adam", None), ("adam", 8)]
)
@pytest.mark.parametrize("record", [("gradients",), ()])
def test_recording_at_steps_does_not_change_the_training(
    tmp_path: Path, traced: Traced, optimizer: str, batch_size: int | None, record: tuple[str, ...]
) -> None:
    """Between recorded steps the gradient must be computed anew."""
    options = {"optimizer": optimizer, "batch_size": batch_size, "epochs": 6, "record": record}
    whole = traced(tmp_path / "epochs", **options)
    steps = 6 if batch_size is None else 18
    at = ",".join(map(str, range(1, steps + 1)))
    fine = traced(tmp_path / "all", **options, record_at=f"steps:{at}")
    coarse = traced(tmp_path / "some", **options, record_at=f"steps:1,4,{steps}")
    assert (fine.unit, fine.epochs, coarse.epochs) == ("step", list(range(steps + 1)), [0, 1, 4, steps])
    for step in coarse.epochs:
        assert all(torch.equal(tensor, fine.weights(step)[name]) for name, tensor in coarse.weights(step).items())
    assert all(torch.equal(tensor, whole.weights(6)[name]) for name, tensor in coarse.weights(steps).items())
    assert coarse.having("gradient") == (coarse.epochs if record else [])


@pytest.mark.parametrize("keep", ["last:2", "epochs:0,1,5"])
def test_keep(tmp_path: Path, traced: Traced, keep: str) -> None:
    run = traced(tmp_path, keep=keep, epochs=6)
    kept = {"last:2": [0, 5, 6], "epochs:0,1,5": [0, 1, 5, 6]}[keep]
    assert run.epochs == run.having("gradient") == kept
    for folder in ("weights", "gradients"):
        assert sorted(path.stem for path in (tmp_path / folder).iterdir()) == [f"epoch-{e:04d}" for e in kept]
    assert len(run.metrics) == 7
    assert len(run.steps()) == 6
    assert run.problems() == []


class Interrupted(Exception):
    pass


def stop_at(epoch: int) -> Callable[[Any], None]:
    def on_epoch(progress: Any) -> None:
        if progress.epoch == epoch:
            raise Interrupted

    return on_epoch


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "gd"},
        {"optimizer": "momentum", "batch_size": 6, "record": ("gradients", "epoch-gradients", "batches")},
        {"optimizer": "adam", "batch_size": 6, "keep": "last:2"},
        {"optimizer": "adamw", "record": ()},
        {"optimizer": "nesterov", "batch_size": 6, "record_at": "steps:1,2,6,7,11"},
        {"optimizer": "gd", "record_at": "steps:1,2,4"},
        {"optimizer": "sgd", "batch_size": 6, "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_resumed_trace_ends_with_the_same_bits(
    tmp_path: Path, make_recipe: MakeRecipe, bits: Bits, options: dict[str, Any]
) -> None:
    chosen = {"epochs": 5, "chunk_size": 8, **options}
    trace(prepare(make_recipe(), TraceOptions(**chosen)), tmp_path / "whole")
    for epoch in (1, 2, 4):
        torch.manual_seed(epoch)
        with pytest.raises(Interrupted):
            trace(prepare(make_recipe(), TraceOptions(**chosen, resume=True)), tmp_path / "parts", stop_at(epoch))
        assert Run.open(tmp_path / "parts").problems() == []
    trace(prepare(make_recipe(), TraceOptions(**chosen, resume=True)), tmp_path / "parts")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_a_resume_remembers_what_was_planned(tmp_path: Path, make_recipe: MakeRecipe, bits: Bits) -> None:
    """Neither the number of epochs nor the measured chunk size has to be said again."""
    recipe = make_recipe(epochs=2)
    trace(prepare(recipe, TraceOptions(epochs=5, chunk_size=3)), tmp_path / "whole")
    with pytest.raises(Interrupted):
        trace(prepare(recipe, TraceOptions(epochs=5, chunk_size=3)), tmp_path / "parts", stop_at(1))
    seen = []
    run = trace(prepare(recipe, TraceOptions(resume=True)), tmp_path / "parts", seen.append)
    assert run.epochs == [0, 1, 2, 3, 4, 5]
    assert [(progress.epoch, progress.epochs) for progress in seen] == [(e, 5) for e in range(2, 6)]
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


def test_a_finished_run_can_be_made_longer(tmp_path: Path, traced: Traced, bits: Bits) -> None:
    traced(tmp_path / "whole", epochs=5, optimizer="adam")
    traced(tmp_path / "parts", epochs=2, optimizer="adam")
    run = traced(tmp_path / "parts", epochs=5, optimizer="adam", resume=True)
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")
    assert (run.info["epochs"], run.manifest.finished) == (5, True)
    run = traced(tmp_path / "parts", epochs=2, optimizer="adam", resume=True)
    assert (run.info["epochs"], run.epochs[-1], run.manifest.finished) == (5, 5, True)


def test_a_resume_with_other_choices_is_refused(tmp_path: Path, traced: Traced, make_recipe: MakeRecipe) -> None:
    options = {"optimizer": "sgd", "batch_size": 6}
    traced(tmp_path, **options)
    torch.manual_seed(9)
    other = make_recipe(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)))
    same = make_recipe()
    with torch.no_grad():
        same.model[2].bias.add_(1)
    moved = make_recipe()
    inputs, targets = moved.train.batch(0, 20)
    moved = Recipe(moved.model, nn.CrossEntropyLoss(), (inputs * 2, targets), name="small", lr=0.1)
    for change, words in [
        ({"lr": 0.2}, "another update rule"),
        ({"optimizer": "adam"}, "another update rule"),
        ({"weight_decay": 0.1}, "another update rule"),
        ({"seed": 1}, "another seed"),
        ({"batch_size": 7}, "another batch size"),
        ({"batch_size": None}, r"another batch size \(6, now None\)"),
        ({"record": ("epoch-gradients",)}, "another choice of what to record"),
        ({"record_at": "steps:1"}, "another unit of recording"),
        ({"dtype": "float64"}, "records another model"),
        ({"recipe": other}, "records another model"),
        ({"recipe": same}, "records another model .2.bias differs"),
        ({"recipe": moved}, "another data"),
    ]:
        with pytest.raises(TvgradError, match=words):
            traced(tmp_path, **{**options, "epochs": 9, **change}, resume=True)
    assert Run.open(tmp_path).epochs == [0, 1, 2, 3]
    assert Run.open(tmp_path).problems() == []


class Wild(nn.Module):
    """One number whose loss is its fourth power: gradient descent with a large rate leaves every bound."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([2.0]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (self.x**4).expand(len(inputs))


@pytest.mark.parametrize("record", [("gradients",), ()])
def test_divergence_stops_with_what_is_finite_recorded(tmp_path: Path, record: tuple[str, ...]) -> None:
    recipe = Recipe(Wild(), lambda output, _: output.mean(), (torch.zeros(4, 1), torch.zeros(4)), name="wild", lr=1.0)
    with pytest.raises(
        TvgradError, match=r"of wild is .* after epoch \d: lower --lr; all before is recorded"
    ) as caught:
        trace(prepare(recipe, TraceOptions(epochs=20, record=record)), tmp_path)
    assert "\n" not in str(caught.value)
    run = Run.open(tmp_path)
    assert len(run.epochs) >= 2
    assert run.problems() == []
    assert not run.manifest.finished
    for epoch in run.epochs:
        assert all(tensor.isfinite().all() for tensor in run.weights(epoch).values())
    with pytest.raises(TvgradError, match="lower --lr"):
        trace(prepare(recipe, TraceOptions(epochs=20, record=record, resume=True)), tmp_path)
    assert Run.open(tmp_path).epochs == run.epochs


def test_a_metric_neither_moves_statistics_nor_sees_dropout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    data = torch.randn(16, 4), torch.randint(0, 2, (16,))
    modes = []

    def metric(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        modes.append(True)
        return accuracy(output, target)

    options = TraceOptions(optimizer="sgd", batch_size=8, epochs=2, chunk_size=8)
    allow = ("batchnorm", "dropout")
    with_test = Recipe(
        model, nn.CrossEntropyLoss(), data, test=(data[0] + 9, data[1]), name="a", metric=metric, allow=allow
    )
    without = Recipe(model, nn.CrossEntropyLoss(), data, name="b", allow=allow)
    one = trace(prepare(with_test, options), tmp_path / "one")
    other = trace(prepare(without, options), tmp_path / "other")
    assert modes
    assert one.having("buffers") == [1, 2]
    for epoch in (1, 2):
        left, right = one.complete(epoch), other.complete(epoch)
        assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    pretrained = accuracy(copy.deepcopy(model).eval()(data[0] + 9), data[1])
    assert one.metrics["metric"][0] == pytest.approx(float(pretrained))
    tuned = prepare(with_test, options).model
    tuned.load_state_dict(one.complete(2))
    expected = accuracy(tuned.eval()(data[0] + 9), data[1])
    assert one.metrics["metric"][2] == pytest.approx(float(expected))
    assert one.info["allowed"] == ["batchnorm", "dropout"]


def test_the_state_of_adam_is_kept(tmp_path: Path, traced: Traced) -> None:
    import json

    from safetensors.torch import load_file

    traced(tmp_path, optimizer="adam", batch_size=6)
    state = load_file(tmp_path / "state" / "epoch-0003.safetensors")
    assert {"optimizer.0.exp_avg", "optimizer.1.exp_avg_sq", "optimizer.0.step", "rng.torch"} <= set(state)
    assert state["optimizer.0.step"] == 12
    assert json.loads((tmp_path / "state" / "epoch-0003.json").read_text())["groups"][0]["betas"] == [0.9, 0.999]
    assert [path.stem for path in (tmp_path / "state").iterdir()] == ["epoch-0003", "epoch-0003"]


def test_steps_and_metrics_are_tables(tmp_path: Path, traced: Traced, make_recipe: MakeRecipe) -> None:
    run = traced(tmp_path, make_recipe(test=make_recipe().train, metric=accuracy), lr=1 / 3)
    with open(tmp_path / "metrics.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == run.metrics["loss"].tolist()
    assert all(float(row["seconds"]) >= 0 for row in rows)
    assert [float(row["accuracy"]) for row in rows] == run.metrics["accuracy"].tolist()
    assert (tmp_path / "steps" / "epoch-0001.csv").read_text() == (
        "step,lr,batch_size,clip_factor,loss_scale,skipped\n1,0.3333333333333333,20,,,\n"
    )


def test_the_recipe_is_left_as_it_is(traced: Traced, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    traced(tmp_path, recipe, dtype="float64")
    assert all(torch.equal(tensor, recipe.model.state_dict()[name]) for name, tensor in before.items())
    assert recipe.model[0].weight.grad is None


@pytest.mark.parametrize("options", [{"optimizer": "gd"}, {"optimizer": "sgd", "batch_size": 8}], ids=["gd", "sgd"])
def test_the_metric_at_recorded_steps(
    tmp_path: Path, traced: Traced, make_recipe: MakeRecipe, options: dict[str, Any]
) -> None:
    recipe = make_recipe(test=make_recipe().train, metric=accuracy)
    run = traced(tmp_path, recipe, record_at="steps:1,3", **options)
    assert run.epochs == [0, 1, 3]
    for step in (0, 1, 3):
        output = torch.func.functional_call(recipe.model, run.weights(step), (recipe.train.batch(0, 20)[0],))
        expected = accuracy(output, recipe.train.batch(0, 20)[1])
        assert run.point(step).metrics["accuracy"] == pytest.approx(float(expected))


def test_a_full_batch_by_another_name(tmp_path: Path, traced: Traced) -> None:
    """A batch size of all the samples or more is full-batch training: exact in its first epoch."""
    run = traced(tmp_path, optimizer="sgd", batch_size=20)
    assert (run.info["batch_size"], len(run.steps())) == (None, 3)
    assert tvgrad.check_one_epoch(run).holds == "exact"


def test_an_estimate_that_does_not_fit_stops_before_anything_is_written(
    tmp_path: Path, traced: Traced, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced(tmp_path / "run", epochs=20)
    taken = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors"))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=taken // 3))
        with pytest.raises(TvgradError, match=r"the run needs about .* [kM]?B and .*new has room for .* [kM]B: "):
            traced(tmp_path / "new", epochs=20)
        assert not (tmp_path / "new").exists()
        traced(tmp_path / "short", epochs=20, keep="last:2")
        traced(tmp_path / "steps", epochs=20, record_at="steps:1,20")
        # What is there already does not have to fit again.
        assert traced(tmp_path / "run", epochs=21, resume=True).epochs[-1] == 21


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "sgdm"}, "unknown optimizer 'sgdm': choose from gd, sgd"),
        ({"lr": 0.0}, "--lr must be a positive number, not 0.0"),
        ({"lr": float("nan")}, "--lr must be a positive number, not nan"),
        ({"epochs": 0}, "--epochs must be a whole number of at least 1, not 0"),
        ({"optimizer": "sgd", "batch_size": 0}, "--batch-size must be a whole number of at least 1, not 0"),
        ({"batch_size": 4}, "gd is full-batch gradient descent: leave --batch-size out, or use --optimizer sgd"),
        ({"optimizer": "sgd", "record": ("batches",)}, "--record batches is for mini-batches"),
        ({"dtype": "float16"}, "unknown dtype 'float16': choose from float32, float64, bfloat16"),
        ({"chunk_size": 0}, "the chunk size must be at least 1, not 0"),
        ({"keep": "few"}, "--keep 'few' is not understood"),
        ({"allow": ("everything",)}, "nothing called 'everything' can be allowed"),
        ({"device": "abacus"}, r"device 'abacus' is not available here \(.*\): choose auto or cpu"),
        (
            {"record_at": "steps:11", "optimizer": "sgd", "batch_size": 5, "epochs": 2},
            "--record-at steps:11 names no step that is reached: 2 epochs of 4 steps are 8",
        ),
    ],
)
def test_options_out_of_range(make_recipe: MakeRecipe, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        prepare(make_recipe(), TraceOptions(**options))
