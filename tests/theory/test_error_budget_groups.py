"""Error budgets of trainings whose groups of parameters have rules of their own, in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import recipe
from tvgrad.theory.explain import explain

BATCH = 10


def grouped_run(
    folder: Path, made: tvgrad.Recipe, kind: type[torch.optim.Optimizer], rates: tuple[float, float]
) -> tvgrad.Run:
    """Two epochs in which the first layer decays and the second has another rate."""
    model = copy.deepcopy(made.model)
    groups = [
        {"params": model[0].parameters(), "lr": rates[0], "weight_decay": 0.1},
        {"params": model[2].parameters(), "lr": rates[1], "weight_decay": 0.0},
    ]
    optimizer = kind(groups)  # type: ignore[call-arg]
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    objective = tvgrad.Objective(model, nn.CrossEntropyLoss(), made.train, chunk_size=12)
    with tvgrad.Recorder(folder / "run", model, optimizer, objective, record=("gradients", "batches")) as recorder:
        for epoch in range(2):
            order = torch.randperm(len(made.train), generator=torch.Generator().manual_seed(epoch))
            for indices in order.split(BATCH):
                recorder.note_batch(indices)
                optimizer.zero_grad()
                inputs, targets = made.train.subset(indices).batch(0, len(indices))
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
                scheduler.step()
                recorder.note_step(batch_size=len(indices))
            recorder.end_epoch()
    return tvgrad.Run.open(folder / "run")


@pytest.mark.parametrize(("kind", "rates"), [(torch.optim.SGD, (0.02, 0.05)), (torch.optim.AdamW, (1e-3, 1e-3))])
def test_the_budget_closes_and_ends_at_the_gradient_times_each_groups_rates(
    kind: type[torch.optim.Optimizer], rates: tuple[float, float], tmp_path: Path
) -> None:
    made = recipe()
    made = tvgrad.Recipe(
        made.model.double(),
        nn.CrossEntropyLoss(),
        tuple(t.double() if t.is_floating_point() else t for t in made.train.batch(0, len(made.train))),
        lr=1e-3,
    )
    run = grouped_run(tmp_path, made, kind, rates)
    found = explain(run, made.objective())
    assert found.budget.closure < 1e-9
    assert "weight decay" in {row.term for row in found.budget.rows}
    assert max(row.norm for row in found.budget.rows if row.term == "update rounding") < 1e-12
    said = "; ".join(found.sentences)
    assert ("rules of their own" if kind is torch.optim.SGD else "not a linear update rule") in said
    if kind is not torch.optim.SGD:
        return
    # The last node, written out: each layer's sum of rates times its part of the full-batch gradient.
    steps = run.points[-1].steps
    model, loss = copy.deepcopy(made.model), nn.CrossEntropyLoss()
    inputs, targets = made.train.batch(0, len(made.train))
    loss(model(inputs), targets).backward()
    apart = 0.0
    for name, parameter in model.named_parameters():
        rate = rates[0] if name.startswith("0.") else rates[1]
        last = -sum(rate * 0.9**step for step in range(steps)) * parameter.grad
        apart += float((run.task_vector(2)[name] - last).square().sum())
    assert found.budget.residual_norms[2] == pytest.approx(apart**0.5, rel=1e-9)


def test_a_momentum_that_changes_is_no_rule(tmp_path: Path) -> None:
    made = recipe()
    model = copy.deepcopy(made.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer) as recorder:
        for momentum in (0.9, 0.8):
            optimizer.param_groups[0]["momentum"] = momentum
            model(torch.ones(2, 6)).sum().backward()
            optimizer.step()
        recorder.end_epoch()
    with pytest.raises(tvgrad.TvgradError, match="trained with a momentum that changed"):
        tvgrad.error_budget(tvgrad.Run.open(tmp_path / "run"), made.objective())
