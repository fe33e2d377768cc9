"""Processes killed at random instants: what is listed is whole, and the run goes on to the same bits."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvgrad.errors import TvgradError
from tvgrad.store.layout import is_own
from tvgrad.store.run import Run

Bits = Callable[[Path], dict[str, bytes]]

WORK = """
import os, random

import numpy as np
import torch
from torch import nn

import tvgrad
from tvgrad.cli.main import main


def recipe():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 4000), nn.Tanh(), nn.Linear(4000, 4))
    inputs, targets = torch.randn(24, 16), torch.randint(0, 4, (24,))
    return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name="wide", lr=1e-3, epochs=EPOCHS)


def traced(*arguments):
    main(["trace", __file__, *arguments])


def looped(directory):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(16, 4000), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4000, 4))
    inputs, targets = torch.randn(24, 16), torch.randint(0, 4, (24,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    begun = os.path.exists(os.path.join(directory, "run.json")) and tvgrad.Run.open(directory).points
    noise = os.getpid() if begun else 2  # a process that goes on starts with noise of its own
    torch.manual_seed(noise), random.seed(noise), np.random.seed(noise)
    with tvgrad.Recorder(directory, model, optimizer, scheduler=scheduler, resume=True) as recorder:
        while recorder.epoch < EPOCHS:
            for batch in torch.randperm(24).split(8):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs[batch]), targets[batch]).backward()
                optimizer.step()
            scheduler.step()
            recorder.end_epoch()
"""
EPOCHS = 6

TRACES = {
    "gd": ["--optimizer", "gd"],
    "momentum": ["--optimizer", "momentum", "--batch-size", "8", "--record", "gradients,epoch-gradients,batches"],
    "adam": ["--optimizer", "adam", "--batch-size", "8", "--keep", "last:2"],
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    path = tmp_path / "work.py"
    path.write_text(WORK.replace("EPOCHS", str(EPOCHS)))
    return path


def different(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]


def wait_for_writer(root: Path, pid: int) -> None:
    """Wait until the process has locked the run, or has come to its end before anybody looked."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if f'"pid": {pid},' in (root / "writer.lock").read_text():
                return
        with contextlib.suppress(TvgradError):
            if Run.open(root).manifest.finished:
                return
        time.sleep(0.002)
    raise AssertionError(f"process {pid} has not opened {root}")


def follow(root: Path, forks: Any, work: Path, call: list[str], kills: int, seed: int, bits: Bits) -> int:
    """Kill a process so many times, each time somewhere in its work, then let it finish.

    Returns:
        After how many kills there were files that no point lists, so that the kill fell into a write.
    """
    log, whole = work.parent / "log", work.parent / "whole"
    began = time.monotonic()
    wait_for_writer(whole, forks.start(work, *call, str(whole), log=log))
    opened = time.monotonic()
    assert forks.end() == 0, log.read_text()
    preparing, recording = opened - began, time.monotonic() - opened
    expected = bits(whole)
    instants = random.Random(seed)
    in_writes = 0
    for number in range(kills):
        pid = forks.start(work, *call, str(root), log=log)
        if number % 5 == 4:  # anywhere, before the run is opened too
            time.sleep(instants.uniform(0, preparing + recording / 2))
        else:
            wait_for_writer(root, pid)
            time.sleep(instants.uniform(0, recording / 2))
        assert forks.end(signal.SIGKILL) in {-signal.SIGKILL, 0}, log.read_text()
        if not (root / "run.json").exists():
            continue
        run = Run.open(root)
        assert run.problems() in ([], ["no epoch was finished"])
        assert [point.number for point in run.points] == list(range(len(run.points)))
        present = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        in_writes += any(is_own(path) and path not in run.manifest.listed() for path in present)
        if run.manifest.finished:  # and killed while the table of metrics was written, it may be
            assert different({name: found for name, found in bits(root).items() if "tmp" not in name}, expected) == []
            shutil.rmtree(root)
    forks.start(work, *call, str(root), log=log)
    assert forks.end() == 0, log.read_text()
    assert Run.open(root).problems() == []
    assert different(bits(root), expected) == []
    return in_writes


def reached(root: Path, epoch: int) -> bool:
    return (root / "run.json").exists() and len(Run.open(root).points) > epoch


def call_of(optimizer: str) -> list[str]:
    return ["traced", *TRACES[optimizer], "--chunk-size", "16", "--resume", "--quiet", "--out"]


@pytest.mark.parametrize("optimizer", TRACES)
def test_a_killed_trace_goes_on_to_the_same_bits(
    tmp_path: Path, forks: Any, work: Path, bits: Bits, optimizer: str
) -> None:
    follow(tmp_path / "run", forks, work, call_of(optimizer), 5, 1, bits)


def test_a_killed_loop_goes_on_to_the_same_bits(tmp_path: Path, forks: Any, work: Path, bits: Bits) -> None:
    follow(tmp_path / "run", forks, work, ["looped"], 3, 2, bits)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", TRACES)
def test_fifty_kills(tmp_path: Path, forks: Any, work: Path, bits: Bits, optimizer: str) -> None:
    assert follow(tmp_path / "run", forks, work, call_of(optimizer), 50, 3, bits) > 5


@pytest.mark.slow
def test_fifty_kills_of_a_loop(tmp_path: Path, forks: Any, work: Path, bits: Bits) -> None:
    assert follow(tmp_path / "run", forks, work, ["looped"], 50, 4, bits) > 5


def test_an_interrupt_leaves_a_run_that_opens(tmp_path: Path, forks: Any, work: Path) -> None:
    log = tmp_path / "log"
    endless = ["--epochs", "100000", "--keep", "last:1", "--out", str(tmp_path / "run")]
    forks.start(work, "traced", *endless, log=log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not reached(tmp_path / "run", 2):
        time.sleep(0.01)
    assert forks.end(signal.SIGINT) == 130
    assert log.read_text().strip() == "tvgrad: stopped; finished epochs are recorded"
    run = Run.open(tmp_path / "run")
    assert run.problems() == []
    assert len(run.epochs) >= 2
    assert not (tmp_path / "run" / "writer.lock").exists()


def test_two_traces_of_one_directory(tmp_path: Path, forks: Any, work: Path, bits: Bits, capsys: Any) -> None:
    """The one that comes second is told who is writing; the first is not disturbed."""
    from tvgrad.cli.main import main

    root, log = tmp_path / "run", tmp_path / "log"
    pid = forks.start(work, "traced", "--epochs", "100000", "--keep", "last:1", "--out", str(root), log=log)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not reached(root, 2):
        time.sleep(0.01)
    with pytest.raises(SystemExit) as caught:
        main(["trace", str(work), "--out", str(root), "--resume"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"Error: {root} is being written by process {pid} on ")
    assert error.count("\n") == 1
    assert forks.end(signal.SIGKILL) == -signal.SIGKILL
    assert Run.open(root).problems() == []
