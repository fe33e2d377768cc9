"""The mean loss of an epoch's steps, and what a Trainer logs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integrations.script.script_runs import TRACE, run
from tvgrad import Run
from tvgrad.integrations.logged import numbers_of_the_model
from tvgrad.integrations.script.losses import Losses

Write = Callable[[str], list[str]]


def test_a_step_has_the_sum_of_its_backward_passes() -> None:
    losses = Losses()
    for step in range(3):
        for part in (1.0, 0.5):
            loss = torch.tensor(part + step, requires_grad=True)
            losses.begin_backward(loss, None)
            loss.detach().zero_()  # a script may use its memory again
            losses.end_backward(counts=True)
        losses.begin_backward(torch.tensor(100.0), None)
        losses.end_backward(counts=False)  # of another model
        losses.begin_backward((torch.ones(2),), (torch.ones(2),))
        losses.end_backward(counts=True)  # no loss
        losses.end_step(skipped=step == 2)
    assert losses.metrics() == {"train_loss": (1.5 + 3.5) / 2}
    losses.clear()
    assert losses.metrics() == {}
    losses.begin_backward([torch.tensor(8.0)], None)
    losses.end_backward(counts=True)
    losses.scale = 4.0
    losses.end_step()
    assert losses.metrics() == {"train_loss": 2.0}


def test_what_describes_the_model() -> None:
    logged = {"loss": 0.5, "eval_accuracy": 1, "epoch": 2.0, "train_runtime": 3.0, "learning_rate": 0.1, "note": "a"}
    assert numbers_of_the_model(logged) == {"loss": 0.5, "eval_accuracy": 1.0}


@pytest.mark.slow
def test_the_losses_of_a_script(write: Write, tmp_path: Path) -> None:
    command = write("""
means = []
for epoch in range(2):
    seen = []
    for a, b in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(a), b)
        loss.backward()
        optimizer.step()
        seen.append(loss.double().item())
    means.append(sum(seen) / len(seen))
torch.save(means, "means.pt")
""")
    run([*TRACE, "--out", "run", "--", *command], tmp_path)
    record = Run.open(tmp_path / "run")
    means = torch.load(tmp_path / "means.pt", weights_only=True)
    assert record.metrics["train_loss"].tolist()[1:] == pytest.approx(means, rel=1e-12)


@pytest.mark.slow
def test_what_a_trainer_logs(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    command = write("""
del optimizer  # of a model that is not trained
from transformers import Trainer, TrainingArguments
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)
    def forward(self, x=None, labels=None):
        return {"loss": nn.functional.mse_loss(self.layer(x), labels), "logits": self.layer(x)}
rows = [{"x": a, "labels": b} for a, b in data]
given = TrainingArguments("out", num_train_epochs=2, per_device_train_batch_size=5, logging_steps=2, report_to=[],
    save_strategy="no", eval_strategy="epoch", use_cpu=True, disable_tqdm=True)
trainer = Trainer(Model(), given, train_dataset=rows, eval_dataset=rows,
    compute_metrics=lambda made: {"size": float(len(made.predictions))})
trainer.train()
import json
json.dump(trainer.state.log_history, open("history.json", "w"))
""")
    done = run([*TRACE, "--out", "run", "--", *command], tmp_path)
    record = Run.open(tmp_path / "run")
    table = record.metrics
    assert table["eval_size"].tolist()[1:] == [20.0, 20.0], done.stderr
    assert {"eval_loss", "loss", "train_loss"} <= set(table)
    assert not {"epoch.1", "learning_rate", "eval_runtime"} & set(table)
