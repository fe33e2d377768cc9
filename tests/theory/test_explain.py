"""Explaining a run: predictions against the record, results on the disk, and what is left out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import tvgrad
from tests.theory.budget_runs import recipe, record
from tvgrad import DamagedRun, TvgradError
from tvgrad.recipes.of_run import objective_of
from tvgrad.theory.explain import Explanation, explain, read_results, with_bounds, write_results
from tvgrad.update_rules.rules import GD, Momentum
from tvgrad.vectors.parameters import norm


def _explained(run: tvgrad.Run, made: tvgrad.Recipe, **options: object) -> Explanation:
    return explain(run, objective_of(run, made, torch.float64), **options)  # type: ignore[arg-type]


def test_rows_are_the_predictions(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="momentum", lr=0.02, epochs=4, dtype="float64")
    found = with_bounds(_explained(run, made), {2: 7.0}, "no bound from epoch 3 on")
    assert found.sentences[-1] == "no bound from epoch 3 on"
    objective = objective_of(run, made, torch.float64)
    assert [row.epoch for row in found.second_order] == [1, 2, 3, 4]
    for row in found.second_order:
        expected = tvgrad.predict(objective, Momentum(0.02, 0.9), row.epoch)
        tau = run.task_vector(row.epoch)
        apart = {
            which: norm({name: tensor - getattr(expected, which)[name] for name, tensor in tau.items()})
            for which in ("order1", "order2", "quadratic")
        }
        assert row.error_norm == pytest.approx(apart["order1"], rel=1e-9, abs=1e-15)
        assert row.residual_order1 == pytest.approx(apart["order1"] / norm(tau), rel=1e-9, abs=1e-14)
        assert row.residual_order2 == pytest.approx(apart["order2"] / norm(tau), rel=1e-6, abs=1e-14)
        assert row.residual_quadratic == pytest.approx(apart["quadratic"] / norm(tau), rel=1e-6, abs=1e-14)
        assert row.predicted_norm == pytest.approx(expected.row.error_norm, rel=1e-9)
        assert row.predicted_norm_order2 == pytest.approx(expected.row.order2_error_norm, rel=1e-9)
        assert repr(row.bound) == ("7.0" if row.epoch == 2 else "nan")
    # the recorded gradient is used again: one product for order 2, two for the quadratic model, one an epoch's budget
    assert (found.counts.gradients, found.counts.hvps) == (0, 1 + 2 + 4)


def test_mini_batches_are_predicted_in_their_recorded_order(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="sgd", lr=0.01, batch_size=10, epochs=2, dtype="float64")
    found = _explained(run, made)
    for row in found.second_order:
        assert row.residual_quadratic < row.residual_order1 / 5
        assert row.residual_order2 < row.residual_order1 / 5
        assert row.predicted_norm == pytest.approx(row.error_norm, rel=0.1)
    assert (found.batch_counts.gradients, found.batch_counts.hvps) == (8 + 8, 7 + 6)


def test_mini_batches_without_a_record_are_predicted_without_sampling(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="sgd", lr=0.01, batch_size=10, record=("gradients",))
    found = _explained(run, made)
    assert any("leave sampling out" in sentence for sentence in found.sentences)
    assert all(math.isnan(row.residual_quadratic) for row in found.second_order)


def test_adam_has_a_budget_and_no_expansion(tmp_path: Path) -> None:
    made = recipe()
    found = _explained(record(made, tmp_path, optimizer="adam", batch_size=10), made)
    assert found.second_order == ()
    assert "not a linear update rule" in found.sentences[0]
    assert found.budget.rows


def test_relu_is_explained_with_the_sentence_on_kinks(tmp_path: Path) -> None:
    made = recipe(activation=nn.ReLU)
    found = _explained(record(made, tmp_path, optimizer="gd", lr=0.01), made)
    assert any("kinks" in sentence and "estimates" in sentence for sentence in found.sentences)


def test_a_schedule_s_recorded_rates_are_used(tmp_path: Path) -> None:
    made = recipe()
    model = made.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    objective = tvgrad.Objective(model, made.loss, made.train, chunk_size=12)
    with tvgrad.Recorder(tmp_path / "run", model, optimizer, objective, record=("gradients", "epoch-gradients")) as rec:
        for _ in range(3):
            for name, parameter in model.named_parameters():
                parameter.grad = rec.gradient[name].clone()
            optimizer.step()
            rec.note_step(batch_size=len(made.train))
            scheduler.step()
            rec.end_epoch()
    run = tvgrad.Run.open(tmp_path / "run")
    assert list(run.steps()["lr"]) == [0.05, 0.025, 0.0125]
    found = _explained(run, recipe())
    expected = tvgrad.predict(objective_of(run, recipe(), torch.float64), GD([0.05, 0.025, 0.0125]), 3)
    assert found.second_order[-1].predicted_norm_order2 == pytest.approx(expected.row.order2_error_norm, rel=1e-6)
    assert found.second_order[-1].residual_order2 < 0.1 * found.second_order[-1].residual_order1


def test_results_survive_the_disk(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=0.05, epochs=3)
    assert read_results(run) == ([], [])
    found = _explained(run, made)
    names = {path.name for path in write_results(run, found)}
    assert names == {"second_order.json", "error_budget.json", "explain.json"}
    errors, terms = read_results(run)
    assert [repr(row) for row in errors] == [repr(row) for row in found.second_order]
    assert [repr(row) for row in terms] == [repr(row) for row in found.budget.rows]
    assert json.loads((run.root / "results" / "explain.json").read_text())["hvps"] == found.counts.hvps
    assert not run.problems()  # results are no part of the record
    (run.root / "results" / "second_order.json").write_text("[{}]")
    with pytest.raises(DamagedRun):
        read_results(run)


def test_time_is_kept_to_by_leaving_out(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=0.05, epochs=6)
    found = _explained(run, made, seconds=1e-9)
    assert found.second_order == ()
    assert any("predictions are left out" in sentence for sentence in found.sentences)
    assert any("curvature term is left out" in sentence for sentence in found.sentences)
    with pytest.raises(TvgradError, match="above 0 seconds"):
        _explained(run, made, seconds=-1)


def test_only_the_epochs_asked_for(tmp_path: Path) -> None:
    made = recipe()
    run = record(made, tmp_path, optimizer="gd", lr=0.05, epochs=4)
    found = _explained(run, made, epochs=[2])
    assert {row.epoch for row in found.budget.rows} == {2}
    assert len(found.second_order) == 4
