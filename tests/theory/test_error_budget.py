"""Error budgets: closure, planted causes, nodes against their definitions, replay, and what is missing."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import SAMPLES, clipped_run, recipe, record
from tests.traced_runs import Tampered, tampered
from tvgrad import TvgradError
from tvgrad.problem.batch_loss import BatchLoss
from tvgrad.recipes.of_run import objective_of
from tvgrad.theory.error_budget import ErrorBudget
from tvgrad.vectors.parameters import norm

__all__ = ["tampered"]

TERMS = (
    "update rounding",
    "weight decay",
    "preconditioner",
    "remainder",
    "batch curvature",
    "curvature",
    "batch order",
    "unequal batches",
    "coverage",
)


def _explained(run: tvgrad.Run, made: tvgrad.Recipe, **options: Any) -> ErrorBudget:
    return tvgrad.error_budget(run, objective_of(run, made, torch.float64), **options)


def _shares(budget: ErrorBudget) -> dict[str, float]:
    return {row.term: row.share for row in budget.rows}


MANY = [
    {"optimizer": "gd", "lr": 0.1},
    {"optimizer": "momentum", "lr": 0.1, "weight_decay": 0.1},
    {"optimizer": "sgd", "lr": 0.1, "batch_size": 10},
    {"optimizer": "momentum", "lr": 0.05, "weight_decay": 0.1, "batch_size": 10},
    {"optimizer": "nesterov", "lr": 0.05, "batch_size": 10},
    {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.1, "batch_size": 10},
    {"optimizer": "adamw", "lr": 0.01, "batch_size": 10},
    {"optimizer": "adamw", "lr": 0.01},
]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("options", MANY)
def test_rows_sum_to_the_residual(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, epochs=2, dtype=dtype, **options)
    budget = _explained(run, made, epochs=[1, 2], remainder=True)
    assert budget.closure <= 1e-12
    for epoch in (1, 2):
        rows = [row for row in budget.rows if row.epoch == epoch]
        assert math.fsum(row.share for row in rows) == pytest.approx(1, abs=1e-12)
        assert [row.term.removesuffix(" and gradient rounding") for row in rows] == list(TERMS)
        assert all(
            first.nodes.split(" - ")[1] == then.nodes.split(" - ")[0] for first, then in itertools.pairwise(rows)
        )
        assert (rows[0].nodes[:2], rows[-1].nodes[-2:]) == ("V0", "V9")


def _only(terms: dict[str, float], wanted: str) -> None:
    assert terms[wanted] >= 0.95, terms


def test_only_momentum(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="momentum", lr=1e-6, batch_size=8, epochs=1, dtype="float64")
    _only(_shares(_explained(run, made)), "batch order")


def test_only_unequal_batches(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="sgd", lr=1e-6, batch_size=30, epochs=1, dtype="float64")
    _only(_shares(_explained(run, made)), "unequal batches")


def test_only_bfloat16(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=1e-3, epochs=4, dtype="bfloat16")
    _only(_shares(_explained(run, made)), "update rounding")


def test_only_clipping(tmp_path: Path) -> None:
    made = recipe()
    run, _ = clipped_run(made, tmp_path, 0.1, 8, lambda parameters: torch.optim.SGD(parameters, lr=1e-4))
    budget = _explained(run, made)
    assert budget.closure <= 1e-12
    _only(_shares(budget), "clipping")
    assert not any("differs" in sentence for sentence in budget.sentences)


def test_only_weight_decay_and_only_a_preconditioner(tmp_path: Path) -> None:
    made = recipe()
    decayed = record(made, tmp_path / "a", optimizer="sgd", lr=1e-6, weight_decay=0.5, epochs=2, dtype="float64")
    _only(_shares(_explained(decayed, made)), "weight decay")
    adam = record(made, tmp_path / "b", optimizer="adam", lr=1e-7, epochs=1, dtype="float64")
    _only(_shares(_explained(adam, made)), "preconditioner")


def test_curvature_is_what_is_left_of_plain_gradient_descent(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=0.02, epochs=5, dtype="float64")
    budget = _explained(run, made)
    _only(_shares(budget), "curvature")
    # the residual is that of the order-1 prediction
    order1 = {name: -5 * 0.02 * tensor for name, tensor in run.gradient(0).items()}
    expected = norm({name: tensor - order1[name] for name, tensor in run.task_vector(5).items()})
    assert budget.residual_norms[5] == pytest.approx(expected, rel=1e-12)
    assert budget.relative_residuals[5] == pytest.approx(expected / norm(run.task_vector(5)), rel=1e-12)


def test_nodes_against_their_definitions(tmp_path: Path) -> None:
    """Momentum and decay on unequal batches; every G_s and theta_s kept, every node summed on its own."""
    made, lr, mu, decay, size = recipe(), 0.05, 0.9, 0.2, 10
    run = record(
        made, tmp_path, optimizer="momentum", lr=lr, momentum=mu, weight_decay=decay, batch_size=size, epochs=2,
        dtype="float64",
    )  # fmt: skip
    objective = objective_of(run, made, torch.float64)
    budget = tvgrad.error_budget(run, objective, remainder=True)

    batches = [batch for epoch in (1, 2) for batch in run.batches(epoch)]
    theta0 = run.weights(0)
    theta, buffer = dict(theta0), None
    thetas, gradients = [], []
    for batch in batches:
        gradient = objective.subset(batch).gradient(theta)
        thetas.append(theta)
        gradients.append(gradient)
        used = {n: g + decay * theta[n] for n, g in gradient.items()}
        buffer = used if buffer is None else {n: mu * buffer[n] + used[n] for n in used}
        theta = {n: theta[n] - lr * buffer[n] for n in theta}
    steps = len(batches)
    c = [lr * (1 - mu ** (steps - s)) / (1 - mu) for s in range(steps)]
    half = steps // 2
    of_epoch = [sum(c[:half])] * half + [sum(c[half:])] * half
    at_start = [objective.subset(batch).gradient(theta0) for batch in batches]
    moved = [{n: theta[n] - theta0[n] for n in theta0} for theta in thetas]
    bent = [objective.subset(batch).hvp(one, theta0) for batch, one in zip(batches, moved, strict=True)]
    displacement = {n: sum(w * one[n] for w, one in zip(c, moved, strict=True)) for n in theta0}
    bend = objective.hvp(displacement, theta0)

    def minus(weights: list[float], vectors: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {n: -sum(w * one[n] for w, one in zip(weights, vectors, strict=True)) for n in theta0}

    def plus(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], sign: float) -> dict[str, torch.Tensor]:
        return {n: left[n] + sign * right[n] for n in left}

    tau = run.task_vector(2)
    third, sixth = minus(c, gradients), minus(c, at_start)
    fifth = plus(sixth, bend, -1)
    seventh = minus([total / half for total in of_epoch], at_start)
    sizes = [w * len(b) / SAMPLES for w, b in zip(of_epoch, batches, strict=True)]
    eighth = minus(sizes, at_start)
    nodes = {
        "weight decay": (tau, third),
        "remainder": (third, plus(sixth, minus(c, bent), 1)),
        "batch curvature": (plus(sixth, minus(c, bent), 1), fifth),
        "curvature": (fifth, sixth),
        "batch order": (sixth, seventh),
        "unequal batches": (seventh, eighth),
    }
    found = {row.term: row for row in budget.rows}
    for term, (before, after) in nodes.items():
        assert found[term].norm == pytest.approx(norm(plus(before, after, -1)), rel=1e-9), term
    assert found["update rounding"].norm <= 1e-14
    assert found["coverage"].norm <= 1e-14
    assert norm(plus(eighth, {n: -sum(c) * g for n, g in objective.gradient(theta0).items()}, -1)) <= 1e-14


def test_counts_and_no_more_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe()
    full = record(made, tmp_path / "full", optimizer="gd", lr=0.1, epochs=4, dtype="float64")
    cut = record(made, tmp_path / "cut", optimizer="momentum", lr=0.01, batch_size=10, epochs=2, dtype="float64")
    seen: list[int] = []
    forward = BatchLoss.forward

    def watched(self: BatchLoss, batch: Any, *args: Any, **given: Any) -> Any:
        seen.append(len(batch[0]))
        return forward(self, batch, *args, **given)

    monkeypatch.setattr("tvgrad.problem.count.SAMPLES", 12)  # the check at construction
    monkeypatch.setattr(BatchLoss, "forward", watched)
    one = objective_of(full, made, torch.float64)
    budget = tvgrad.error_budget(full, one, epochs=[2, 3, 4])
    assert (budget.counts.gradients, budget.counts.hvps) == (0, 3)  # g_0 was consumed and recorded
    assert (one.evaluations.gradients, one.evaluations.hvps) == (0, 3)
    one = objective_of(cut, made, torch.float64)
    budget = tvgrad.error_budget(cut, one, remainder=True)
    assert (budget.counts.gradients, budget.counts.hvps) == (1, 1)
    assert (one.evaluations.gradients, one.evaluations.hvps) == (1, 1)
    assert (budget.batch_counts.gradients, budget.batch_counts.hvps) == (8, 7)
    budget = tvgrad.error_budget(cut, objective_of(cut, made, torch.float64))
    assert (budget.batch_counts.gradients, budget.batch_counts.hvps) == (8, 0)
    assert max(seen) <= 12  # the chunk size: no graph spans more


def test_full_batch_from_epoch_gradients(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="sgd", lr=0.1, epochs=3, dtype="float64", record=("epoch-gradients",))
    budget = _explained(run, made)
    assert [row.term for row in budget.rows] == list(TERMS)
    _only(_shares(budget), "curvature")
    assert budget.counts.gradients == 1


def test_full_batch_without_the_weights_between_uses_the_predicted_displacement(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=1e-3, epochs=4, dtype="float64", keep="last:1")
    budget = _explained(run, made)
    terms = [row.term for row in budget.rows]
    assert terms[-4:] == ["curvature (predicted displacement)", "batch order", "unequal batches", "coverage"]
    assert terms[0] == "unexplained"  # what moved the weights between was neither recorded nor replayed
    assert not any("rounding" in term for term in terms)
    _only(_shares(budget), "curvature (predicted displacement)")
    assert math.fsum(_shares(budget).values()) == pytest.approx(1, abs=1e-12)


def test_without_recorded_batches_the_rows_are_one(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="sgd", lr=0.1, batch_size=10, record=("gradients",))
    budget = _explained(run, made)
    (row,) = budget.rows
    assert row.share == pytest.approx(1)
    assert row.nodes == "V0 - V9"
    assert row.term == "unexplained"
    assert "predicted displacement" not in row.term
    assert any("--record batches" in sentence for sentence in budget.sentences)


def test_time_that_is_short_leaves_terms_out_by_name(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="momentum", lr=0.01, batch_size=10, dtype="float64")
    budget = _explained(run, made, seconds=1e-6)
    assert [(row.term, row.nodes) for row in budget.rows] == [("unexplained", "V0 - V9")]
    left_out = " ".join(budget.sentences)
    assert "consumed gradients is left out" in left_out
    assert "batch order and sizes is left out" in left_out
    plenty = _explained(run, made, seconds=100)
    assert [row.term for row in plenty.rows] == list(TERMS)
    with pytest.raises(TvgradError, match="above 0 seconds"):
        _explained(run, made, seconds=0)


def test_a_replay_that_misses_the_recorded_bits_has_a_row_of_its_own(tmp_path: Path, tampered: Tampered) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="momentum", lr=0.01, batch_size=10, dtype="float64", epochs=1)
    faithful = _explained(run, made)
    assert "replay mismatch" not in _shares(faithful)
    nudged = tampered(run, "weights", 1, lambda weights: {n: t + 1e-6 for n, t in weights.items()})
    budget = _explained(nudged, made)
    assert budget.rows[0].term == "replay mismatch"
    assert budget.rows[0].norm == pytest.approx(
        1e-6 * math.sqrt(sum(t.numel() for t in run.weights(0).values())), rel=1e-6
    )
    assert any("row of its own" in sentence for sentence in budget.sentences)
    assert budget.closure <= 1e-12
    assert _shares(budget)["update rounding"] == pytest.approx(0, abs=1e-9)


def test_a_replay_of_something_else_is_not_used(tmp_path: Path, tampered: Tampered) -> None:
    made = recipe()
    run = record(made, tmp_path / "a", optimizer="momentum", lr=0.01, batch_size=10, dtype="float64", epochs=1)
    other = tampered(run, "weights", 1, lambda weights: {n: t + 1.0 for n, t in weights.items()})
    budget = _explained(other, made)
    assert [row.nodes for row in budget.rows][:2] == ["V0 - V5", "V5 - V6"]
    assert budget.rows[0].term == "unexplained"
    assert not any("rounding" in row.term for row in budget.rows)
    assert budget.rows[1].term == "curvature (predicted displacement)"
    assert any("does not reproduce the recorded weights" in sentence for sentence in budget.sentences)


def test_adam_with_a_replay_of_something_else(tmp_path: Path, tampered: Tampered) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="adam", batch_size=10, epochs=1)
    other = tampered(run, "weights", 1, lambda weights: {n: t + 1.0 for n, t in weights.items()})
    with pytest.raises(TvgradError, match="does not reproduce the recorded weights"):
        _explained(other, made)


def test_zero_residual_has_no_shares(tmp_path: Path) -> None:
    x = torch.zeros(8, 6)
    flat = tvgrad.Recipe(nn.Linear(6, 1, bias=False), nn.MSELoss(), (x, torch.zeros(8, 1)), name="flat")
    run = record(flat, tmp_path, optimizer="gd", lr=0.1, epochs=2)
    budget = _explained(run, flat)
    assert all(math.isnan(row.share) for row in budget.rows)
    assert budget.residual_norms[2] == 0
    assert math.isnan(budget.relative_residuals[2])


def test_why_batches_are_not_known_and_what_to_do(tmp_path: Path) -> None:
    made = recipe()
    script = record(made, tmp_path / "script", optimizer="adam", batch_size=10, record=("gradients",))
    script.info["command"] = ["python", "finetune.py"]  # as a script's run says
    with pytest.raises(TvgradError, match=r"record its loop from inside: tvgrad\.Recorder"):
        _explained(script, made)
    model = copy.deepcopy(made.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tvgrad.Recorder(tmp_path / "halves", model, optimizer, record=("batches",)) as recorder:
        for part in torch.arange(SAMPLES).split(8):
            recorder.note_batch(part)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        recorder.note_step(batch_size=8)
        recorder.end_epoch()
    budget = _explained(tvgrad.Run.open(tmp_path / "halves"), made)
    assert "4 batches were noted for 1 steps" in budget.sentences[0]


def test_data_that_was_widened_with_its_objective_is_replayed_in_the_run_s_own_type(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="adamw", lr=0.01, batch_size=10, dtype="float32")
    inputs, targets = made.train.batch(0, SAMPLES)
    wide = tvgrad.Objective(copy.deepcopy(made.model).double(), made.loss, (inputs.double(), targets), chunk_size=12)
    found, expected = tvgrad.error_budget(run, wide), _explained(run, made)
    assert found.rows == expected.rows
    assert not any("differs from the recorded" in sentence for sentence in found.sentences)


def test_refusals(tmp_path: Path) -> None:
    made = recipe()
    adam = record(made, tmp_path / "adam", optimizer="adam", batch_size=10, record=("gradients",))
    with pytest.raises(TvgradError, match="preconditioner is known from the consumed gradients alone"):
        _explained(adam, made)
    whole = record(made, tmp_path / "whole", optimizer="adam", batch_size=10)
    with pytest.raises(TvgradError, match=r"does not fit into the time given \(give it more\)"):
        _explained(whole, made, seconds=1e-9)
    steps = record(made, tmp_path / "steps", optimizer="gd", record_at="steps:1,2")
    with pytest.raises(TvgradError, match="recorded by step"):
        _explained(steps, made)
    run = record(made, tmp_path / "run", optimizer="gd")
    with pytest.raises(TvgradError, match="keeps no weights after epoch 9"):
        _explained(run, made, epochs=[9])
    with pytest.raises(TvgradError, match="no epoch"):
        _explained(run, made, epochs=[])
    other = recipe(seed=1)
    with pytest.raises(TvgradError, match="fingerprint differs"):
        tvgrad.error_budget(run, tvgrad.Objective(other.model, other.loss, other.train, chunk_size=12))
    with pytest.raises(TvgradError, match="other parameters"):
        tvgrad.error_budget(run, tvgrad.Objective(nn.Linear(6, 3), other.loss, made.train, chunk_size=12))
