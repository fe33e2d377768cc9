"""The rounding of a gradient that was recorded in a narrow format is measured against float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tvgrad.record import gradient_rounding as module
from tvgrad.record.gradient_rounding import gradient_rounding
from tvgrad.store.run import Run

INPUTS, TARGETS = torch.linspace(-1, 1, 150).reshape(30, 5), torch.arange(30) % 3


def objective_in(dtype: torch.dtype) -> tvgrad.Objective:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    return tvgrad.Objective(model, nn.CrossEntropyLoss(), (INPUTS.to(dtype), TARGETS), chunk_size=7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_the_deviation_from_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    objective = objective_in(dtype)
    with tvgrad.Recorder(tmp_path / "run", objective.model, objective=objective):
        pass
    run = Run.open(tmp_path / "run")
    wide = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    wide.load_state_dict(run.weights(0))
    nn.functional.cross_entropy(wide(INPUTS.to(dtype).double()), TARGETS).backward()
    truth = torch.cat([parameter.grad.flatten() for parameter in wide.parameters() if parameter.grad is not None])
    recorded = torch.cat([run.gradient(0)[name].double().flatten() for name, _ in wide.named_parameters()])
    expected = float((recorded - truth).norm() / truth.norm())
    assert expected > 1e-4
    assert run.info["gradient_rounding"] == pytest.approx(expected, rel=1e-2)
    assert all(parameter.dtype == dtype for parameter in objective.model.parameters())


def test_nothing_is_said_where_it_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = objective_in(torch.float32)
    with tvgrad.Recorder(tmp_path / "run", wide.model, objective=wide):
        pass
    assert "gradient_rounding" not in Run.open(tmp_path / "run").info
    narrow = objective_in(torch.bfloat16)
    weights, gradient = narrow.initial, narrow.gradient()
    assert gradient_rounding(narrow, weights, gradient) is not None
    assert gradient_rounding(narrow, weights, {name: torch.nan * tensor for name, tensor in gradient.items()}) is None
    monkeypatch.setattr(module, "free_bytes", lambda device: 100.0)
    assert gradient_rounding(narrow, weights, gradient) is None
    monkeypatch.undo()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if output.dtype != torch.bfloat16:
            raise TypeError("for bfloat16 only")
        return nn.functional.cross_entropy(output, target)

    stubborn = tvgrad.Objective(narrow.model, loss, (INPUTS.bfloat16(), TARGETS), chunk_size=30)
    assert gradient_rounding(stubborn, weights, gradient) is None
