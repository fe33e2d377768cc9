"""Replacing a run: only what tvgrad wrote is deleted, and nothing where anything else is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tvgrad
from tvgrad import Recorder, Run
from tvgrad.errors import TvgradError
from tvgrad.store.overwrite import remove_run, require_replaceable


def record(directory: Path, epochs: int = 1, **options: bool) -> Run:
    model = torch.nn.Linear(2, 1)
    with Recorder(directory, model, torch.optim.SGD(model.parameters(), lr=0.1), **options) as recorder:
        for _ in range(epochs):
            recorder.end_epoch()
    return Run.open(directory)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_run_is_replaced(tmp_path: Path) -> None:
    record(tmp_path / "run", epochs=3)
    (tmp_path / "run" / "results").mkdir()
    (tmp_path / "run" / "results" / "error_budget.json").write_text("[]")
    before = record(tmp_path / "other")
    again = record(tmp_path / "run", overwrite=True)
    assert again.epochs == [0, 1]
    assert not again.problems()
    assert files(tmp_path / "run") == files(before.root)


def test_where_there_is_no_run_nothing_is_replaced(tmp_path: Path) -> None:
    assert record(tmp_path / "new", overwrite=True).epochs == [0, 1]
    remove_run(tmp_path / "missing")


@pytest.mark.parametrize("place", ["notes.txt", "weights/mine.safetensors", "results/mine.json", "steps/notes.csv"])
def test_what_is_not_of_a_run_is_never_deleted(tmp_path: Path, place: str) -> None:
    record(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    before = files(tmp_path)
    for act in (require_replaceable, remove_run):
        with pytest.raises(TvgradError, match=rf"holds other files beside its run \({place}\)"):
            act(tmp_path)
    with pytest.raises(TvgradError, match="holds other files"):
        record(tmp_path, overwrite=True)
    assert files(tmp_path) == before


def test_a_run_json_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(TvgradError, match=r"nothing of .* is replaced"):
        record(tmp_path, overwrite=True)
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    record(tmp_path / "runs" / "one")
    with pytest.raises(TvgradError, match="holds other files"):
        record(tmp_path / "runs", overwrite=True)
    assert Run.open(tmp_path / "runs" / "one").epochs == [0, 1]


def test_a_run_that_is_being_written_stays(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 1)
    with Recorder(tmp_path, model), pytest.raises(TvgradError, match="is being written by"):
        record(tmp_path, overwrite=True)
    assert Run.open(tmp_path).epochs == [0]


def test_the_advice_exists_in_python(tmp_path: Path) -> None:
    record(tmp_path)
    with pytest.raises(TvgradError, match=r"already holds a run: .*Recorder\(..., resume=True\).*overwrite=True"):
        record(tmp_path)
    with pytest.raises(TvgradError, match="either resumed or overwritten"):
        tvgrad.Recorder(tmp_path, torch.nn.Linear(2, 1), resume=True, overwrite=True)
