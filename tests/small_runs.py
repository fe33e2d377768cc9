"""Small recipes and traces for the tests of recording, and a server that forks processes to be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvgrad.problem.recipe import Recipe
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVGRAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing matters when the power fails, which no test can try; waiting for it is most of the time they take."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A function that makes a recipe: 20 samples, a tanh network with a frozen head."""

    def make(model: nn.Module | None = None, **options: Any) -> Recipe:
        generator = torch.Generator().manual_seed(3)
        inputs = torch.randn(20, 5, generator=generator)
        targets = torch.randint(0, 3, (20,), generator=generator)
        if model is None:
            with torch.random.fork_rng():
                torch.manual_seed(4)
                model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
            model[2].requires_grad_(False)
        return Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name="small", **{"lr": 0.1, **options})

    return make


@pytest.fixture
def traced(make_recipe: Callable[..., Recipe]) -> Callable[..., Run]:
    """A function that traces the small recipe, or another, with options of `TraceOptions`."""

    def run(directory: Path, recipe: Recipe | None = None, **options: Any) -> Run:
        chosen = TraceOptions(**{"epochs": 3, "chunk_size": 8, **options})
        return trace(prepare(recipe or make_recipe(), chosen), directory)

    return run


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a run whose bytes depend on the training alone: run.json, metrics and the lock hold times."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in {"run.json", "metrics.csv", "writer.lock"}
    }


@pytest.fixture
def bits() -> Callable[[Path], dict[str, bytes]]:
    """A function: relative path -> bytes of every file of a run besides run.json and metrics.csv."""
    return files_of


class Forks:
    """Forked processes, one at a time; the server has torch imported and never used, so that each takes little time."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"
        self._running = False

    def start(self, file: Path, function: str, *arguments: str, log: Path) -> int:
        """Call a function of a Python file in a new process; its output goes to `log`. Returns the pid."""
        if self._running:  # a test that failed has left its process
            self.end(9)
        log.touch()
        request = {"file": str(file), "function": function, "arguments": arguments, "log": str(log)}
        self._say(json.dumps(request))
        self._running = True
        return int(self._answer())

    def end(self, signal: int = 0) -> int:
        """Send the process a signal, or none, and wait for its exit status (negative: the signal that ended it)."""
        self._say(str(int(signal)))
        status = int(self._answer())
        self._running = False
        return status

    def close(self) -> None:
        if self._running:
            self.end(9)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()

    def _say(self, words: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(words + "\n")
        self._server.stdin.flush()

    def _answer(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Processes that can be killed."""
    server = Forks()
    yield server
    server.close()
