"""A link, a pipe or a device in the place of a run's file: nothing of anybody else's is swept, written or read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tvgrad import Recorder, Run
from tvgrad.errors import TvgradError
from tvgrad.store.layout import CONTENTS
from tvgrad.store.writer import RunWriter

pytestmark = pytest.mark.timeout(60)  # a pipe that is opened waits for ever


def record(directory: Path, epochs: int = 2, **options: bool) -> Run:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 1).requires_grad_(False))
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with Recorder(directory, model, optimizer, **options) as recorder:
        for _ in range(epochs):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            recorder.end_epoch()
    return Run.open(directory)


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Somebody else's run, with files under names that only a writer gives and that no run.json lists."""
    run = record(tmp_path / "others")
    (run.root / "results").mkdir()
    (run.root / "results" / "explain.json").write_text("{}")
    for folder in CONTENTS.values():
        (run.root / folder).mkdir(exist_ok=True)
        (run.root / folder / "epoch-0007.safetensors").write_text("theirs")
    return run.root


@pytest.mark.parametrize("name", [*CONTENTS.values(), "results", "run.json", "metrics.csv", "writer.lock"])
def test_a_link_in_a_run_leads_nowhere(tmp_path: Path, others: Path, name: str) -> None:
    root = record(tmp_path / "run").root
    before = content(others)
    if (root / name).is_dir():
        shutil.rmtree(root / name)
    (root / name).unlink(missing_ok=True)
    (others / "writer.lock").write_text("theirs")
    (root / name).symlink_to(others / name)
    (others / "writer.lock").unlink()
    actions: list[Callable[[], object]] = [lambda: record(root, overwrite=True)]
    if name != "results":
        actions += [lambda: RunWriter.resume(root).close(), lambda: record(root, 3, resume=True)]
    for action in actions:
        with pytest.raises(TvgradError, match=rf"{name}.* is a link.* through a link"):
            action()
    assert content(others) == before


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_every_file_of_a_run_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    run = record(tmp_path / "run")
    for relative in sorted(run.manifest.listed()):
        path = run.root / relative
        kept = path.rename(tmp_path / "kept")
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if kind == "device" else kept)
        words = "it is a pipe" if kind == "pipe" else "it is a link"
        problems = run.problems()
        assert len(problems) == 1
        assert problems[0].startswith(f"{relative} cannot be read ({words}")
        reads = {
            "static": run.static,
            "steps": run.steps,
            "weights": lambda: [run.weights(number) for number in run.epochs],
            "epoch_gradients": lambda: [run.epoch_gradient(number) for number in (1, 2)],
            "state": lambda: RunWriter.resume(run.root).read_state(),
        }
        with pytest.raises(TvgradError, match=words):
            reads[relative.split("/")[0].removesuffix(".safetensors")]()
        path.unlink()
        kept.rename(path)
    assert not run.problems()


def test_a_sweep_leaves_links_alone(tmp_path: Path, others: Path) -> None:
    run = record(tmp_path / "run")
    stray = run.root / "weights" / "epoch-0009.safetensors"
    stray.symlink_to(others / "weights" / "epoch-0001.safetensors")
    before = content(others)
    RunWriter.resume(run.root).close()
    assert content(others) == before
    assert stray.is_symlink()


def test_a_new_run_does_not_go_behind_links(tmp_path: Path, others: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").symlink_to(others / "weights")
    before = content(others)
    with pytest.raises(TvgradError, match="weights is a link"):
        record(tmp_path / "new")
    assert content(others) == before


def test_a_run_directory_may_be_a_link_itself(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    (tmp_path / "link").symlink_to(run.root)
    assert not Run.open(tmp_path / "link").problems()
    assert record(tmp_path / "link", 3, resume=True).epochs[-1] > 2
