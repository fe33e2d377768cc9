"""The callbacks of training libraries, where those are installed; what they share, everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tvgrad.integrations.lightning
import tvgrad.integrations.transformers
from tvgrad import Run
from tvgrad.errors import TvgradError
from tvgrad.integrations.training_recorder import TrainingRecorder
from tvgrad.store.measured import EXACT


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.named_parameters()}


def check(record: Run, truth: list[dict[str, torch.Tensor]]) -> None:
    """The run holds the weights that the training had, and plain SGD moved by the gradients that it consumed."""
    assert not record.problems()
    assert record.epochs == list(range(len(truth)))
    for epoch, weights in enumerate(truth):
        recorded = record.weights(epoch)
        assert recorded.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in recorded.items())
        if epoch:
            for name, total in record.epoch_gradient(epoch).items():
                moved = (truth[epoch - 1][name].double() - weights[name].double()) / 0.1
                torch.testing.assert_close(total.double(), moved, rtol=0, atol=1e-5)


def affine(inputs: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs.double() @ weights["layer.weight"].T + weights["layer.bias"]


def check_same(alone: list[dict[str, torch.Tensor]], watched: list[dict[str, torch.Tensor]]) -> None:
    """A training and one that was recorded have the same bits."""
    for before, after in zip(alone, watched, strict=True):
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def check_gradients(record: Run, loss: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> None:
    """The recorded full-batch gradients are autograd's of this loss, to float32 rounding."""
    assert record.having("gradient") == record.epochs
    for epoch in record.epochs:
        weights = {name: tensor.double().requires_grad_() for name, tensor in record.weights(epoch).items()}
        truth = dict(zip(weights, torch.autograd.grad(loss(weights), list(weights.values())), strict=True))
        for name, tensor in record.gradient(epoch).items():
            torch.testing.assert_close(tensor.double(), truth[name], rtol=0, atol=1e-6)
        assert record.info["measured_gradients"][str(epoch)]["kind"] == EXACT


def test_steps_are_counted_once_where_gradients_are_accumulated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = TrainingRecorder(tmp_path / "run", {"record_at": "steps:1,2"})
    training.begin(model, [optimizer], clips=True)
    for batch in range(6):
        model(torch.randn(4, 3)).square().mean().backward()
        if batch % 2:
            optimizer.step()
            optimizer.zero_grad()
        training.after_batch()
    training.finish()
    training.finish()
    record = Run.open(tmp_path / "run")
    assert record.epochs == [0, 1, 2]
    assert record.manifest.finished
    assert record.info["clipping_unrecorded"]


def test_full_gradients_by_a_word_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match="full_gradients='steps' is not understood"):
        TrainingRecorder(tmp_path / "run", {"full_gradients": "steps"})


def test_several_optimizers_are_one_run(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizers = [
        torch.optim.SGD([tensor], lr=rate) for tensor, rate in zip(model.parameters(), (0.1, 0.2), strict=True)
    ]
    training = TrainingRecorder(tmp_path / "run", {})
    training.begin(model, optimizers, clips=False)
    for _ in range(2):
        for optimizer in optimizers:  # each with a backward pass of its own, as in manual optimization
            model.zero_grad()
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
        training.after_batch()
    training.after_epoch({})
    training.finish()
    record = Run.open(tmp_path / "run")
    assert record.point(record.epochs[-1]).steps == 2
    assert all(torch.equal(record.weights(record.epochs[-1])[name], one) for name, one in model.named_parameters())
    moved, consumed = record.task_vector(record.epochs[-1]), record.epoch_gradient(record.epochs[-1])
    for name, rate in (("weight", 0.1), ("bias", 0.2)):
        torch.testing.assert_close(moved[name].double(), -rate * consumed[name].double(), rtol=0, atol=1e-6)


def test_a_training_without_an_optimizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TvgradError, match="the training has no optimizer"):
        TrainingRecorder(tmp_path / "run", {}).begin(nn.Linear(3, 1), [], clips=False)
    assert not (tmp_path / "run").exists()


def test_what_a_library_logs_goes_to_its_epoch(tmp_path: Path) -> None:
    """Logged inside an epoch, or after its end (an evaluation): both are of that epoch."""
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = TrainingRecorder(tmp_path / "run", {})
    training.begin(model, [optimizer], clips=False)
    training.log({"eval_loss": 9.0})
    for epoch in (1, 2):
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        training.after_batch()
        training.log({"loss": 0.5 / epoch, "epoch": epoch, "learning_rate": 0.1, "note": "text"})
        training.after_epoch({})
        training.log({"eval_accuracy": 0.25 * epoch, "eval_runtime": 1.0, "epoch": epoch})
    training.finish()
    metrics = Run.open(tmp_path / "run").metrics.drop(columns="seconds")
    assert list(metrics.columns) == ["epoch", "loss", "eval_accuracy"]
    assert metrics["loss"].tolist()[1:] == [0.5, 0.25]
    assert metrics["eval_accuracy"].tolist()[1:] == [0.25, 0.5]
    assert metrics.iloc[0].isna().sum() == 2


def test_an_error_never_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = TrainingRecorder(tmp_path / "run", {})
    with pytest.warns(UserWarning, match=r"recording stops, because .*other files.*the training goes on"):
        training.attempt(lambda: training.begin(model, [optimizer], clips=False))
    training.attempt(training.after_batch)
    training.attempt(lambda: training.after_epoch({}))
    training.attempt(training.finish)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_an_error_later_keeps_what_was_recorded(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    training = TrainingRecorder(tmp_path / "run", {"finite": True})
    training.begin(model, [torch.optim.SGD(model.parameters(), lr=0.1)], clips=False)
    training.after_epoch({})
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    with pytest.warns(UserWarning, match=r"weight of run is not finite .*keeps what was recorded before"):
        training.attempt(lambda: training.after_epoch({}))
    record = Run.open(tmp_path / "run")
    assert (record.epochs, record.manifest.finished) == ([0, 1], False)


def test_a_strict_callback_ends_the_training(tmp_path: Path) -> None:
    training = TrainingRecorder(tmp_path / "run", {"strict": True})
    with pytest.raises(TvgradError, match="no optimizer"):
        training.attempt(lambda: training.begin(nn.Linear(3, 1), [], clips=False))


@pytest.mark.parametrize(
    ("module", "base", "extra"),
    [
        (tvgrad.integrations.transformers, "TrainerCallback", "hf"),
        (tvgrad.integrations.lightning, "Callback", "lightning"),
    ],
    ids=["transformers", "lightning"],
)
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, module: Any, base: str, extra: str) -> None:
    monkeypatch.setattr(module, base, None)
    with pytest.raises(TvgradError, match=rf"pip install 'tvgrad\[{extra}\]'"):
        module.RecorderCallback("run")


@pytest.mark.slow
def test_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.layer(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    truth: list[dict[str, torch.Tensor]] = []

    class Truth(transformers.TrainerCallback):  # type: ignore[misc,name-defined]
        def on_train_begin(self, *_: Any, model: nn.Module, **__: Any) -> None:
            truth.append(copies(model))

        def on_epoch_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
            truth.append(copies(model))

    torch.manual_seed(0)
    inputs = torch.randn(30, 3)
    begun = Model()
    data = [{"x": x, "labels": (x.sum() > 0).long()} for x in inputs]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=3,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    alone: list[dict[str, torch.Tensor]] = []
    recorder = tvgrad.integrations.transformers.RecorderCallback(tmp_path / "run", full_gradients="epochs")
    for callbacks in ([], [recorder]):
        alone, model = truth[:], copy.deepcopy(begun)
        truth.clear()
        transformers.Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Truth(), *callbacks]).train()
    check_same(alone, truth)
    record = Run.open(tmp_path / "run")
    check(record, truth)
    targets = torch.stack([one["labels"] for one in data])
    check_gradients(record, lambda weights: nn.functional.cross_entropy(affine(inputs, weights), targets))
    assert record.info["optimizer"] == "SGD"
    assert [point.steps for point in record.points] == [0, 2, 4]
    assert record.manifest.finished


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_lightning(tmp_path: Path, fails: bool) -> None:
    lightning = pytest.importorskip("lightning")
    torchmetrics = pytest.importorskip("torchmetrics")
    totals: list[float] = []
    truth: list[dict[str, torch.Tensor]] = []

    class Model(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)
            self.seen = torchmetrics.SumMetric()

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            if fails and self.current_epoch == 1:
                raise RuntimeError("the module's own")
            self.seen.update(len(batch[0]))
            loss = (self.layer(batch[0]) - batch[0].sum(1, keepdim=True)).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def on_train_start(self) -> None:
            truth.append(copies(self))

        def on_train_epoch_end(self) -> None:
            truth.append(copies(self))
            totals.append(float(self.seen.compute()))

    torch.manual_seed(0)
    inputs = torch.randn(20, 3)
    callback = tvgrad.integrations.lightning.RecorderCallback(tmp_path / "run", full_gradients="epochs")
    begun, alone = Model(), list[dict[str, torch.Tensor]]()
    for callbacks in ([], [callback]):
        alone = truth[:]
        truth.clear()
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accumulate_grad_batches=2,
            callbacks=callbacks,
            default_root_dir=str(tmp_path),
        )
        torch.manual_seed(1)
        loader = DataLoader(TensorDataset(inputs), batch_size=4, shuffle=True)
        if fails:
            with pytest.raises(RuntimeError, match="the module's own"):
                trainer.fit(copy.deepcopy(begun), loader)
        else:
            trainer.fit(copy.deepcopy(begun), loader)
    check_same(alone, truth)
    assert totals == [20.0] * 2 if fails else [20.0, 40.0] * 2, "metrics of the module's own count its training alone"
    record = Run.open(tmp_path / "run")
    check(record, truth)
    assert record.manifest.finished is not fails
    assert [point.steps for point in record.points] == ([0, 3] if fails else [0, 3, 6])
    assert "loss" in record.points[1].metrics
    check_gradients(
        record, lambda weights: (affine(inputs, weights) - inputs.double().sum(1, keepdim=True)).square().mean()
    )
