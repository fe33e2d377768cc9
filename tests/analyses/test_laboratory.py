"""The analyses of conceptual tasks: their parts against definitions, small studies, and the whole ones (slow)."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tvgrad.analyses import concept_grid, concept_verdicts, forgetting, low_rank, task_negation
from tvgrad.analyses.concept_training import MIX, ConceptSetting, setting_of
from tvgrad.analyses.mechanism import predicted
from tvgrad.analyses.out_of_domain import read_mixture
from tvgrad.cli.main import main

from tvgrad.errors import TvgradError
from tvgrad.recipes.conceptual import TokenMix
from tvgrad.recipes.conceptual_transformer import ConceptualTransformer

GRID = {"rhos": 3, "lambdas": 9, "seeds": 2, "steps": 100}
FEW_PATTERNS = (3, 1, 6, 10, 16)
SMALL = {
    "task_addition": (GRID, "holds"),
    "task_negation": (GRID, "fails"),
    "mechanism": (GRID, "fails"),
    "out_of_domain": ({"mixtures": ("0.9:0:0", "0.5:0.5:0.5"), "scales": 21, "seeds": 2}, None),
    "low_rank": ({"seeds": 2, "steps": 100}, "holds"),
    "forgetting": ({"shapes": ("10:5", "6:12"), "draws": 4000, "widths": (4, 32), "seeds": 2, "steps": 30}, "holds"),
}


@pytest.mark.parametrize("name", SMALL)
def test_small(name: str, tmp_path: Path) -> None:
    options, outcome = SMALL[name]
    result = importlib.import_module(f"tvgrad.analyses.{name}").analyse(**options)
    assert result.outcome == outcome or (outcome is None and result.outcome in {"holds", "undecided"}), result.evidence
    assert result.claim.endswith(".")
    assert result.verdicts
    assert len(result.table)
    result.save(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_whole(name: str, tmp_path: Path) -> None:
    result = importlib.import_module(f"tvgrad.analyses.{name}").analyse()
    wanted = {"task_negation": "fails", "mechanism": "fails", "out_of_domain": "fails"}
    assert result.outcome == wanted.get(name, "holds"), result.evidence


def test_a_sum_of_the_grid_is_the_model_it_stands_for() -> None:
    setting = ConceptSetting(TokenMix(3, 1, 2, 6, 10), steps=20)
    grid = concept_grid.concept_grid(setting, [-0.5, 0.5], [-1.0, 0.0, 1.5], 2)
    assert len(grid) == 2 * 2 * 3
    tasks = concept_grid.pair_tasks(setting, [-0.5, 0.5], 1)
    stack, vectors = concept_grid.trained_concepts(setting, tasks)
    model = ConceptualTransformer(10, 16, generator=torch.Generator())
    rows, labels = setting.tests()
    row = grid[(grid["seed"] == 1) & (grid["rho"] == 0.5) & (grid["lam"] == 1.5)].iloc[0]
    weights = {n: t[0] + vectors[n][0] + 1.5 * vectors[n][2] for n, t in stack.start.items()}
    model.load_state_dict({**weights, "readout": model.readout})
    with torch.no_grad():
        for place, task in ((1, tasks[0]), (2, tasks[2])):
            margin = labels * model(task.table[rows], setting.mix.repeats)
            assert row[f"margin_{place}"] == pytest.approx(float(margin.mean()), rel=1e-4)
            assert row[f"loss_{place}"] == pytest.approx(float((1 - margin).clamp(min=0).mean()), rel=1e-4)


def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = ConceptSetting(TokenMix(3, 1, 2, 6, 10), steps=5)
    given = (setting, [0.0, 0.5], [0.0, 1.0])
    whole = concept_grid.concept_grid(*given, 4)
    trained, calls = concept_grid.trained_concepts, []

    def stops(*given, **options):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return trained(*given, **options)

    monkeypatch.setattr(concept_grid, "trained_concepts", stops)
    with pytest.raises(KeyboardInterrupt):
        concept_grid.concept_grid(*given, 4, cells=str(tmp_path))
    resumed = concept_grid.concept_grid(*given, 4, cells=str(tmp_path))
    assert len(calls) == 3
    pd.testing.assert_frame_equal(resumed, whole)
    with pytest.raises(TvgradError, match="was made with steps 5 and not 6"):
        concept_grid.concept_grid(ConceptSetting(setting.mix, steps=6), *given[1:], 4, cells=str(tmp_path))


@pytest.mark.parametrize("name", ["low_rank", "out_of_domain"])
def test_seeds_are_kept_by_twos_and_do_not_depend_on_each_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"tvgrad.analyses.{name}")
    options: dict[str, object] = {"seeds": 3, "steps": 3, "mix": FEW_PATTERNS}
    whole = module.analyse(**options)
    kept = module.analyse(**options, cells=str(tmp_path))
    assert sorted(path.stem.partition("-")[2] for path in tmp_path.iterdir()) == ["0to1", "2to2"]
    pd.testing.assert_frame_equal(kept.table, whole.table)
    monkeypatch.setattr(module, "trained_concepts", None)  # nothing is trained again
    pd.testing.assert_frame_equal(module.analyse(**options, cells=str(tmp_path)).table, whole.table)


def test_a_claim_that_is_not_true_fails() -> None:
    """Few irrelevant patterns give both tasks a direction in common, which lowers the threshold by more than 0.1."""
    result = importlib.import_module("tvgrad.analyses.task_addition").analyse(mix=FEW_PATTERNS, **{**GRID, "seeds": 5})
    assert result.outcome == "fails"


def test_thresholds_are_interpolated() -> None:
    table = pd.DataFrame({"lam": [-1.0, 0.0, 0.5, 1.0, 1.5], "loss": [0.0, 0.8, 0.21, 0.0, 0.0]})
    assert concept_verdicts.first_solved(table, "lam", "loss") == pytest.approx(0.5 + 0.5 * 0.2 / 0.21)
    assert concept_verdicts.finer(table, "lam", "loss")[::20] == [0.5, 1.0]
    assert concept_verdicts.first_solved(table.assign(loss=0.0), "lam", "loss") == 0
    assert math.isnan(concept_verdicts.first_solved(table.assign(loss=1.0), "lam", "loss"))
    assert concept_verdicts.finer(table.assign(loss=1.0), "lam", "loss") == []


def test_closeness() -> None:
    assert concept_verdicts.closeness({0.0: [0.01, 0.02, 0.03], 1.0: [-0.02, 0.0, -0.01]}).outcome == "holds"
    assert concept_verdicts.closeness({0.0: [0.01, 0.02, 0.03], 1.0: [0.29, 0.3, 0.31]}).outcome == "fails"
    assert concept_verdicts.closeness({0.0: [0.01, 0.02, 0.03], 1.0: [0.0, 0.15, 0.25]}).outcome == "undecided"
    missing = concept_verdicts.closeness({0.0: [0.01, 0.02, math.nan]})
    assert (missing.outcome, missing.intervals[0.0].high) == ("undecided", math.inf)
    assert concept_verdicts.closeness({0.0: [0.2, 0.2]}).outcome == "fails"


def test_negation_is_judged_by_both_losses() -> None:
    grid = pd.DataFrame({
        "seed": 0,
        "rho": [0.0, 0.0, 0.0, -0.5, -0.5, -0.5, -0.5, 0.5],
        "lam": [-1.0, 0.0, 0.5, -5.0, -4.0, -0.5, -0.4, -1.0],
        "loss_1": [0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0],
        "loss_2": [1.5, 0.95, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0],
    })
    judged = task_negation.negated(grid)
    assert judged["works"].tolist() == [True, True, False, True, False, False, True, True]
    assert judged["stated"].tolist() == [True, True, False, False, True, True, False, False]
    assert task_negation.stretch(judged[judged["rho"] == 0]) == (-1.0, 0.0)
    assert task_negation.stretch(judged[judged["loss_1"] > 0]) is None


def test_predictions_of_the_mechanism() -> None:
    row = {"rho": -0.5, "lam": 2.0, "own_1": 1.1, "own_2": 1.2, "logit_own_1": 3.0, "logit_own_2": 4.0}
    made = predicted(pd.DataFrame([{**row, "margin_1": 0.0, "margin_2": 1.85, "logit_1": 5.0, "logit_2": 9.0}])).iloc[0]
    assert made["margin_1_predicted"] == pytest.approx(1.1 - 1.2)
    assert made["margin_2_predicted"] == pytest.approx(-0.55 + 2.4)
    assert made["logit_1_predicted"] == pytest.approx(3.0 + 2 * 0.25 * 4)
    assert made["logit_2_predicted"] == pytest.approx(0.25 * 3 + 8)
    assert made["margin_2_deviation"] == pytest.approx(0)
    assert made["margin_1_deviation"] == pytest.approx(0.1 / 1.1)


def test_cuts_of_task_vectors() -> None:
    matrices = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix, cut in zip(matrices.numpy(), low_rank.cut_rank(matrices, 2).numpy(), strict=True):
        assert np.linalg.matrix_rank(cut) == 2
        assert np.linalg.norm(matrix - cut) == pytest.approx(np.sqrt((np.linalg.svd(matrix)[1][2:] ** 2).sum()))
    for matrix, cut in zip(matrices, low_rank.cut_entries(matrices, 0.3), strict=True):
        kept = cut != 0
        assert int(kept.sum()) == 6
        assert torch.equal(cut[kept], matrix[kept])
        assert matrix[kept].abs().min() > matrix[~kept].abs().max()
    for matrix, cut in zip(matrices, low_rank.cut_rows(matrices, 0.4), strict=True):
        kept = cut.any(1)
        assert int(kept.sum()) == 2
        assert torch.equal(cut[kept], matrix[kept])
        assert matrix[kept].norm(dim=1).min() > matrix[~kept].norm(dim=1).max()


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_the_forgetting_formula_is_an_average_over_all_rotations_of_the_plane(samples: int) -> None:
    """In two dimensions the average is an integral over an angle, of turns and of reflections."""
    draw = np.random.default_rng(4)
    inputs, targets = draw.standard_normal((samples, 2)), draw.standard_normal(samples)
    first, errors = np.linalg.lstsq(inputs, targets, rcond=None)[0], []
    for angle in np.arange(64) * 2 * np.pi / 64:  # trigonometric polynomials of low degree: 64 points are exact
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for matrix in (turn, turn @ np.diag([1.0, -1.0])):
            change = np.linalg.lstsq(inputs @ matrix, targets - inputs @ matrix @ first, rcond=None)[0]
            errors.append(((inputs @ (first + change) - targets) ** 2).sum())
    assert forgetting.expected_error(inputs, targets) == pytest.approx(np.mean(errors), rel=1e-9)


def test_a_wrong_formula_of_forgetting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = forgetting.expected_error
    monkeypatch.setattr(forgetting, "expected_error", lambda inputs, targets: 1.1 * right(inputs, targets))
    found = forgetting.analyse(**SMALL["forgetting"][0])  # type: ignore[arg-type]
    assert found.outcome == "fails"
    assert "within 2 standard errors: fails, 0 of 2; of 2 true values all are in 0.954^2 = 91%" in found.verdicts[0]


def test_rotations_are_drawn_in_parts() -> None:
    draw = np.random.default_rng(0)
    inputs, targets = draw.standard_normal((4, 3)), draw.standard_normal(4)
    found = forgetting.simulated_errors(inputs, targets, 700, np.random.default_rng(1))
    assert found.shape == (700,)
    assert len(set(found.round(12).tolist())) == 700


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["task_addition", "--set", "most_rho=1.2"],
            "rho is the cosine of two tasks and lies between -1 and 1, not -1.2",
        ),
        (["task_addition", "--set", "rhos=1"], "rhos must be at least 2, not 1"),
        (["task_negation", "--set", "most_lambda=nan"], "most_lambda must be a finite number above 0, not nan"),
        (["mechanism", "--set", "most_rho=0"], "most_rho must be a finite number above 0, not 0"),
        (["out_of_domain", "--set", "mixtures=nan:0:0"], "'nan:0:0' is no mixture of 3 tasks"),
        (["mechanism", "--set", "mix=6,2,2,40,36"], "40 irrelevant patterns and 2 directions of tasks cannot be"),
        (
            ["task_negation", "--on", "digits"],
            "makes its own conceptual tasks and cannot run on digits: leave --on out",
        ),
        (["task_addition", "--set", "mix=6,2"], "mix is 5 whole numbers, relevant, confusing"),
        (["task_addition", "--set", "seeds=1"], "seeds must be at least 2, not 1"),
        (["low_rank", "--set", "steps=0"], "steps must be a whole number of at least 1, not 0"),
        (["out_of_domain", "--set", "mixtures=0.9:0.9:0"], "have the norm 1.27"),
        (["out_of_domain", "--set", "mixtures=0.9:x"], "'0.9:x' is no mixture of 3 tasks"),
        (["forgetting", "--set", "shapes=10"], "'10' is no shape"),
        (["forgetting", "--on", "suite"], "cannot run on suite"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyse", *words, "--out", str(tmp_path)])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert len(printed.strip().splitlines()) == 1


def test_the_command_runs_an_analysis_on_its_own_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"{name}={value}" for name, value in GRID.items()]
    with pytest.raises(SystemExit) as stopped:
        main(["analyse", "mechanism", "--out", str(tmp_path), *(part for word in words for part in ("--set", word))])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "It did not hold: " in printed.out
    assert "the claim of mechanism did not hold on conceptual" in printed.err
    assert {path.name for path in tmp_path.iterdir()} == {"mechanism.png", "mechanism.csv"}


def test_conditions() -> None:
    assert setting_of("conceptual", MIX, 7) == ConceptSetting(TokenMix(), steps=7)
    assert read_mixture("0.6:-0.6:0") == [0.6, -0.6, 0.0]
    assert concept_grid.evenly(0.8, 5, "rho") == [-0.8, -0.4, 0.0, 0.4, 0.8]
