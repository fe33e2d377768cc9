"""A bit that flipped in a file of a run: every command that reads the file says so, and leaves no result."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tvgrad = Callable[..., Any]

FILES = ["weights/epoch-0000", "weights/epoch-0003", "gradients/epoch-0000", "epoch_gradients/epoch-0001"]
READ = {
    "report": FILES,
    "relate": FILES[:3],
    "merge": FILES[:2],
    "export": FILES[1:2],
    "explain": FILES[:2],
    "plan": FILES[1:2],
}
"""Command -> files of which it reads numbers."""


@pytest.fixture
def runs(tvgrad: Tvgrad, recipes: Path, tmp_path: Path) -> Path:
    options = ["--epochs", "3", "--record", "gradients,epoch-gradients", "--batch-size", "7", "--optimizer", "sgd"]
    assert tvgrad("trace", f"{recipes}:tasks", "--out", tmp_path / "runs", *options, "--quiet").code == 0
    return tmp_path / "runs"


def flip(path: Path) -> None:
    """Change the lowest bit of the middle of the data, which no format notices."""
    content = bytearray(path.read_bytes())
    content[-1 - (len(content) - int.from_bytes(content[:8], "little") - 8) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_found_by_what_reads_it(tvgrad: Tvgrad, runs: Path, recipes: Path, tmp_path: Path) -> None:
    one, two, out = runs / "one", runs / "two", tmp_path / "out"
    commands: dict[str, list[Any]] = {
        "report": ["report", runs, "--out", out, "--format", "csv"],
        "relate": ["relate", one, two, "--out", tmp_path / "out.csv"],
        "merge": ["merge", one, two, "--epoch", 3, "--method", "mean", "--out", tmp_path / "out.safetensors"],
        "export": ["export", two, "--epoch", 3, "--out", out],
        "explain": ["explain", two, "--recipe", f"{recipes}:tasks"],
        "plan": ["plan", one, two, "--recipe", f"{recipes}:tasks"],
    }
    for command, words in commands.items():
        for stem in READ[command]:
            # Runs that started from the same recorded bytes are merged from the first run's.
            owner = one if command == "merge" and stem.endswith("0000") else two
            path = owner / f"{stem}.safetensors"
            plain = path.read_bytes()
            flip(path)
            outcome = tvgrad(*words)
            assert outcome.code == 2, (command, stem, outcome)
            (error,) = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
            assert re.search(rf"{stem}\.safetensors does not have the checksum it was written with", error), error
            assert not list(tmp_path.glob("out*")), command
            assert not list(two.glob("results/*"))
            path.write_bytes(plain)
    assert tvgrad(*commands["merge"]).code == 0


def test_a_damaged_run_is_left_out_of_a_report(tvgrad: Tvgrad, runs: Path) -> None:
    flip(runs / "two" / "gradients/epoch-0003.safetensors")
    outcome = tvgrad("report", runs, "--skip-damaged")
    assert outcome.code == 0
    assert "two is left out: gradients/epoch-0003.safetensors does not have the checksum" in outcome.err


def test_a_flipped_bit_in_a_table_of_steps(tvgrad: Tvgrad, runs: Path) -> None:
    path = runs / "two" / "steps/epoch-0001.csv"
    path.write_text(path.read_text().replace("0.1", "0.2", 1))
    outcome = tvgrad("report", runs)
    assert outcome.code == 2
    assert "steps/epoch-0001.csv does not have the checksum it was written with" in outcome.err
