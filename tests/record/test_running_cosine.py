"""The cosine that is shown while a training goes on, against numpy's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tvgrad
from tvgrad.record.running_cosine import RunningCosine


def test_it_is_the_cosine_of_the_task_vector_and_minus_the_first_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2), chunk_size=3)
    gradient = np.concatenate([part.numpy().ravel() for part in objective.gradient().values()]).astype(np.float64)
    with tvgrad.Recorder(tmp_path / "run", model, objective=objective) as recorder:
        followed = RunningCosine(tvgrad.Run.open(tmp_path / "run"), dict(model.named_parameters()))
        assert math.isnan(followed.value())  # nothing has moved
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        run = tvgrad.Run.open(tmp_path / "run")
        start = np.concatenate([part.numpy().ravel() for part in run.weights(0).values()]).astype(np.float64)
        now = np.concatenate([part.detach().numpy().ravel() for part in model.parameters()]).astype(np.float64)
        expected = -(now - start) @ gradient / np.linalg.norm(now - start) / np.linalg.norm(gradient)
        assert math.isclose(followed.value(), expected, rel_tol=1e-12)
        recorder.end_epoch()
    assert math.isnan(RunningCosine(trained_without_gradient(tmp_path), dict(model.named_parameters())).value())


def test_files_that_are_taken_away_end_no_training(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), (torch.randn(6, 3), torch.arange(6) % 2))
    with tvgrad.Recorder(tmp_path / "run", model, objective=objective):
        followed = RunningCosine(tvgrad.Run.open(tmp_path / "run"), dict(model.named_parameters()))
        (tmp_path / "run" / "weights" / "epoch-0000.safetensors").unlink()
        assert math.isnan(followed.value())
        assert math.isnan(followed.value())


def trained_without_gradient(tmp_path: Path) -> tvgrad.Run:
    with tvgrad.Recorder(tmp_path / "bare", nn.Linear(3, 2)):
        pass
    return tvgrad.Run.open(tmp_path / "bare")
