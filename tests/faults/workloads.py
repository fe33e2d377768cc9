"""What meets faults: a trace, its resume, an unchanged script and a merge; each knows what may be left of it."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import gc
import os
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # noqa: F401 - every optimizer loads it
from torch import nn
from tvgrad.cli.main import main

import tvgrad
from tvgrad.integrations.script import hooks
from tvgrad.integrations.script.options import VARIABLE, ScriptOptions
from tvgrad.record.options import TraceOptions
from tvgrad.record.training_loop import prepare, trace
from tvgrad.store.run import Run

HANGS = 300  # seconds that no trial takes, however busy the machine is


def bits(root: Path) -> dict[str, bytes]:
    left = {"run.json", "metrics.csv", "writer.lock", "journal.jsonl"}  # those hold times
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in left)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def forked(work: Callable[[], int], log: Path) -> int:
    """Do work in a process of its own, with its output in a file; how it ended."""
    gc.collect()
    gc.freeze()  # a collection in the fork would write to, and so copy, every page of this process
    pid = os.fork()
    if pid == 0:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        atexit._clear()  # of PyTorch's libraries, whose end takes half a second
        code = 99
        try:
            code = work()
        except SystemExit as error:
            code = int(error.code or 0) if not isinstance(error.code, str) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def recipe(name: str = "small", shift: float = 0.0) -> tvgrad.Recipe:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4).eval(), nn.Linear(4, 3))
    inputs, targets = torch.randn(12, 5) + shift, torch.randint(0, 3, (12,))
    return tvgrad.Recipe(model, nn.CrossEntropyLoss(), (inputs, targets), name=name, lr=0.05)


class Trace:
    """A trace of a recipe, recorded with all that can be, and its resume; `start` is what it finds."""

    options = TraceOptions(
        optimizer="adam",
        epochs=4,
        batch_size=6,
        chunk_size=6,
        record=("gradients", "epoch-gradients", "batches"),
        keep="last:2",
        allow=("batchnorm",),
    )

    def __init__(self, folder: Path, start: int) -> None:
        self.folder, self.start = folder, start
        self.prepared = prepare(recipe(), self.options)
        self.begun = folder / "begun"
        self.goes_on = prepare(recipe(), TraceOptions(**{**vars(self.options), "resume": True}))
        if start:
            short = prepare(recipe(), TraceOptions(**{**vars(self.options), "epochs": start}))
            trace(short, self.begun)
        # A trace moves its model, and each trial begins with the same one.
        assert forked(lambda: int(bool(trace(self.prepared, folder / "whole").problems())), folder / "log") == 0
        self.expected = bits(folder / "whole")

    def place(self, root: Path) -> None:
        if self.start:
            shutil.copytree(self.begun, root)
            (root / "weights" / "epoch-0003.safetensors").write_bytes(b"of a killed writer")

    def work(self, root: Path) -> int:
        """As the command does it: a sentence and exit code 2 where it cannot go on."""
        try:
            trace(self.goes_on if self.start else self.prepared, root, lambda progress: self.report(progress.epoch))
        except tvgrad.TvgradError as error:
            print(f"Error: {error}", file=sys.stderr)
            return 2
        return 0

    def report(self, epoch: int) -> None:
        os.write(self.said, bytes([epoch]))

    def check(self, root: Path, said: bytes, whole: bool, problems: list[str]) -> None:
        listed: list[int] = []
        if (root / "run.json").exists():
            run = Run.open(root)
            found = run.problems()
            if found not in ([], ["no epoch was finished"]):
                problems.append(f"what is listed is damaged: {found}")
            listed = [point.number for point in run.points]
        lost = ({*said, *range(self.start + 1)} if self.start else {*said}) - {*listed}
        if lost:
            problems.append(f"epochs {sorted(lost)} are lost: {listed}")
        if not whole:
            trace(self.goes_on, root)
        if bits(root) != self.expected:
            names = sorted(
                name for name in self.expected | bits(root) if self.expected.get(name) != bits(root).get(name)
            )
            problems.append(f"other bits than without the fault: {names}")
        if Run.open(root).problems():
            problems.append(f"damaged after the resume: {Run.open(root).problems()}")

    said = -1


SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
x = torch.randn(12, 3)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
model[0].bias.requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
for epoch in range(4):
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(a), b).backward()
        optimizer.step()
print("trained", float(model[0].weight.detach().sum()).hex())
"""


class Script:
    """An unchanged script, recorded by a thread: its training is the same whatever happens to the recording."""

    start = 0

    def __init__(self, folder: Path) -> None:
        self.file = folder / "script.py"
        self.file.write_text(SCRIPT)
        self.notes = folder / "notes"
        log = folder / "log"
        assert forked(lambda: self.run(), log) == 0, log.read_text()
        self.trained = log.read_text()
        assert forked(lambda: self.work(folder / "whole"), log) == 0, log.read_text()
        assert Run.open(folder / "whole").epochs == [0, 1, 2, 3, 4], log.read_text()
        self.expected = bits(folder / "whole")

    def place(self, root: Path) -> None:
        shutil.rmtree(self.notes, ignore_errors=True)

    def run(self) -> int:
        sys.argv = [str(self.file)]
        gc.get_freeze_count = lambda: 0  # the script's own objects are none of those that were frozen before
        runpy.run_path(str(self.file), run_name="__main__")
        atexit._run_exitfuncs()
        return 0

    def work(self, root: Path) -> int:
        os.environ[VARIABLE] = ScriptOptions(str(root), str(self.notes), ("python",)).to_environment()
        hooks.install()
        return self.run()

    def check(self, root: Path, said: bytes, whole: bool, problems: list[str]) -> None:
        listed: list[int] = []
        if (root / "run.json").exists():
            run = Run.open(root)
            if run.problems() not in ([], ["no epoch was finished"]):
                problems.append(f"what is listed is damaged: {run.problems()}")
            listed = [point.number for point in run.points]
        if listed != list(range(len(listed))):
            problems.append(f"{listed} are listed")
        if any(content != self.expected[name] for name, content in bits(root).items() if name in listed_files(root)):
            problems.append("other bits than without the fault")

    def judge(self, status: int, text: str, root: Path) -> list[str]:
        problems = []
        lines = text.splitlines()
        if status != 0 or [line for line in lines if not line.startswith("tvgrad: ")] != [self.trained.strip()]:
            problems.append(f"the script was harmed: exit code {status}, {text!r}")
        if len(lines) > 2:
            problems.append(f"more than one sentence: {text!r}")
        points = len(Run.open(root).points) if (root / "run.json").exists() else 0
        if points < 5 and len(lines) < 2:
            problems.append(f"{points} points are recorded and nothing is said")
        return problems


def listed_files(root: Path) -> set[str]:
    return Run.open(root).manifest.listed() if (root / "run.json").exists() else set()


class Merge:
    """A merge of two runs into a file: the file is whole or not there, and the runs stay as they are."""

    start = 0

    def __init__(self, folder: Path) -> None:
        self.runs = [folder / name for name in ("one", "two")]
        for number, root in enumerate(self.runs):
            made = recipe(root.name, float(number))
            trace(prepare(made, TraceOptions(epochs=1, chunk_size=6, allow=("batchnorm",))), root)
        self.before = [bits(root) for root in self.runs]
        self.call(folder / "whole")
        self.expected = bits(folder / "whole")

    def place(self, root: Path) -> None:
        root.mkdir()

    def call(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        words = [
            "merge",
            *map(str, self.runs),
            "--epoch",
            "1",
            "--method",
            "ties",
            "--out",
            str(root / "m.safetensors"),
        ]
        try:
            main(words)
        except SystemExit as error:
            if error.code:
                raise

    def work(self, root: Path) -> int:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            self.call(root)
        return 0

    def check(self, root: Path, said: bytes, whole: bool, problems: list[str]) -> None:
        left = {name: content for name, content in bits(root).items() if not name.endswith(".tmp")}
        if left not in ({}, self.expected):
            problems.append(f"a file that is not whole: {sorted(left)}")
        if [bits(one) for one in self.runs] != self.before:
            problems.append("the runs were changed")
        if not left:
            self.call(root)
            if bits(root)["m.safetensors"] != self.expected["m.safetensors"]:
                problems.append("other bits than without the fault")


WORKLOADS: dict[str, Callable[[Path], Any]] = {
    "trace": lambda folder: Trace(folder, 0),
    "resume": lambda folder: Trace(folder, 2),
    "script": Script,
    "merge": Merge,
}
