"""The merging study: its parts against their definitions, a reduced run on real data, and the full ones (slow)."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tvgrad.analyses.merge_claims import claim_verdicts, interval, lost_by_merging_late
from tvgrad.analyses.merge_epochs import analyse, summary
from tvgrad.analyses.merge_figures import SPREAD, dodged, draw_accuracy
from tvgrad.analyses.merge_rates import best_rate, grid
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


def test_a_seed_cuts_the_test_samples_in_two_and_caps_the_training_samples(recipes):
    tasks, others = tasks_of(recipes, 0, 200, 100), tasks_of(recipes, 1, 200, 100)
    for task, other, recipe in zip(tasks, others, recipes, strict=True):
        assert (len(task.train), len(task.validation), len(task.scorer.test)) == (200, 50, 50)
        assert set(rows_of(task.train)) <= set(rows_of(recipe.train))
        assert len(set(rows_of(task.train))) > 190
        assert not set(rows_of(task.validation)) & set(rows_of(task.scorer.test))
        assert set(rows_of(task.validation)) | set(rows_of(task.scorer.test)) <= set(rows_of(recipe.test))
        assert task.train.fingerprint() != other.train.fingerprint()
        assert task.validation.fingerprint() != other.validation.fingerprint()
    (whole, _) = tasks_of(recipes, 0)
    assert len(whole.validation) + len(whole.scorer.test) == len(recipes[0].test)
    with pytest.raises(TvgradError, match="needs 10"):
        tasks_of(recipes, 0, most=5)
    with pytest.raises(TvgradError, match="needs two test samples"):
        tasks_of(recipes, 0, most_test=1)


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
    from tvgrad.record.training_loop import batches_of

    for epoch in range(2):
        for batch in batches_of(50, 16, 3, epoch):
            inputs, targets = task.train.subset(batch).batch(0, 16)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    for name, parameter in model.named_parameters():
        if name in start:
            torch.testing.assert_close(found.weights[2][name], parameter.detach(), rtol=1e-6, atol=1e-8)


def test_intervals_are_students():
    found = interval([1.0, 2.0, 4.0])
    half = 4.302652729911275 * np.std([1, 2, 4], ddof=1) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half))
    assert math.isnan(interval([1.0]).low)
    assert interval([2.0, 2.0]).high == pytest.approx(2.0)
    assert math.isnan(interval([]).mean)


def scores(late: float, joint: float) -> pd.DataFrame:
    """A study in which merging after four epochs loses `late` and joint training is `joint` better."""
    rows = []
    for seed in range(5):
        for task, error in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
            for epochs in (1, 2, 4):
                lost = late * error / 0.2 * (epochs - 1) / 3 + 0.0005 * (seed - 2)
                accuracies = {"pretrained": 0.5, "single": 0.9, "mean": 0.8 - lost, "task_arithmetic": 0.8 - lost}
                accuracies["joint"] = accuracies["mean"] + joint
                for method, accuracy in accuracies.items():
                    rows.append({
                        "optimizer": "gd",
                        "lr": 0.1,
                        "seed": seed,
                        "epochs": epochs,
                        "task": task,
                        "method": method,
                        "alpha": 1.0,
                        "accuracy": accuracy,
                        "normalised": accuracy / 0.9,
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
        for task in "abc"
    ])


def test_verdicts_hold_and_fail_with_their_numbers():
    held = {v.claim: v for v in claim_verdicts(scores(late=0.1, joint=0.0), norms(0.9, True))}
    assert len(held) == 10
    assert {v.outcome for v in held.values()} == {"holds"}
    failed = {v.claim: v for v in claim_verdicts(scores(late=-0.1, joint=0.1), norms(0.3, False))}
    for claim, words in {
        "the first epoch's gradient norm is the largest": "in 10 of 15",
        "the last task vector's cosine to minus the first gradient is above 0.5": "smallest 0.300",
        "merging after one epoch is within 2 points in accuracy": "+10.0 [+10.0, +10.0] points",
        "no later epoch merges significantly better than the first": "best after 4 epochs",
        "the merged mean is within 2 points of joint training after 1 epoch": "+10.0",
        "the predicted second-order error goes with the accuracy lost by merging late": "-1.000",
    }.items():
        assert failed[claim].outcome == "fails", claim
        assert words in failed[claim].numbers
    lost = lost_by_merging_late(scores(late=0.1, joint=0.0))
    assert set(lost["epochs"]) == {2, 4}
    assert lost[(lost["task"] == "b") & (lost["epochs"] == 4)]["lost"].to_list() == pytest.approx([0.1 / 0.9] * 5)
    table = summary(scores(late=0.1, joint=0.0))
    row = table[(table["method"] == "mean") & (table["epochs"] == 4)].iloc[0]
    assert row["accuracy"] == pytest.approx(0.7)


def test_the_accuracy_figure_shows_the_tables_means_side_by_side():
    table = scores(late=0.7, joint=0.8)
    places_of = {name: place for place, name in enumerate(dict.fromkeys(table["method"]))}
    table["normalised"] = table["accuracy"] + 0.01 * table["seed"] + 0.1 * table["method"].map(places_of)
    methods = [name for name in dict.fromkeys(table["method"]) if name != "single"]
    shown = table[table["method"] != "single"]
    places = dodged(shown, methods)
    octaves = np.log2(places / shown["epochs"])
    assert octaves.abs().max() == pytest.approx(SPREAD / 2)
    assert octaves.groupby(shown["method"]).nunique().eq(1).all()  # a method stands on the same side everywhere
    assert octaves.groupby(shown["method"]).first().nunique() == len(methods)

    def rounded(values) -> tuple[float, ...]:
        return tuple(np.round(np.asarray(values, float), 9))

    figure = Figure()
    draw_accuracy(table, figure.subplots())
    (panel,) = figure.axes  # one optimizer
    drawn = {rounded(line.get_xdata()): np.asarray(line.get_ydata(), float) for line in panel.get_lines()}
    truth = shown.assign(place=places).groupby(["method", "place"])["normalised"].mean()
    for method in methods:
        heights = drawn[rounded(truth[method].index)]
        np.testing.assert_allclose(heights, truth[method], rtol=1e-12, err_msg=method)


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
    # one full-batch epoch: the merged mean is joint training
    for method in ("mean", "atm"):
        assert table.loc[("gd", method, 1), "accuracy"] == pytest.approx(table.loc[("gd", "joint", 1), "accuracy"])
    assert len(result.verdicts) == 20
    assert all(
        any(word in verdict for word in ("holds", "fails", "undecided", "does not apply"))
        for verdict in result.verdicts
    )
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
    assert kept == {"gd-0.1-0.json", "gd-0.1-1.json"}
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
    (tmp_path / "cells" / "gd-0.1-1.json").write_text("{")
    with pytest.raises(TvgradError, match=r"cannot be read .*: delete it"):
        analyse("digits", **options, cells=cells)


def test_the_best_rate_is_the_best_on_validation(recipes, monkeypatch):
    tasks = tasks_of(recipes, 3, most=100)
    assert grid("gd") == (0.001, 0.003, 0.01, 0.03, 0.1)
    found = best_rate("gd", tasks, 40, None, 3)
    scores = {}
    for rate in grid("gd"):
        weights = [train_alone(task, GD(rate), task.objective.initial, [16], None, 3).weights[16] for task in tasks]
        scores[rate] = sum(
            task.scorer.score(tuned, task.validation) for task, tuned in zip(tasks, weights, strict=True)
        )
    assert found == min(rate for rate in scores if scores[rate] == max(scores.values()))
    for task in tasks:
        monkeypatch.setattr(task.scorer, "test", None)  # no test sample is looked at
    assert best_rate("gd", tasks, 40, None, 3) == found


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
    assert len(result.verdicts) == 30
    result.save(tmp_path / "figure.png")
