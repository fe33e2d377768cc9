"""`tvgrad plan` and `tvgrad merge --alpha plan` on the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ("digits", "--tasks", "low,parity", "--chunk-size", "900", "--lr", "0.01", "--epochs", "3")


def test_before_training(tvgrad: Callable[..., Any], tmp_path: Path) -> None:
    done = tvgrad("plan", *WORDS, "--pairs", "--save", tmp_path / "plan.json")
    assert done.code == 0, done.err
    assert "Merging after 3 epochs of gd 0.01 (estimates: about)" in done.out
    said = json.loads((tmp_path / "plan.json").read_text())
    last = done.out.splitlines()[-1]
    assert f"merge with coefficient {said['coefficient']:.3g}: the summed loss falls" in last
    assert "every task gets better than pretrained" in last
    assert "where this is to be trusted" in last
    assert said["holds"] is True
    assert set(said["coefficients"]) == {"low", "parity"}
    assert [row["task"] for row in said["tasks"]] == ["low", "parity"]
    assert len(said["pairs"]) == 2
    again = tvgrad("plan", *WORDS, "--pairs", "--json")
    assert json.loads(again.out) == said


def test_cost_is_told_and_nothing_computed(tvgrad: Callable[..., Any]) -> None:
    done = tvgrad("plan", *WORDS, "--cost")
    assert done.out.startswith(r"2 gradients, 3 Hessian-vector products and up to 5 losses for each of 2 tasks, about")
    assert "4 Hessian-vector products" in tvgrad("plan", *WORDS, "--cost", "--pairs").out


def test_after_training_and_in_a_merge(tvgrad: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert tvgrad("trace", *WORDS, "--out", runs, "--quiet").code == 0
    done = tvgrad("plan", runs, "--recipe", "digits", "--epoch", "1", "--json")
    after = json.loads(done.out)
    done = tvgrad("plan", runs, "--recipe", "digits")
    assert "Merging runs after epoch 3" in done.out
    # after one epoch of gradient descent the forecast is the task vector itself
    before = json.loads(tvgrad("plan", *WORDS[:-1], "1", "--json").out)
    assert after["coefficient"] == pytest.approx(before["coefficient"], rel=1e-4)
    merge = ("merge", runs, "--epoch", "1", "--method", "task_arithmetic", "--recipe", "digits", "--alpha", "plan")
    done = tvgrad(*merge, "--evaluate", "--out", tmp_path / "m.safetensors")
    assert done.code == 0, done.err
    told = float(re.search(r"^alpha (\S+): told to be best", done.out, re.MULTILINE).group(1))  # type: ignore[union-attr]
    assert told == pytest.approx(after["coefficient"], rel=1e-3)
    assert f"alpha {told:g}" in done.out
    assert "leave it out with --recipe" in refused("plan", runs, "--recipe", "digits", "--lr", "0.1")
    assert "say which --recipe made them" in refused("plan", runs)
    assert "--recipe" in refused("merge", runs, "--alpha", "plan", "--out", tmp_path / "n.safetensors")


def test_refusals(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "for trained RUNs" in refused("plan", "digits", "--epoch", "1")
    assert "is no folder" in refused("plan", "digits", "--save", tmp_path / "none" / "plan.json")
    assert "give one TARGET" in refused("plan", "digits", "suite")
