"""The analyses on the digits recipe: small versions by default, the whole of each when slow tests run."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tvgrad.analyses.analysis_result import AnalysisResult
from tvgrad.analyses.falling_rates import fitted_order
from tvgrad.cli.analyse import ANALYSES
from tvgrad.cli.main import main

from tvgrad import TvgradError

THEORY = (
    "one_epoch_equivalence",
    "second_order_error",
    "convergence_orders",
    "multitask_gap",
    "practical_optimizers",
    "merge_coefficients",
)
SMALL: dict[str, dict[str, Any]] = {
    "second_order_error": {"rates": (0.003, 0.03), "epochs": (2, 5)},
    "convergence_orders": {"rates": 3, "samples": 60},
    "multitask_gap": {"rates": (2e-3, 1e-3, 5e-4), "epochs": 3},
    "practical_optimizers": {"rates": (1e-4, 1e-5)},
    "leave_out": {"retrainings": 6, "epochs": 2},
    "merge_coefficients": {"trainings": ("gd:0.003:2",), "seeds": 1, "images": 40},
}


def _checked(result: AnalysisResult, folder: Path) -> None:
    assert result.outcome == "holds", result.evidence
    assert len(result.table)
    assert result.claim.endswith(".")
    result.save(folder / "figure.png")
    assert (folder / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize("name", SMALL)
def test_small(name: str, tmp_path: Path) -> None:
    _checked(importlib.import_module(f"tvgrad.analyses.{name}").analyse("digits", **SMALL[name]), tmp_path)


def test_orders_that_are_off_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prediction of the second-order term that is 1 % off leaves an error of second order."""
    module = importlib.import_module("tvgrad.analyses.convergence_orders")
    whole = module.predict

    def wrong(*given: Any) -> Any:
        made = whole(*given)
        bent = {name: tensor + 0.01 * (tensor - made.order1[name]) for name, tensor in made.order2.items()}
        return replace(made, order2=bent)

    monkeypatch.setattr(module, "predict", wrong)
    assert module.analyse("digits", **SMALL["convergence_orders"]).outcome == "fails"


def test_verdicts_count_every_case() -> None:
    result = importlib.import_module("tvgrad.analyses.second_order_error").analyse(
        "digits", **SMALL["second_order_error"]
    )
    counted = [int(number) for line in result.verdicts for number in re.findall(r"of (\d+) cases", line)]
    assert sum(counted) == len(result.table)


def test_task_arithmetic_needs_several_tasks(tmp_path: Path) -> None:
    one = tmp_path / "one.py"
    one.write_text(
        "import torch, tvgrad\n"
        "def recipe():\n"
        "    data = (torch.randn(20, 3), torch.randint(0, 2, (20,)))\n"
        "    return tvgrad.Recipe(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), data)\n"
    )
    with pytest.raises(TvgradError, match="has one task"):
        importlib.import_module("tvgrad.analyses.multitask_gap").analyse(str(one))


@pytest.mark.slow
@pytest.mark.parametrize("name", THEORY)
def test_whole(name: str, tmp_path: Path) -> None:
    _checked(importlib.import_module(f"tvgrad.analyses.{name}").analyse("digits"), tmp_path)


def test_every_analysis_is_in_the_catalogue_and_has_the_function() -> None:
    assert set(THEORY) <= set(ANALYSES)
    for name in ANALYSES:
        assert callable(importlib.import_module(f"tvgrad.analyses.{name}").analyse)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tvgrad.analyses.multitask_gap")
    whole = module.analyse
    monkeypatch.setattr(module, "analyse", lambda target: whole(target, rates=(1e-3, 5e-4), epochs=2))
    main_(["analyse"])
    assert "multitask_gap" in capsys.readouterr().out
    main_(["analyse", "multitask-gap", "--out", str(tmp_path / "made")])
    said = capsys.readouterr().out
    assert "Claim: " in said
    assert "It held: " in said
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"multitask_gap.png", "multitask_gap.csv"}
    with pytest.raises(SystemExit) as stopped:
        main(["analyse", "nothing"])
    assert stopped.value.code == 2
    assert "there is no analysis 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "said", "code"),
    [
        ("holds", "held", 0),
        ("fails", "did not hold", 1),
        ("undecided", "is undecided", 0),
        ("vacuous", "is vacuous", 0),
    ],
)
def test_the_command_says_what_became_of_the_claim(
    outcome: str,
    said: str,
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = importlib.import_module("tvgrad.analyses.multitask_gap")
    result = replace(module.analyse("digits", rates=(1e-3, 5e-4), epochs=2), outcome=outcome)
    monkeypatch.setattr(module, "analyse", lambda target: result)
    left: object = 0
    try:
        main(["analyse", "multitask_gap", "--out", str(tmp_path)])
    except SystemExit as stopped:
        left = stopped.code
    assert left == code
    printed = capsys.readouterr()
    assert f"It {said}: " in printed.out
    assert ("It held" in printed.out) == (outcome == "holds")
    assert ("the claim of multitask_gap did not hold on digits" in printed.err) == (code == 1)


def main_(words: list[str]) -> None:
    """Run the command line, which may or may not leave by SystemExit."""
    code: object = 0
    try:
        main(words)
    except SystemExit as stopped:
        code = stopped.code
    assert not code


def test_fitted_order() -> None:
    assert fitted_order([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
