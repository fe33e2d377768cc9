"""Predictions: orders of convergence, exactness on quadratic losses, counts, thresholds, sentences."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.expansion_models import SAMPLES, distance, linear_regression, objective, order, trained
from tvgrad import TvgradError
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.problem.objective import Objective
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.theory.batch_predictions import predict_batches
from tvgrad.theory.equivalence import check_one_epoch
from tvgrad.theory.expansion import expand
from tvgrad.theory.kinks import kinks_of
from tvgrad.theory.second_order import planned_cost, predict
from tvgrad.update_rules.rules import GD, SGD, Adam, AdamW, Momentum, Nesterov
from tvgrad.vectors.parameters import norm

K = 4
RATES = [2e-3 * 2.0**-power for power in range(5)]
RULES = {
    "gd": GD,
    "heavy ball": lambda lr: Momentum(lr, 0.9),
    "dampened": lambda lr: Momentum(lr, 0.9, dampening=0.4),
    "nesterov": lambda lr: Nesterov(lr, 0.8),
    "schedule": lambda lr: GD([lr * factor for factor in (1.0, 0.2, 1.5, 0.7)]),
    "momentum with schedule": lambda lr: Momentum([lr, 2 * lr, 0.5 * lr, lr], 0.5),
    "coupled decay": lambda lr: SGD(lr, weight_decay=0.3),
    "nesterov with decay": lambda lr: Nesterov(lr, 0.8, weight_decay=0.3),
    "decoupled decay": lambda lr: SGD(lr, weight_decay=0.3, decoupled=True),
    "decoupled with momentum": lambda lr: Momentum(lr, 0.9, weight_decay=0.3, decoupled=True),
}


@pytest.mark.parametrize("kind", ["mlp", "vit"])
@pytest.mark.parametrize("name", RULES)
def test_residuals_are_of_second_and_third_order_in_the_rate(name: str, kind: str) -> None:
    one = objective(kind)
    errors: dict[str, list[float]] = {"order1": [], "order2": [], "quadratic": []}
    for lr in RATES:
        rule = RULES[name](lr)
        made, truth = tvgrad.predict(one, rule, K), trained(one, rule, K)
        for which, found in errors.items():
            found.append(distance(truth, getattr(made, which)))
    assert order(RATES, errors["order1"]) == pytest.approx(2, abs=0.1)
    assert order(RATES, errors["order2"]) == pytest.approx(3, abs=0.1)
    assert order(RATES, errors["quadratic"]) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", ["gd", "nesterov with decay", "decoupled with momentum"])
def test_saturated_norm_differs_from_order_2_in_third_order_alone(name: str) -> None:
    one = objective()
    gaps = []
    for lr in RATES:
        made = tvgrad.predict(one, RULES[name](lr), K, quadratic=False)
        gaps.append(abs(made.row.error_norm - made.row.order2_error_norm))
    assert order(RATES, gaps) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize("name", ["gd", "heavy ball", "nesterov with decay"])
def test_sgd_epoch_in_recorded_order(name: str) -> None:
    one = objective()
    order_of = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))
    batches = list(order_of.split(8))  # the last one is short
    errors: dict[str, list[float]] = {"order1": [], "order2": [], "quadratic": []}
    for lr in RATES:
        rule = RULES[name](lr)
        (made,) = predict_batches(one, rule, [batches], quadratic=True)
        truth = trained(one, rule, len(batches), batches)
        for which, found in errors.items():
            found.append(distance(truth, getattr(made, which)))
    assert order(RATES, errors["order1"]) == pytest.approx(2, abs=0.1)
    assert order(RATES, errors["order2"]) == pytest.approx(3, abs=0.1)
    assert order(RATES, errors["quadratic"]) == pytest.approx(3, abs=0.1)
    # one batch gradient a step, a product a step after the first, and one more for the quadratic model after the second
    assert (made.counts.gradients, made.counts.hvps) == (4, 3 + 2)


@pytest.mark.parametrize("name", RULES)
def test_one_batch_with_everything_is_the_full_batch(name: str) -> None:
    """The closed form in S, Q and D against the recursion, which knows no coefficients."""
    one, rule = objective(), RULES[name](0.05)
    made = tvgrad.predict(one, rule, K)
    *_, followed = predict_batches(one, rule, [[torch.arange(SAMPLES)]] * K, quadratic=True)
    for which in ("order1", "order2", "quadratic"):
        assert distance(getattr(made, which), getattr(followed, which)) <= 1e-13 * norm(made.order1)


def test_two_epochs_on_a_quadratic_loss_are_exact() -> None:
    one = linear_regression()
    decayed = (SGD(0.1, weight_decay=0.2), Nesterov(0.05, 0.9, weight_decay=0.2, decoupled=True))
    for rule in (GD(0.1), GD([0.1, 0.03]), Momentum(0.1, 0.9, dampening=0.5), Nesterov(0.05, 0.9), *decayed):
        truth, made = trained(one, rule, 2), tvgrad.predict(one, rule, 2)
        assert distance(truth, made.order2) <= 1e-12 * norm(truth)
        assert made.row.error_norm == pytest.approx(distance(truth, made.order1), rel=1e-9)
    truth, made = trained(one, GD(0.1), 9), tvgrad.predict(one, GD(0.1), 9)
    assert distance(truth, made.quadratic) <= 1e-12 * norm(truth)
    assert distance(truth, made.order2) > 1e-3 * norm(truth)


@pytest.mark.parametrize(("rule", "products"), [(GD(0.1), 1), (SGD(0.1, 0.1, decoupled=True), 2)])
@pytest.mark.parametrize(("epochs", "quadratic"), [(1, True), (2, True), (7, True), (7, False)])
def test_counts(rule: SGD, products: int, epochs: int, quadratic: bool) -> None:
    one = objective()
    made = tvgrad.predict(one, rule, epochs, quadratic=quadratic)
    more = max(0, epochs - 2) if quadratic else 0
    assert (one.evaluations.gradients, one.evaluations.hvps) == (1, products + more)
    assert made.counts == planned_cost(rule, epochs, quadratic)
    assert (made.row.gradients, made.row.hvps) == (made.counts.gradients, made.counts.hvps)


def test_no_graph_spans_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = BatchLoss.forward

    def watched(self: BatchLoss, batch: Any, *args: Any, **given: Any) -> Any:
        seen.append(len(batch[0]))
        return forward(self, batch, *args, **given)

    monkeypatch.setattr("tvgrad.problem.count.SAMPLES", 13)  # the check at construction
    monkeypatch.setattr(BatchLoss, "forward", watched)
    tvgrad.predict(objective(), SGD(0.01, 0.1, decoupled=True), 4, curvature=True)
    list(predict_batches(objective(), Momentum(0.01, 0.9), [[torch.arange(SAMPLES)]] * 3, quadratic=True))
    tvgrad.multitask_gap([objective(seed=seed) for seed in range(2)], 0.01, 3, [0.4, 1.0])
    assert max(seen) == 13 < SAMPLES  # the chunk size
    assert len(seen) > 60


def test_norms_and_row_agree_with_the_vectors() -> None:
    made = tvgrad.predict(objective(), Momentum(0.02, 0.9), 5)
    assert made.norms["error"] == pytest.approx(distance(made.order2, made.order1), rel=1e-12)
    assert made.norms["quadratic_error"] == pytest.approx(distance(made.quadratic, made.order1), rel=1e-12)
    assert made.row.relative_error == pytest.approx(made.norms["error"] / norm(made.order1), rel=1e-12)
    assert made.row.kind == "estimate"


@pytest.mark.parametrize("rule", [GD(0.01), Nesterov(0.01, 0.9), SGD(0.01, 0.5, decoupled=True)])
def test_thresholds(rule: GD) -> None:
    one = objective()
    row = tvgrad.predict(one, rule, 6, quadratic=False, threshold=0.05).row
    expansion = expand(one, rule)
    within = int(row.epochs_within)
    assert expansion.relative_errors(rule, within)[within] <= 0.05 < expansion.relative_errors(rule, within + 1)[-1]
    scaled = rule.with_lr(row.lr_within)
    assert expansion.relative_errors(scaled, 6)[6] == pytest.approx(0.05, rel=1e-6)


def test_a_rate_that_overflows_is_within_nothing() -> None:
    made = tvgrad.predict(objective(), GD(1e200), 5, quadratic=False)
    assert made.row.epochs_within == 1
    assert "over the stability limit" in made.sentences[0]


def test_thresholds_end_with_a_schedule() -> None:
    row = tvgrad.predict(objective(), GD([1e-6] * 5), 5).row
    assert math.isnan(row.epochs_within)


def test_rate_over_the_stability_limit_is_said() -> None:
    one = linear_regression()
    limit = tvgrad.predict(one, GD(1e-3), 3, curvature=True).row.stability_limit
    hessian = torch.stack([
        torch.cat([part.flatten() for part in one.hvp(_unit(one, index)).values()]) for index in range(12)
    ])
    assert limit == pytest.approx(2 / float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-3)
    over = tvgrad.predict(one, GD(1.5 * limit), 30, curvature=True)
    assert "over the stability limit" in over.sentences[0]
    assert over.row.growth_factor == pytest.approx(2.0**30, rel=0.1)
    assert not tvgrad.predict(one, GD(0.9 * limit), 30, curvature=True).sentences
    # the gradient's own Rayleigh quotient finds gross cases without a further product
    assert "over the stability limit" in tvgrad.predict(one, GD(50.0), 3, quadratic=False).sentences[0]


def _unit(one: tvgrad.Objective, index: int) -> dict[str, torch.Tensor]:
    flat = torch.zeros(12, dtype=torch.float64)
    flat[index] = 1
    return {"weight": flat[:10].reshape(2, 5), "bias": flat[10:]}


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        (nn.ReLU, ("ReLU",)),
        (nn.LeakyReLU, ("LeakyReLU",)),
        (nn.Hardswish, ("Hardswish",)),
        (nn.GELU, ()),
        (nn.Tanh, ()),
    ],
)
def test_kinks_are_named(activation: type[nn.Module], names: tuple[str, ...]) -> None:
    one = objective(activation=activation)
    assert kinks_of(one) == names
    made = tvgrad.predict(one, GD(0.01), 3)
    assert [sentence for sentence in made.sentences if "kinks" in sentence][: len(names)] == list(made.sentences)
    assert len(made.sentences) == len(names)
    assert made.row.kind == "estimate"


def test_functional_relu_is_found_too() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x))

    inputs, targets = torch.randn(8, 12), torch.randint(0, 3, (8,))
    one = tvgrad.Objective(Hidden(), nn.CrossEntropyLoss(), (inputs, targets), chunk_size=8)
    assert kinks_of(one) == ("ReLU",)


@pytest.mark.parametrize("rule", [Adam(0.1), AdamW(0.1)])
def test_rules_that_are_not_linear_are_refused(rule: Adam) -> None:
    with pytest.raises(TvgradError, match="not a linear update rule"):
        tvgrad.predict(objective(), rule, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 3, "threshold": -1.0}, "threshold"),
    ],
)
def test_bad_numbers(options: dict[str, float], words: str) -> None:
    with pytest.raises(TvgradError, match=words):
        tvgrad.predict(objective(), GD(0.1), **options)  # type: ignore[arg-type]


def test_schedule_that_is_too_short() -> None:
    one = objective()
    with pytest.raises(TvgradError, match="outside the schedule"):
        tvgrad.predict(one, GD([0.1, 0.1]), 3)
    assert one.evaluations.gradients == 0  # before any work


def test_the_model_is_left_alone() -> None:
    one = objective()
    before = {name: tensor.clone() for name, tensor in one.initial.items()}
    tvgrad.predict(one, Momentum(0.1, 0.9, weight_decay=0.1), 4, curvature=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.initial.items())


def test_other_weights_than_the_objective_s_own() -> None:
    one = objective()
    at = {name: tensor + 0.1 for name, tensor in one.initial.items()}
    shifted = tvgrad.Objective(one.model, nn.CrossEntropyLoss(), one.samples, chunk_size=13)
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            parameter.copy_(at[name])
    moved = tvgrad.Objective(one.model, nn.CrossEntropyLoss(), one.samples, chunk_size=13)
    left, right = tvgrad.predict(shifted, GD(0.1), 4, at=at), tvgrad.predict(moved, GD(0.1), 4)
    assert np.isclose(left.row.error_norm, right.row.error_norm, rtol=1e-12)
    assert distance(left.quadratic, right.quadratic) <= 1e-13 * norm(right.quadratic)


@pytest.mark.parametrize("rate", [0.001, 0.05])
@pytest.mark.parametrize("optimizer", ["gd", "momentum", "nesterov"])
def test_the_share_that_the_format_leaves_unchanged_is_the_traced_one(
    optimizer: str, rate: float, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Linear(40, 3))
    data = torch.randn(30, 5), torch.arange(30) % 3
    recipe = Recipe(model, nn.CrossEntropyLoss(), data, name="small", lr=rate, epochs=2)
    momentum = None if optimizer == "gd" else 0.9
    options = TraceOptions(optimizer=optimizer, momentum=momentum, dtype="bfloat16", chunk_size=30)
    prepared = prepare(recipe, options)
    made = predict(prepared.objective, prepared.rule, 2, quadratic=False)
    run = trace(prepare(recipe, options), tmp_path / "run")
    before, after, gradient = run.weights(0), run.weights(1), run.gradient(0)
    still = sum(int(((gradient[n] != 0) & (before[n] == after[n])).sum()) for n in before)
    share = still / sum(int((gradient[n] != 0).sum()) for n in before)
    assert made.row.frozen_share == share
    assert made.row.frozen_share == check_one_epoch(run).verdicts[-1].frozen_share
    assert (share > 0) == any("of the coordinates will not move in the first step" in one for one in made.sentences)


def test_a_second_order_error_that_kinks_make_worthless_is_withheld() -> None:
    """The loss is flat up to a gate, and steep behind it: the Hessian at theta_0 is that of the flat piece."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.9)

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (-output + 0.01 * output.square() + 50 * torch.relu(output - target).square()).mean()

    data = torch.ones(4, 1).double(), torch.ones(4, 1).double()
    far = predict(Objective(model, loss, data), GD(0.5), 3)
    assert math.isnan(far.row.relative_error)
    assert math.isnan(far.row.lr_within)
    assert any("the second-order error is withheld" in one for one in far.sentences)
    near = predict(Objective(model, loss, data), GD(0.01), 3)  # the gate stays shut on the way
    assert near.row.relative_error > 0
    assert not any("withheld" in one for one in near.sentences)
