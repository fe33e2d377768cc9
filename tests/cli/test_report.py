"""`tvgrad report`: files, terminal output, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tvgrad.cli.main import main

from tests.traced_runs import Traced, digits, digits_cache, tampered, traced
from tvgrad import Recorder
from tvgrad.report.documents import FORMATS, PAGE

__all__ = ["digits", "digits_cache", "tampered", "traced"]

Called = Callable[..., tuple[int, str, str]]

TABLES = ("norms", "directions", "equivalence", "cross_task")
FIGURES = ("gradient_shares", "descent_cosines", "cross_task_cosines")


@pytest.fixture
def tvgrad(capsys: pytest.CaptureFixture[str]) -> Called:
    """tvgrad(words ...) -> exit code, output, errors."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def runs(traced: Traced, tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for task in ("low", "rotated"):
        shutil.copytree(traced(task).root, root / task)
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_a_report(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    code, printed, err = tvgrad("report", runs, "--out", out, "--format", "csv", "--format", "md", "--format", "json")
    assert (code, err) == (0, "")
    assert str(out) in printed
    for name in TABLES:
        rows = rows_of(out / f"{name}.csv")
        assert rows
        assert len(json.loads((out / f"{name}.json").read_text())) == len(rows)
        lead = 2 if name == "equivalence" else 0  # the headline and an empty line
        assert len((out / f"{name}.md").read_text().splitlines()) == len(rows) + 2 + lead
    for name in FIGURES:
        assert (out / "figures" / f"{name}.png").stat().st_size > 5000
        assert (out / "figures" / f"{name}.svg").stat().st_size > 5000
    assert {row["run"] for row in rows_of(out / "norms.csv")} == {"low", "rotated"}
    assert {row["group"] for row in rows_of(out / "norms.csv")} == {"all", "encoder.0", "encoder.2"}


def test_csv_and_html_are_the_default(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    assert tvgrad("report", runs, "--out", tmp_path / "report")[0] == 0
    assert {path.suffix for path in (tmp_path / "report").iterdir() if path.is_file()} == {".csv", ".html"}


def test_a_second_report_replaces_the_first(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    assert tvgrad("report", runs, "--out", tmp_path / "report")[0] == 0
    assert tvgrad("report", runs / "low", "--out", tmp_path / "report")[0] == 0
    assert {row["run"] for row in rows_of(tmp_path / "report/norms.csv")} == {"low"}


def test_groups(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    assert tvgrad("report", runs, "--out", tmp_path / "report", "--groups", "bias|weight")[0] == 0
    assert {row["group"] for row in rows_of(tmp_path / "report/directions.csv")} == {"all", "bias", "weight"}
    code, _, err = tvgrad("report", runs, "--groups", "(")
    assert code == 2
    assert "is not a regular expression" in err


def test_the_terminal(tvgrad: Called, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tvgrad("report", runs)
    assert (code, err) == (0, "")
    for word in ("norms", "directions", "equivalence", "cross_task", "cos(τₑ, −g₀)", "equal signs", "exact"):  # noqa: RUF001
        assert word in out
    assert "gradient_norm_share" not in out, "headings are for people"
    assert out.splitlines()[-1].startswith("Next: ")
    assert "encoder.0" not in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert "encoder.0" in tvgrad("report", runs, "--groups", r"encoder\.\d")[1]


def test_a_run_named_twice_is_reported_once(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    assert tvgrad("report", runs, runs / "low", "--out", tmp_path / "report")[0] == 0
    rows = rows_of(tmp_path / "report/norms.csv")
    assert sum(row["run"] == "low" and row["group"] == "all" for row in rows) == 4


def test_formats(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    code, out, err = tvgrad("report", runs, "--out", tmp_path / "report", "--format", "xls")
    assert (code, out) == (2, "")
    assert err == f"Error: unknown format 'xls': choose from {', '.join([*FORMATS, PAGE])}\n"
    assert not (tmp_path / "report").exists()
    for wrong in (("--format", "html"), ("--format", "csv", "--format", "md")):
        code, out, err = tvgrad("report", runs, *wrong)
        assert (code, out) == (2, "")
        assert err == ("Error: without --out one format of csv, md, json and latex is printed: give --out for files\n")


def test_tables_on_standard_output(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    assert tvgrad("report", runs, "--out", tmp_path / "report", "--format", "csv", "--format", "md")[0] == 0
    for ending in ("csv", "md"):
        code, out, err = tvgrad("report", runs, "--table", "norms", "--format", ending)
        assert code == 0
        assert out == (tmp_path / "report" / f"norms.{ending}").read_text()
        assert err.splitlines()[-1].startswith("Next: ")
    found = json.loads(tvgrad("report", runs, "--format", "json")[1])
    assert len(found["norms"]) == len(rows_of(tmp_path / "report/norms.csv"))
    assert set(TABLES) <= set(found)
    assert "# directions\nrun,epoch,group," in tvgrad("report", runs, "--format", "csv")[1]
    code, out, err = tvgrad("report", runs, "--table", "norm")
    assert (code, out.count("\n")) == (2, 1)
    assert "there is no table 'norm': choose from norms, " in err


def test_a_folder_of_folders(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "low", tmp_path / "deep/a/first/low")
    shutil.copytree(runs / "low", tmp_path / "deep/a/second/low")
    assert tvgrad("report", tmp_path / "deep", "--out", tmp_path / "report")[0] == 0
    assert {row["run"] for row in rows_of(tmp_path / "report/norms.csv")} == {"first/low", "second/low"}


def test_out_is_a_file(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = tvgrad("report", runs, "--out", tmp_path / "file")
    assert code == 2
    assert "is a file: choose a folder for --out" in err


DAMAGES = [
    lambda run: (run / "weights/epoch-0001.safetensors").unlink(),
    lambda run: (run / "gradients/epoch-0002.safetensors").write_bytes(b"short"),
    lambda run: (run / "run.json").write_text("[]"),
    lambda run: (run / "weights/epoch-0001.safetensors").write_bytes(
        b"\xff" * (run / "weights/epoch-0001.safetensors").stat().st_size
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_runs(tvgrad: Called, runs: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(runs / "low")
    code, out, err = tvgrad("report", runs, "--out", tmp_path / "report")
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {runs / 'low'} is damaged: ")
    assert "--skip-damaged" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "report").exists()
    code, _, err = tvgrad("report", runs, "--out", tmp_path / "report", "--skip-damaged")
    assert code == 0
    assert err.startswith(f"{runs / 'low'} is left out: ")
    assert {row["run"] for row in rows_of(tmp_path / "report/norms.csv")} == {"rotated"}


@pytest.mark.parametrize("name", ["second_order.json", "error_budget.json"])
def test_damaged_results(tvgrad: Called, runs: Path, name: str) -> None:
    (runs / "low" / "results").mkdir()
    (runs / "low" / "results" / name).write_text("{")
    code, out, err = tvgrad("report", runs)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {runs / 'low' / 'results' / name}: ")
    assert err.endswith(": compute it again, or leave the run out by --skip-damaged\n")
    code, out, err = tvgrad("report", runs, "--skip-damaged", "--format", "csv")
    assert code == 0
    assert err.startswith(f"{runs / 'low'} is left out: {runs / 'low' / 'results' / name}: ")
    assert "rotated" in out
    assert "low" not in out


def test_nothing_but_damaged_runs(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    for run in runs.iterdir():
        DAMAGES[0](run)
    code, out, err = tvgrad("report", runs, "--out", tmp_path / "report", "--skip-damaged")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: every run is damaged and left out")
    assert len(err.splitlines()) == 3


def test_runs_of_different_models(tvgrad: Called, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(
        "import torch, tvgrad\n"
        "def recipe():\n"
        "    data = torch.eye(3), torch.arange(3)\n"
        "    return tvgrad.Recipe(torch.nn.Linear(3, 3), torch.nn.CrossEntropyLoss(), data, name='other')\n"
    )
    assert tvgrad("trace", tmp_path / "other.py", "--out", runs / "other", "--quiet", "--epochs", 1)[0] == 0
    code, out, _ = tvgrad("report", runs)
    assert code == 0
    assert "The runs are of 2 different models: a report on each follows." in out


def test_a_directory_without_runs(tvgrad: Called, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = tvgrad("report", tmp_path / "empty")
    assert code == 2
    assert err == (
        f"Error: {tmp_path / 'empty'} is neither a run directory nor a directory of runs: "
        "give the --out of a `tvgrad trace`\n"
    )
    assert tvgrad("report")[0] == 2


def recorded_by_hand(root: Path, *, inputs: int = 3, number: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
    """A run of three points, whose last weights hold a number."""
    model = torch.nn.Linear(inputs, 2, dtype=dtype)
    with Recorder(root, model) as recorder, torch.no_grad():
        for value in (1.0, number):
            model.weight[0, 0] = value
            recorder.end_epoch({"loss": 1.0})


@pytest.mark.parametrize(
    ("number", "dtype"), [(math.nan, torch.float32), (-math.inf, torch.float32), (1e200, torch.float64)]
)
def test_a_run_whose_numbers_are_none_hides_no_other(
    tvgrad: Called, tmp_path: Path, number: float, dtype: torch.dtype
) -> None:
    for name in ("first", "last"):
        recorded_by_hand(tmp_path / name, dtype=dtype)
    for name in ("odd", "too"):
        recorded_by_hand(tmp_path / name, number=number, dtype=dtype)
    recorded_by_hand(tmp_path / "model", inputs=4, number=number, dtype=dtype)
    first, odd, too, last, model = (tmp_path / name for name in ("first", "odd", "too", "last", "model"))
    said = [
        f"{one} is left out: numbers of {one}/weights/epoch-0002.safetensors are not finite, or too large for inner"
        " products"
        for one in (odd, too, model)
    ]
    assert tvgrad("report", first, last, "--out", tmp_path / "without")[0] == 0
    code, _, err = tvgrad("report", first, odd, too, last, "--out", tmp_path / "made")
    assert (code, err.splitlines()) == (0, said[:2])
    for table in ("norms", "directions", "cross_task"):
        assert (tmp_path / f"made/{table}.csv").read_text() == (tmp_path / f"without/{table}.csv").read_text()
    code, out, err = tvgrad("report", model, first, odd)
    assert code == 0
    assert "first" in out
    assert sorted(line for line in err.splitlines() if "left out" in line) == sorted([said[0], said[2]])
    for alone in ([odd], [odd, too], [odd, model]):
        code, out, err = tvgrad("report", *alone)
        assert code == 2
        assert "so it has no inner products: leave it out" in err.splitlines()[-1]
