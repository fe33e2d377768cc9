"""Rates that rise and fall, and decay of matrices alone, against PyTorch's and transformers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tvgrad import Run, check_one_epoch, error_budget
from tvgrad.errors import TvgradError
from tvgrad.problem.rate_schedule import RateSchedule
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.planned_rule import planned_rule, require_one_rate
from tvgrad.record.training_loop import prepare, trace

SAMPLES, EPOCHS, BATCH, RATE, DECAY = 22, 3, 8, 0.02, 0.3


def recipe(
    schedule: RateSchedule | None = None, weight_decay: float | None = DECAY, decay_vectors: bool = False
) -> Recipe:
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, 4)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
    data = inputs, torch.arange(SAMPLES) % 3
    how = {"optimizer": "adamw", "lr": RATE, "epochs": EPOCHS, "batch_size": BATCH, "name": "small"}
    return Recipe(
        model,
        nn.CrossEntropyLoss(),
        data,
        weight_decay=weight_decay,
        decay_vectors=decay_vectors,
        schedule=schedule,
        **how,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = prepare(recipe(RateSchedule("cosine", 0.3)), TraceOptions(dtype="float64", record=("gradients", "batches")))
    return trace(made, tmp_path_factory.mktemp("planned") / "run")


@pytest.mark.parametrize("steps", [1, 9, 40])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_rates_are_those_of_transformers(steps: int, warmup: float) -> None:
    library = pytest.importorskip("transformers")
    for shape, name in {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
        given = {"num_warmup_steps": -int(-steps * warmup // 1), "num_training_steps": steps}
        scheduler = library.get_scheduler(name, optimizer, **given)
        wanted = []
        for _ in range(steps):
            wanted.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        assert RateSchedule(shape, warmup).rates(RATE, steps) == pytest.approx(wanted, rel=1e-14, abs=1e-18)


def test_the_training_is_that_of_two_groups(run: Run) -> None:
    """PyTorch's own AdamW, with decay on matrices alone, walks from theta_0 to the same bits."""
    own = recipe()
    model = own.model.double()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    rates = iter(RateSchedule("cosine", 0.3).rates(RATE, 9))
    inputs, targets = own.train.batch(0, SAMPLES)
    for epoch in range(1, EPOCHS + 1):
        for rows in run.batches(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows].double()), targets[rows]).backward()
            for group in optimizer.param_groups:
                group["lr"] = next(rates) if group is optimizer.param_groups[0] else optimizer.param_groups[0]["lr"]
            optimizer.step()
        recorded = run.weights(epoch)
        assert all(torch.equal(recorded[name], parameter) for name, parameter in model.named_parameters())


def test_verdict_and_budget_follow_both_groups(run: Run) -> None:
    assert check_one_epoch(run).verdicts[0].holds != "fails"
    budget = error_budget(run, recipe(RateSchedule("cosine", 0.3)).objective(torch.float64))
    assert budget.closure < 1e-9
    assert any(row.term == "weight decay" and row.norm > 0 for row in budget.rows)


def test_options_come_before_the_recipe() -> None:
    mine = recipe(RateSchedule("linear", 0.2))
    assert planned_rule(mine, TraceOptions(weight_decay=0.5), 2, None).decoupled_decay == 0.5
    other = planned_rule(mine, TraceOptions(optimizer="sgd"), 2, None)
    assert (other.lr, other.decays) == (RATE, False)
    require_one_rate(mine, other)
    with pytest.raises(TvgradError, match="--optimizer gd"):
        require_one_rate(mine, planned_rule(mine, TraceOptions(), 2, None))
    with pytest.raises(TvgradError, match="--optimizer gd"):
        require_one_rate(recipe(), planned_rule(recipe(), TraceOptions(), 2, None))
    plain = recipe(decay_vectors=True)
    require_one_rate(plain, planned_rule(plain, TraceOptions(), 2, None))


@pytest.mark.parametrize("wrong", [("steep", 0.0), ("linear", 1.0), ("linear", -0.1), ("linear", float("nan"))])
def test_odd_schedules_are_refused(wrong: tuple[str, float]) -> None:
    with pytest.raises(TvgradError, match=r"choose from|share of the steps"):
        RateSchedule(*wrong)
    with pytest.raises(TvgradError, match="schedule"):
        recipe("linear")  # type: ignore[arg-type]
