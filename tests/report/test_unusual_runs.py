"""Reports on runs that are not whole, that cannot be explained, or that are of several models: no dead ends."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from tvgrad.cli.main import main

from tvgrad import Objective, Recorder, Run
from tvgrad.errors import TvgradError
from tvgrad.report.empty_columns import missing_results
from tvgrad.report.figures import captioned_figures, cross_task_cosines
from tvgrad.report.publishing import publish
from tvgrad.report.summary import summary_of
from tvgrad.report.tables import run_tables, runs_of_each_model
from tvgrad.theory.explainable import why_not_explained


def record(directory: Path, epochs: int = 2, width: int = 3, lr: float = 0.1, **options: str) -> Run:
    """A run of a linear layer; one that breaks off in its first epoch where there are no epochs."""
    torch.manual_seed(0)
    model = nn.Linear(width, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    try:
        with Recorder(directory, model, optimizer, **options) as recorder:
            for _ in range(epochs):
                optimizer.zero_grad()
                model(torch.randn(4, width)).square().mean().backward()
                optimizer.step()
                recorder.end_step()
                recorder.end_epoch()
            if not epochs:
                raise RuntimeError("the training's own")
    except RuntimeError:
        pass
    return Run.open(directory)


def called(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return int(left.value.code or 0)


def test_a_training_that_ended_in_its_first_epoch(tmp_path: Path) -> None:
    run = record(tmp_path / "run", epochs=0)
    made = run_tables([run])
    assert made.tables["norms"]["task_vector_norm"].tolist() == [0.0]
    trouble = made.tables["equivalence"]["trouble"].tolist()
    assert trouble == ["it stopped before the first epoch to be recorded had ended"]
    assert made.tables["equivalence"]["cause"].tolist() == ["the weights after epoch 1 were not recorded or not kept"]
    said = summary_of(made.tables, made.tasks, made.refused, made.scripts)
    assert said[-1].startswith("Next: trace it again, to the end of an epoch at least")  # no gradient would help
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files = publish(made, [run], tmp_path / "out", ("csv", "html"))
    assert (tmp_path / "out" / "report.html") in files
    assert not [path for path in files if path.suffix == ".png"]


def test_gradients_that_are_there_are_not_asked_for(tmp_path: Path) -> None:
    """An optimizer whose rule is not known: its rate is missing, not the gradient."""
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    objective = Objective(model, lambda output, _: output.square().sum(1).mean(), (x, torch.zeros(4)))
    optimizer = torch.optim.Adadelta(model.parameters())
    with Recorder(tmp_path / "run", model, optimizer, objective=objective) as recorder:
        optimizer.zero_grad()
        model(x).square().sum(1).mean().backward()
        optimizer.step()
        recorder.end_step()
        recorder.end_epoch()
    made = run_tables([Run.open(tmp_path / "run")])
    assert made.tables["equivalence"]["gradient_holds"].tolist() == ["unknown"]
    assert "they are what is missing" not in summary_of(made.tables, made.tasks, made.refused, made.scripts)[-1]


def test_one_broken_training_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tmp_path / "runs" / "whole")
    record(tmp_path / "runs" / "broken", epochs=0)
    main(["report", str(tmp_path / "runs")])
    printed = capsys.readouterr().out
    assert printed.startswith("Not finished: broken, it stopped before the first epoch")
    assert "whole" in printed


def test_runs_of_two_models_have_a_report_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrow, wide = record(tmp_path / "narrow"), record(tmp_path / "wide", width=5)
    again = record(tmp_path / "again")
    assert runs_of_each_model([narrow, wide, again]) == [[narrow, again], [wide]]
    main(["report", *(str(run.root) for run in (narrow, wide, again)), "--out", str(tmp_path / "out")])
    assert "The runs are of 2 different models: a report on each follows." in capsys.readouterr().out
    norms = {name: pd.read_csv(tmp_path / "out" / name / "norms.csv") for name in ("narrow", "wide")}
    assert {name: set(table["run"]) for name, table in norms.items()} == {
        "narrow": {"narrow", "again"},
        "wide": {"wide"},
    }


def test_nobody_is_sent_to_explain_where_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_step = record(tmp_path / "by-step", record_at="steps:1,2")
    why = why_not_explained(by_step)
    assert why is not None
    assert "was recorded by step" in why
    made = run_tables([by_step])
    (sentence,) = missing_results(made.tables, made.refused)
    assert "cannot have any" in sentence
    assert "`tvgrad explain" not in sentence
    assert called("explain", by_step.root) == 2
    assert why in capsys.readouterr().err  # and not the advice to name a recipe
    assert why_not_explained(record(tmp_path / "by-epoch")) is None


def test_adam_without_batches_cannot_be_explained(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(model.parameters())
    with Recorder(tmp_path / "run", model, optimizer) as recorder:
        for _ in range(2):
            model(torch.randn(4, 3)).square().mean().backward()
            optimizer.step()
        recorder.end_epoch()
    why = why_not_explained(Run.open(tmp_path / "run"))
    assert why is not None
    assert "was trained by adam" in why


def test_pairs_without_the_last_epoch_have_no_cosine() -> None:
    rows = [("a", "b", 1, 0.5), ("a", "c", 1, 0.4), ("b", "c", 1, 0.3), ("a", "b", 2, 0.2)]
    table = pd.DataFrame(rows, columns=["run_a", "run_b", "epoch", "cos_task_vectors"]).assign(group="all")
    table.loc[len(table)] = ["a", "c", 2, 0.1, "all"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = np.ma.asarray(cross_task_cosines(table).collections[0].get_array()).reshape(3, 3)
    assert shown[0, 1] == 0.2
    assert np.ma.getmaskarray(shown)[1, 2]


@pytest.mark.parametrize("case", ["still", "one epoch", "one step", "no gradients"])
def test_figures_of_unusual_runs_draw_without_a_warning(tmp_path: Path, case: str) -> None:
    made = {
        "still": lambda: record(tmp_path / "run", lr=0.0),
        "one epoch": lambda: record(tmp_path / "run", epochs=1),
        "one step": lambda: record(tmp_path / "run", record_at="steps:1"),
        "no gradients": lambda: record(tmp_path / "run", record=()),  # type: ignore[arg-type]
    }[case]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        publish(run_tables([made]), [made], tmp_path / "out", ("csv",))


def test_figures_of_tables_without_blocks(tmp_path: Path) -> None:
    """A model whose every block began at zero has no relative norms by block, and no empty map of them."""
    norms = pd.DataFrame({"run": ["a", "a"], "group": ["all", "0"], "relative_norm": [0.5, float("nan")]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not captioned_figures({"norms": norms}, tmp_path)


def test_no_run_at_all() -> None:
    assert runs_of_each_model([]) == []
    with pytest.raises(TvgradError, match="no run to report on"):
        run_tables([])
