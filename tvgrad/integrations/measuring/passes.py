"""Passes: starts the command again for a pass at recorded weights, waits for its result, and ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from tvgrad.errors import TvgradError
from tvgrad.files.lazy_weights import LazyWeights
from tvgrad.integrations.measuring.pass_files import GRADIENT, read_facts, read_gradient, read_sums
from tvgrad.integrations.measuring.pass_options import PassOptions
from tvgrad.integrations.script.launch import environment
from tvgrad.integrations.script.notes import read_notes
from tvgrad.integrations.script.options import ScriptOptions
from tvgrad.record.step_plan import ScriptSum
from tvgrad.system import end_group

OUTPUT = "output"
LINES = 5
"""Of a failed command's output, so many last lines are shown."""
LOOK = 0.05  # seconds between two looks at what the command has left
PATIENCE = 600.0
"""Seconds until the first backward pass, unless an epoch of the run took longer."""


@dataclass(frozen=True)
class PassOutcome:
    """What one pass has found.

    Attributes:
        facts: plain values, see `MeasuringSession`.
        gradient: name -> float64 tensor, read when it is asked for; empty for a probe and for a training.
        sums: epoch that is explained -> what -> the sum over steps, likewise, where they were wanted.
    """

    facts: dict[str, Any]
    gradient: Mapping[str, torch.Tensor]
    sums: dict[int, dict[ScriptSum, LazyWeights]] = field(default_factory=dict)


def run_pass(options: ScriptOptions, plan: PassOptions, patience: float, keep: Path) -> PassOutcome:
    """Start the command for one pass.

    Args:
        options: the command, and how its epochs are found.
        plan: what the pass does.
        patience: seconds until its first backward pass.
        keep: an existing folder, in which what the pass has found stays in files.

    Returns:
        What it has found.

    Raises:
        TvgradError: it has found nothing; the sentence says why.
    """
    folder = Path(tempfile.mkdtemp(prefix="pass-", dir=keep))
    try:
        told = replace(options, notes=str(folder), measure=plan)
        with open(folder / OUTPUT, "wb") as output, _terminable():
            try:
                child = subprocess.Popen(
                    told.command,
                    env=environment(told),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise TvgradError(f"the command {told.command[0]!r} cannot be started: {error.strerror}") from None
            try:
                _await(child, folder, patience)
            finally:
                end_group(child.pid)
                child.wait()
        kept = Path(tempfile.mkdtemp(prefix="found-", dir=keep))
        for path in folder.glob("*.safetensors"):
            path.rename(kept / path.name)
        gradient = read_gradient(kept) if (kept / GRADIENT).exists() else {}
        return PassOutcome(read_facts(folder), gradient, read_sums(kept))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_of_passes() -> Generator[Path]:
    """Make a folder for what passes find, and delete it at the end of the `with` block."""
    folder = Path(tempfile.mkdtemp(prefix="tvgrad-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _await(child: subprocess.Popen[bytes], folder: Path, patience: float) -> None:
    """Return when the result is there; raise when none will come."""
    began = time.monotonic()
    while True:
        status = child.poll()
        notes = read_notes(str(folder))
        events = {note["event"] for note in notes}
        if "measured" in events:
            return
        failed = [note["reason"] for note in notes if note["event"] == "failed"]
        if failed:
            raise TvgradError(f"the measuring pass failed: {failed[0]}")
        if status is not None:
            raise TvgradError(_ended(notes, status, folder))
        if "backward" not in events and time.monotonic() - began > patience:
            raise TvgradError(
                f"the measuring pass failed: the command came to no backward pass within {patience:g} s; give it "
                "longer by --patience SECONDS"
            )
        time.sleep(LOOK)


def _ended(notes: Sequence[dict[str, Any]], status: int, folder: Path) -> str:
    """Why a command that has ended gave no result."""
    reasons = [note["reason"] for note in notes if note["event"] == "ended"]
    if status:
        how = f"exit code {status}" if status > 0 else f"signal {-status}"
        lines = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
        said = f"; it said: {' | '.join(line.strip() for line in lines)}" if lines else ""
        return f"the measuring pass failed: the command ended with {how} before its epoch did{said}"
    if reasons:
        return f"the measuring pass failed: the command ended before an epoch was measured; {reasons[-1]}"
    return "the measuring pass failed: the command imported no torch in a Python that can be reached"


@contextmanager
def _terminable() -> Generator[None]:
    """Let SIGTERM end the command too, which is in a session of its own."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
