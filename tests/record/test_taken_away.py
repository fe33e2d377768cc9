"""A run directory that is taken away from its trace while it goes on: one sentence, and what is left goes on to the
same bits, or nothing is made where another's folder may be."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvgrad.errors import TvgradError
from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

MakeRecipe = Callable[..., Recipe]
Bits = Callable[[Path], dict[str, bytes]]
OPTIONS = {
    "optimizer": "momentum",
    "batch_size": 8,
    "chunk_size": 8,
    "epochs": 3,
    "record": ("gradients", "epoch-gradients", "batches"),
}


def traced(make_recipe: MakeRecipe, root: Path, then: Callable[[], object] | None = None, resume: bool = False) -> Run:
    """A trace, with something that happens after its first epoch."""
    prepared = prepare(make_recipe(), TraceOptions(**OPTIONS, resume=resume))
    return trace(prepared, root, lambda progress: then() if then and progress.epoch == 1 else None)


def replaced(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()
    (root / "theirs.txt").write_text("mine")


GONE = {
    "removed": lambda root: shutil.rmtree(root),
    "moved": lambda root: root.rename(root.with_name("elsewhere")),
    "replaced": replaced,
}


@pytest.mark.parametrize("how", GONE)
def test_a_directory_that_is_taken_away(tmp_path: Path, make_recipe: MakeRecipe, bits: Bits, how: str) -> None:
    root = tmp_path / "run"
    with pytest.raises(TvgradError, match="run was removed or replaced while it was written") as caught:
        traced(make_recipe, root, lambda: GONE[how](root))
    assert len(str(caught.value).splitlines()) == 1
    left = sorted(path.name for path in tmp_path.rglob("*.*"))
    assert how == "moved" or left == (["theirs.txt"] if how == "replaced" else [])
    if how == "moved":
        moved = tmp_path / "elsewhere"
        assert (Run.open(moved).epochs, Run.open(moved).problems()) == ([0, 1], [])
        assert not root.exists()
        traced(make_recipe, moved, resume=True)
        traced(make_recipe, root)
        assert bits(moved) == bits(root)


def test_a_folder_of_a_run_that_is_removed(tmp_path: Path, make_recipe: MakeRecipe, bits: Bits) -> None:
    """The trace goes on and records what comes; `problems` names what was taken, whatever folder it was."""
    whole = tmp_path / "whole"
    traced(make_recipe, whole)
    expected = bits(whole)
    for name in ("weights", "gradients", "batches", "steps", "state"):
        lost = {path for path in expected if path.startswith(f"{name}/")}
        assert lost
        root = tmp_path / name
        traced(make_recipe, root, lambda folder=root / name: shutil.rmtree(folder))
        run, found = Run.open(root), bits(root)
        listed = run.manifest.listed()
        assert all(content == expected[path] for path, content in found.items() if path in listed)
        named = {path for path in lost for problem in run.problems() if path in problem}
        assert named == {path for path in lost if path in listed and path not in found}
        assert bool(named) == (name != "state")  # that is written anew with each epoch


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_becomes_read_only(tmp_path: Path, make_recipe: MakeRecipe, bits: Bits, disk: Path) -> None:
    """As after an error of the device: the run's folder alone, because a system with open files is not remounted."""
    root = disk / "run"

    def only_read() -> None:
        subprocess.run(["mount", "-o", "bind", str(root), str(root)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(root)], check=True)

    try:
        with pytest.raises(TvgradError, match="Read-only file system") as caught:
            traced(make_recipe, root, only_read)
        assert len(str(caught.value).splitlines()) == 1
        assert (Run.open(root).epochs, Run.open(root).problems()) == ([0, 1], [])
        with pytest.raises(TvgradError, match="Read-only file system"):
            traced(make_recipe, root, resume=True)
    finally:
        subprocess.run(["umount", str(root)], check=True)
    traced(make_recipe, root, resume=True)
    traced(make_recipe, tmp_path / "whole")
    assert bits(root) == bits(tmp_path / "whole")
