"""`tvgrad demo`: the whole job on real data, in a folder of its own."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
from tvgrad.cli.main import main

from tvgrad.store.run import open_runs

TASKS = ["high", "inverted", "low", "parity", "permuted", "rotated"]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def demo(*words: object) -> int:
    try:
        main(["demo", "--quiet", *map(str, words)])
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_a_demo_and_another_one_in_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo\x1b[2J"
    assert demo("--out", out, "--epochs", 3) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in printed
    for task in TASKS:
        assert f"{task}: exact; every coordinate within the rounding of one float32 step" in printed
    shown = str(out).replace("\x1b", "\\x1b")
    assert f"Runs:    {shown}/runs\n" in printed
    assert f"Tables:  {shown}/report\n" in printed
    assert f"Figures: {shown}/report/figures" in printed
    for name in ("gradient_shares", "descent_cosines", "cross_task_cosines"):
        picture = out / "report" / "figures" / f"{name}.png"
        assert picture.exists()
    assert [run.name for run in open_runs([out / "runs"])] == TASKS
    with (out / "report" / "norms.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == "all"]
    assert len(rows) == 6 * 4
    assert (out / "report" / "norms.md").exists()
    first = {row["run"]: float(row["gradient_norm_share"]) for row in rows if row["epoch"] == "0"}
    for task, share in first.items():
        assert f"{task} {share:.2f}" in printed

    (out / "notes.txt").write_text("mine")
    (out / "runs" / "stale").mkdir()
    assert demo("--out", out, "--epochs", 2) == 0
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "runs" / "stale").exists()
    assert [run.points[-1].number for run in open_runs([out / "runs"])] == [2] * 6

    # a mistake costs nothing of what is there
    assert demo("--out", out, "--epochs", 0) == 2
    assert [run.points[-1].number for run in open_runs([out / "runs"])] == [2] * 6


def test_other_peoples_folders_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert demo("--out", tmp_path, "--epochs", 1) == 2
    assert "holds other files: choose an empty or new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert demo("--out", tmp_path / "thesis.tex", "--epochs", 1) == 2
    assert "is a file" in capsys.readouterr().err
    assert demo("--out", tmp_path / "thesis.tex" / "below", "--epochs", 1) == 2
    assert "Error: " in capsys.readouterr().err
