"""The merging study: its parts against their definitions, a reduced run on real data, and the full ones (slow)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tvgrad.analyses.intervals import holm
from tvgrad.analyses.merge_claims import claim_verdicts, lost_by_merging_late, overall_outcome
from tvgrad.analyses.merge_epochs import analyse, summary
from tvgrad.analyses.merge_figures import TOGETHER, draw_accuracy
from tvgrad.analyses.merge_rates import best_rate, grid_rate, rate_score
from tvgrad.analyses.task_training import tasks_of, train_alone, train_jointly

from tvgrad.errors import TvgradError
from tvgrad.merging import mean, tune_and_merge
from tvgrad.recipes.catalogue import load_recipes
from tvgrad.update_rules.rules import GD, SGD, Adam
from tvgrad.vectors.parameters import norm


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TVGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return load_recipes("digits", ("low", "rotated"))


def rows_of(samples):
    return [tuple(row) for row in samples.batch(0, 9999)[0].tolist()]


def test_the_pools_of_test_samples_are_disjoint_and_the_same_for_every_seed(recipes):
    tasks, others = tasks_of(recipes, 0, 200, 100), tasks_of(recipes, 1, 200, 100)
    for task, other, recipe in zip(tasks, others, recipes, strict=True):
        pools = (task.for_rates, task.for_alpha, task.scorer.test)
        assert (len(task.train), *map(len, pools)) == (200, 25, 25, 50)
        assert set(rows_of(task.train)) <= set(rows_of(recipe.train))
        assert len(set(rows_of(task.train))) > 190
        rows = [row for pool in pools for row in rows_of(pool)]
        assert len(set(rows)) == len(rows) == 100
        assert set(rows) <= set(rows_of(recipe.test))
        assert task.train.fingerprint() != other.train.fingerprint()
        assert [pool.fingerprint() for pool in pools] == [
            pool.fingerprint() for pool in (other.for_rates, other.for_alpha, other.scorer.test)
        ]
    (whole, _) = tasks_of(recipes, 0)
    assert sum(map(len, (whole.for_rates, whole.for_alpha, whole.scorer.test))) == len(recipes[0].test)
    with pytest.raises(TvgradError, match="needs 10"):
        tasks_of(recipes, 0, most=5)
    with pytest.raises(TvgradError, match="needs 4 test samples"):
        tasks_of(recipes, 0, most_test=3)


def test_joint_training_is_multitask_gradient_descent_and_one_epoch_merges_to_it(recipes):
    tasks = tasks_of(recipes, 0, most=100)
    start = tasks[0].objective.initial
    rule = GD(0.1)
    joint = train_jointly(tasks, rule, start, [1, 3], None, 0)
    weights = {name: tensor.clone() for name, tensor in start.items()}
    for step in range(3):
        gradients = [task.objective.gradient(weights) for task in tasks]
        if step == 0:
            expected = norm({name: sum(g[name] for g in gradients) / 2 for name in weights})
            assert joint.gradient_norms[0] == pytest.approx(expected, rel=1e-6)
        weights = {name: w - 0.1 * sum(g[name] for g in gradients) / 2 for name, w in weights.items()}
    for name, tensor in weights.items():
        torch.testing.assert_close(joint.weights[3][name], tensor, rtol=1e-5, atol=1e-7)
    alone = [train_alone(task, rule, start, [1], None, 0).weights[1] for task in tasks]
    merged = mean([{n: w[n].double() - start[n].double() for n in w} for w in alone], base=start)
    for name, tensor in merged.items():
        torch.testing.assert_close(joint.weights[1][name], tensor, rtol=1e-6, atol=1e-8)
    # tuning and merging one full-batch step at a time is joint training
    tuners = [
        lambda weights, number, task=task: train_alone(task, rule, weights, [1], None, number).weights[1]
        for task in tasks
    ]
    *_, last = tune_and_merge(start, tuners, 3)
    for name, tensor in last.items():
        torch.testing.assert_close(joint.weights[3][name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", [SGD(0.05), Adam(1e-3)])
def test_mini_batch_training_is_a_plain_loop(recipes, rule):
    (task,) = tasks_of(recipes[:1], 0, most=50)
    start = task.objective.initial
    found = train_alone(task, rule, start, [2], 16, 3)
    model = task.objective.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.copy_(start[name])
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = rule.make_optimizer(trainable)
    from tvgrad.record.batch_order import batches_of

    for epoch in range(2):
        for batch in batches_of(50, 16, 3, epoch):
            inputs, targets = task.train.subset(batch).batch(0, 16)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        if name in start:
            torch.testing.assert_close(found.weights[2][name], parameter.detach(), rtol=1e-6, atol=1e-8)


SAMPLES = 2000
TASKS = {name: 0.1 + 0.02 * place for place, name in enumerate("abcdef")}  # with their predicted errors


def right(accuracy: float) -> list[float]:
    return (np.arange(SAMPLES) < round(accuracy * SAMPLES)).astype(float).tolist()


def scores(late: float, joint: float, pretrained: float = 0.5, optimizer: str = "gd") -> pd.DataFrame:
    """A study in which merging after four epochs loses `late` and joint training is `joint` better."""
    rows = []
    for seed in range(5):
        for task, error in TASKS.items():
            for epochs in (1, 2, 4):
                lost = late * error / 0.15 * (epochs - 1) / 3 + 0.0005 * (seed - 2)
                accuracies = {
                    "pretrained": pretrained,
                    "single": 0.9,
                    "mean": 0.8 - lost,
                    "task_arithmetic": 0.8 - lost,
                }
                accuracies["joint"] = accuracies["mean"] + joint
                for method, accuracy in accuracies.items():
                    found = right(accuracy)
                    rows.append({
                        "optimizer": optimizer,
                        "lr": 0.1,
                        "joint_lr": 0.1,
                        "seed": seed,
                        "epochs": epochs,
                        "task": task,
                        "method": method,
                        "alpha": 1.0,
                        "accuracy": np.mean(found),
                        "sample_scores": found,
                        "predicted_error": error * (epochs - 1),
                    })
    return pd.DataFrame(rows)


def norms(cos_last: float, largest: bool) -> pd.DataFrame:
    return pd.DataFrame([
        {
            "optimizer": "gd",
            "seed": seed,
            "task": task,
            "first_share": 0.5,
            "first_largest": largest or task != "a",
            "epochs_run": 4,
            "cos_first": 1.0,
            "cos_last": cos_last,
        }
        for seed in range(5)
        for task in TASKS
    ])


def test_verdicts_hold_and_fail_with_their_numbers():
    held = {v.claim: v for v in claim_verdicts(scores(late=0.1, joint=0.0), norms(0.9, True))}
    assert len(held) == 10
    assert {v.outcome for v in held.values()} == {"holds"}
    failed = {v.claim: v for v in claim_verdicts(scores(late=-0.1, joint=0.1), norms(0.3, False))}
    for claim, words in {
        "the first epoch's gradient norm is the largest": "in 25 of 30",
        "the last task vector's cosine to minus the first gradient is above 0.5": "smallest 0.300",
        "merging after one epoch is within 2 points in accuracy": "+10.0 [",
        "no later epoch merges better than the first by more than 2 points": "best after 4 epochs, +10.0",
        "the merged mean is within 2 points of joint training after 1 epoch": "+10.0",
        "the predicted second-order error goes with the accuracy lost by merging late": "-1.000",
    }.items():
        assert failed[claim].outcome == "fails", claim
        assert words in failed[claim].numbers
    lost = lost_by_merging_late(scores(late=0.1, joint=0.0))
    assert set(lost["epochs"]) == {2, 4}
    found = lost[(lost["task"] == "c") & (lost["epochs"] == 4)]["lost"].to_list()
    assert found == pytest.approx([0.1 * TASKS["c"] / 0.15 / 0.9], abs=1e-3)
    table = summary(scores(late=0.1, joint=0.0))
    row = table[(table["method"] == "mean") & (table["epochs"] == 4)].iloc[0]
    assert row["accuracy"] == pytest.approx(0.7)
    assert row["normalised"] == pytest.approx(0.7 / 0.9)
    assert row["accuracy_low"] < 0.7 < row["accuracy_high"]


def test_every_tested_claim_of_every_optimizer_is_corrected_for_all_of_them():
    both = pd.concat([scores(0.1, 0.0, optimizer="gd"), scores(-0.014, 0.02, optimizer="sgd")])
    of_both = pd.concat([norms(0.9, True), norms(0.9, True).assign(optimizer="sgd")])
    found = claim_verdicts(both, of_both)
    tested = [verdict for verdict in found if not math.isnan(verdict.p_value)]
    assert len(tested) == 16
    assert [verdict.corrected for verdict in tested] == pytest.approx(holm([v.p_value for v in tested]))
    assert all((v.outcome == "undecided") == (v.corrected > 0.05) for v in tested)
    close = next(v for v in tested if v.optimizer == "sgd" and "joint training after 1" in v.claim)
    assert close.outcome == "undecided"  # two points better, where two points are the margin
    assert "corrected" in str(close)


def test_nothing_gained_makes_the_claims_about_losses_vacuous():
    found = claim_verdicts(scores(late=0.0, joint=0.0, pretrained=0.8), norms(0.9, True))
    outcomes = {verdict.claim: verdict.outcome for verdict in found}
    assert [outcome for claim, outcome in outcomes.items() if "pretrained" in claim] == ["undecided"] * 2
    assert {outcome for claim, outcome in outcomes.items() if "merg" in claim and "than the first" in claim} == {
        "vacuous"
    }
    assert outcomes["merging after one epoch is within 2 points in accuracy"] == "vacuous"
    assert overall_outcome([v for v in found if v.claim.endswith("in accuracy")]) == "vacuous"
    equal = scores(late=0.0, joint=0.0, pretrained=0.8)
    equal["sample_scores"] = [right(0.8)] * len(equal)
    first = next(v for v in claim_verdicts(equal, norms(0.9, True)) if v.claim.endswith("in accuracy"))
    assert "every test sample is equal" in first.numbers
    assert "+0.0 [-0.0, +0.0]" in first.numbers


def test_one_outcome_for_all_optimizers():
    def of(*outcomes):
        verdict = claim_verdicts(scores(0.1, 0.0), norms(0.9, True))[0]
        return overall_outcome([replace(verdict, outcome=outcome) for outcome in outcomes])

    assert of("holds", "fails", "undecided") == "fails"
    assert of("holds", "undecided", "vacuous") == "undecided"
    assert of("holds", "vacuous") == "holds"
    assert of("vacuous", "vacuous") == "vacuous"


def test_the_accuracy_figure_shows_the_tables_means_and_intervals_at_their_epochs():
    table = summary(scores(late=0.3, joint=0.1))
    shown = table[table["method"] != "single"]
    figure = Figure(layout="constrained")
    draw_accuracy(table, figure.subplots())
    drawn, counts = {}, []
    for panel in figure.axes:
        lines = [line for line in panel.get_lines() if not line.get_label().startswith("_")]
        counts.append(len(lines))
        for line, band in zip(lines, panel.collections, strict=True):
            (path,) = band.get_paths()
            drawn[line.get_label()] = line.get_xydata(), path.vertices
    assert max(counts) == TOGETHER
    assert set(drawn) == {method.replace("_", " ") for method in shown["method"]}
    for method, mine in shown.groupby("method"):
        points, band = drawn[method.replace("_", " ")]
        np.testing.assert_allclose(points, mine[["epochs", "normalised"]], rtol=1e-12, err_msg=method)
        for epochs, low, high in mine[["epochs", "normalised_low", "normalised_high"]].itertuples(index=False):
            ends = band[band[:, 0] == epochs, 1]
            np.testing.assert_allclose([ends.min(), ends.max()], [low, high], rtol=1e-12, err_msg=method)


def test_no_prediction_for_adam_is_said():
    table = scores(0.1, 0.0).assign(predicted_error=math.nan)
    assert [v.outcome for v in claim_verdicts(table, norms(0.9, True)) if "predicted" in v.claim] == ["does not apply"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizers": ("newton",)}, "no update rule"),
        ({"optimizers": ("gd:fast",)}, "no optimizer"),
        ({"optimizers": ("newton:search",)}, "no update rule"),
        ({"optimizers": ("gd", "gd:0.1")}, "each once"),
        ({"images": 9}, "images must be"),
        ({"alphas": 0}, "alphas must be"),
        ({"tasks": "low+middle"}, "no task called 'middle'"),
        ({"tasks": "low"}, "has one task"),
        ({"seeds": 1}, "seeds must be"),
        ({"epochs": 1}, "epochs must be"),
        ({"test_images": 3}, "test_images must be"),
    ],
)
def test_options_are_checked_before_anything_is_trained(options, words):
    with pytest.raises(TvgradError, match=words):
        analyse("digits", **options)


def test_the_reduced_study_on_digits(tmp_path):
    result = analyse("digits", optimizers=("gd:0.1", "adam:1e-3"), seeds=2, epochs=2, batch_size=256)
    table = result.table.set_index(["optimizer", "method", "epochs"])
    assert set(table.index.get_level_values("method")) == {
        "pretrained",
        "single",
        "joint",
        "atm",
        "mean",
        "task_arithmetic",
        "ties",
        "dare",
        "median",
        "tsv_m",
    }
    assert table.loc[("gd", "mean", 1), "accuracy"] == table.loc[("gd", "atm", 1), "accuracy"]
    assert table["accuracy"].between(table["accuracy_low"], table["accuracy_high"]).all()
    assert set(table.xs("mean", level="method")["lr"]) == {0.1, 1e-3}
    assert 0.1 not in set(table.xs("joint", level="method").loc["gd", "lr"])  # a rate of its own
    assert len([verdict for verdict in result.verdicts if "at the edge" not in verdict]) == 20
    assert all(
        any(word in verdict for word in ("holds", "fails", "undecided", "vacuous", "does not apply", "at the edge"))
        for verdict in result.verdicts
    )
    assert result.outcome in {"holds", "fails", "undecided", "vacuous"}
    for name, draw in {"accuracy": result.draw, **result.others}.items():
        figure = Figure()
        draw(figure.subplots())
        assert any(axes.has_data() or axes.texts for axes in figure.axes), name
    result.save(tmp_path / "figure.png")


def test_a_study_that_was_stopped_goes_on_to_the_same_end(tmp_path, monkeypatch):
    options = {"optimizers": ("gd:0.1", "adam:search"), "seeds": 2, "epochs": 2, "images": 60, "tasks": "low+high"}
    options |= {"alphas": 4, "test_images": 40}
    whole = analyse("digits", **options)
    cells = str(tmp_path / "cells")
    analyse("digits", **{**options, "optimizers": ("gd:0.1",)}, cells=cells)
    kept = {path.name for path in (tmp_path / "cells").iterdir()}
    assert len(kept) == 3  # two seeds, and the rate of joint training
    of_seeds = sorted(name for name in kept if "search" not in name)
    assert [name[:7] + name[-7:] for name in of_seeds] == ["gd-0.1--0.json", "gd-0.1--1.json"]
    from tvgrad.analyses import merge_epochs

    trained = []
    original = merge_epochs.train_jointly
    monkeypatch.setattr(
        merge_epochs, "train_jointly", lambda tasks, rule, *rest: trained.append(rule) or original(tasks, rule, *rest)
    )
    resumed = analyse("digits", **options, cells=cells)
    assert {type(rule).__name__ for rule in trained} == {"Adam"}  # what was finished was not done again
    pd.testing.assert_frame_equal(resumed.table, whole.table)
    assert resumed.verdicts == whole.verdicts
    with pytest.raises(TvgradError, match="was made with images 60 and not 50: give another folder"):
        analyse("digits", **{**options, "images": 50}, cells=cells)
    (tmp_path / "cells" / of_seeds[1]).write_text("{")
    with pytest.raises(TvgradError, match=r"cannot be read .*: delete it"):
        analyse("digits", **options, cells=cells)


def test_a_grid_is_widened_while_the_best_rate_is_at_its_edge():
    assert [grid_rate(0.01, place) for place in range(-2, 3)] == [0.001, 0.003, 0.01, 0.03, 0.1]

    def peak(at: float):
        tried = []
        found = best_rate(lambda rate: tried.append(rate) or -abs(math.log(rate / at)), 0.01)
        return found.rate, found.at_edge, len(tried)

    assert peak(0.03) == (0.03, False, 5)
    assert peak(0.1) == (0.1, False, 6)
    assert peak(2e-5) == (3e-5, False, 9)
    assert peak(1e9) == (10.0, True, 9)
    assert best_rate(lambda rate: 1.0, 0.01).rate == 1e-5  # the smallest among equals, at the edge
    assert best_rate(lambda rate: 1.0, 0.01).at_edge
    assert best_rate(lambda rate: math.nan if rate > 0.01 else rate, 0.01).rate == 0.01


@pytest.mark.parametrize("joint", [False, True])
def test_rates_are_measured_on_their_own_samples(recipes, monkeypatch, joint):
    tasks = tasks_of(recipes, 3, most=100)
    score = rate_score("gd", tasks, 40, None, 3, joint=joint)
    start = tasks[0].objective.initial
    groups = [tasks, tasks] if joint else [[task] for task in tasks]
    weights = [train_jointly(group, GD(0.1), start, [16], None, 3).weights[16] for group in groups]
    accuracies = [task.scorer.score(tuned, task.for_rates) for task, tuned in zip(tasks, weights, strict=True)]
    assert score(0.1) == pytest.approx(np.mean(accuracies))
    for task in tasks:
        monkeypatch.setattr(task.scorer, "test", None)  # no test sample is looked at
    assert score(0.1) == pytest.approx(np.mean(accuracies))


FULL = {"optimizers": ("gd:search", "sgd:search", "adam:search"), "seeds": 5, "epochs": 64}
MOBILE = {"optimizers": ("gd:3e-4", "sgd:3e-4", "adam:3e-5"), "seeds": 2, "epochs": 8, "batch_size": 20, "alphas": 5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("suite", {**FULL, "images": 300}),
        ("suite-vit", {**FULL, "images": 200, "test_images": 400}),
        ("mobilenet", {**MOBILE, "images": 80, "test_images": 100, "tasks": "mnist+animals+satellite+digits"}),
    ],
    ids=["suite", "suite-vit", "mobilenet"],
)
def test_the_full_study(target, options, tmp_path):
    result = analyse(target, **options)
    print(result.table.to_string(), *result.verdicts, sep="\n")
    assert len(result.verdicts) >= 30
    result.save(tmp_path / "figure.png")
