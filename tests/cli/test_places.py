"""Where commands write: a pipe or a folder in the way, a full disk, a full stream; from the command line alone."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tvgrad as package
from tests.cli.outcomes import sentence

Tvgrad = Callable[..., Any]
RECIPE = """
import torch, tvgrad
from torch import nn
def two():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    return [tvgrad.Recipe(model, nn.CrossEntropyLoss(), (x, (torch.arange(6) + k) % 2), name=name, lr=.1, epochs=1)
            for k, name in enumerate(("one", "two"))]
"""


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two runs of one model, and the recipe that made them."""
    place = tmp_path_factory.mktemp("places")
    (place / "mine.py").write_text(RECIPE)
    from tvgrad.record.options import TraceOptions
    from tvgrad.record.training_loop import prepare, trace

    torch.manual_seed(0)
    model, x = nn.Linear(3, 2), torch.randn(6, 3)
    for k, name in enumerate(("one", "two")):
        data = x, (torch.arange(6) + k) % 2
        recipe = package.Recipe(model, nn.CrossEntropyLoss(), data, name=name, lr=0.1)
        trace(prepare(recipe, TraceOptions(epochs=1, chunk_size=6)), place / name)
    return {"ONE": str(place / "one"), "TWO": str(place / "two"), "MINE": str(place / "mine.py") + ":two"}


FILES = {
    "relate": ("relate ONE TWO --quiet", "--out", "x.csv"),
    "relate recipes": ("relate MINE --quiet", "--out", "x.csv"),
    "merge": ("merge ONE TWO --method mean", "--out", "x.safetensors"),
    "plan": ("plan MINE", "--save", "x.json"),
    "plan of runs": ("plan ONE TWO --recipe MINE", "--save", "x.safetensors"),
    "attribute": ("attribute ONE --recipe MINE", "--save", "x.csv"),
    "attribute's figure": ("attribute ONE --recipe MINE", "--figure", "x.svg"),
}
FOLDERS = {
    "report": ("report ONE --format csv", "--out"),
    "export": ("export ONE", "--out"),
    "trace": ("trace MINE --tasks one", "--out"),
    "analyse": ("analyse leave_out", "--out"),
    "demo": ("demo", "--out"),
    "merge checkpoints": ("merge --pretrained ONE/weights/epoch-0000.safetensors ONE/weights/epoch-0001.safetensors",
                          "--out"),
}  # fmt: skip


def words(line: str, ready: dict[str, str], *more: object) -> list[object]:
    parts: list[object] = []
    for word in line.split():
        for name, value in ready.items():
            word = word.replace(name, value)
        parts.append(word)
    return [*parts, *more]


@pytest.mark.parametrize("name", FILES)
def test_what_stands_in_the_way_of_a_file(tvgrad: Tvgrad, ready: dict[str, str], tmp_path: Path, name: str) -> None:
    line, option, file = FILES[name]
    (tmp_path / "folder").mkdir()
    for kind in ("pipe", "folder", "nowhere"):
        place = tmp_path / kind / file
        if kind == "pipe":
            place = tmp_path / file
            os.mkfifo(place)
        elif kind == "folder":
            place.mkdir()
        said = sentence(tvgrad(*words(line, ready, option, place)))
        assert str(tmp_path if kind != "nowhere" else place.parent) in said
    assert (tmp_path / file).is_fifo()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["folder", file])


@pytest.mark.parametrize("name", FOLDERS)
def test_what_stands_in_the_way_of_a_folder(tvgrad: Tvgrad, ready: dict[str, str], tmp_path: Path, name: str) -> None:
    line, option = FOLDERS[name]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    for place in ("pipe", "file", "link", "pipe/below", "file/below"):
        said = sentence(tvgrad(*words(line, ready, option, tmp_path / place)))
        assert str(tmp_path / place.partition("/")[0]) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


WRITING = {**FILES, **{name: (line, option, "out") for name, (line, option) in FOLDERS.items() if name not in {
    "demo", "analyse", "trace"}}}  # fmt: skip


@pytest.mark.parametrize("name", WRITING)
def test_a_full_disk_names_the_file_and_what_to_do(
    tvgrad: Tvgrad, ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    line, option, file = WRITING[name]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tvgrad.files.atomic.replace", full)
    said = sentence(tvgrad(*words(line, ready, option, tmp_path / file)))
    assert said.startswith(f"Error: no room on the disk for {tmp_path / file}")
    assert said.endswith(": free some space and type the command again")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.undo()
    assert tvgrad(*words(line, ready, option, tmp_path / file)).code == 0  # as the sentence says


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it is a device of Linux")
def test_streams_that_take_nothing(ready: dict[str, str]) -> None:
    def done(line: str) -> tuple[int, str, str]:
        command = f"exec {sys.executable} -m tvgrad {line}"
        found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        return found.returncode, found.stdout, found.stderr

    full = "Error: standard output cannot be written (No space left on device): free some space, or send it elsewhere\n"
    assert done("recipes > /dev/full") == (2, "", full)
    assert done("verify nosuch 2> /dev/full")[:2] == (2, "")


def test_results_in_whose_place_something_stands(
    tvgrad: Tvgrad, ready: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the work of `explain`, and by the report that would read them."""
    shutil.copytree(ready["ONE"], tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "results")
    said = sentence(tvgrad("explain", tmp_path / "run", "--recipe", ready["MINE"]))
    assert said.endswith("results is a pipe: remove it, or explain a copy of the run")
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "access", lambda path, mode: mode == os.R_OK or Path(path) != tmp_path / "run")
        (tmp_path / "run" / "results").unlink()
        said = sentence(tvgrad("explain", tmp_path / "run", "--recipe", ready["MINE"]))
        assert said.endswith("/run may not be written to: explain a copy of the run")
    os.mkfifo(tmp_path / "run" / "results")
    said = sentence(tvgrad("report", tmp_path / "run"))
    again = "remove it, and run `tvgrad explain` again, or leave the run out by --skip-damaged"
    assert said.endswith(f"results cannot be read (Not a directory): {again}")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_path_that_is_no_text_is_its_bytes_for_the_program_that_reads_it(
    ready: dict[str, str], tmp_path: Path
) -> None:
    out = os.fsencode(tmp_path) + b"/\xff"
    command = [sys.executable, "-m", "tvgrad", "export", ready["ONE"], "--out", out]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line == out + b"/model.safetensors"
    assert os.path.isfile(line)
